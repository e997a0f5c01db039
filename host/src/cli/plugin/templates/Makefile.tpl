CFLAGS ?= -O2 -Wall -Wextra -pedantic
OUT ?= {{so}}
KAIROS ?= {{kairos}}

$(OUT): runner.c json.h kairos.h
	$(CC) $(CFLAGS) -std=c99 -fPIC -shared -I. -o $@ runner.c

test: $(OUT)
	$(KAIROS) plugin test $(OUT) --scenario scenario.yml

clean:
	rm -f $(OUT)

.PHONY: test clean
