CFLAGS ?= -O2 -Wall -Wextra -pedantic
OUT ?= {{so}}

$(OUT): runner.c json.h kairos.h
	$(CC) $(CFLAGS) -std=c99 -fPIC -shared -isystem . -o $@ runner.c

test: $(OUT)
	{{play}}

clean:
	rm -f $(OUT)

.PHONY: test clean
