/*
 * A useful runner in C: counts the lines and words of the file that the mandate names. The file is
 * read by the host's tool, so the host's policy decides whether it may be.
 */
#include "json.h"
#include <stdio.h>

KAIROS_MANIFEST(KAIROS_JSON({"schema": 1, "abi": "c", "api": "1.0.0", "name": "word-count", "version": "0.1.0",
                             "capabilities": ["tool:fs.read"]}));

/* Asks the host. What it answers instead of a result becomes the runner's own answer. */
static uint32_t ask(const kairos_host_v1 *host, const char *method, kairos_bytes request, json_out *answer) {
    kairos_bytes reply;
    uint32_t status = host->call(host->ctx, kairos_text(method), request, &reply);
    json_put_slice(answer, reply);
    host->free_answer(host->ctx, reply);
    return status;
}

/* Counts in the JSON text as it stands: a line ends with the two characters \n. */
static void count(kairos_bytes text, unsigned long *lines, unsigned long *words) {
    int inside = 0;
    for (size_t at = 1; at + 1 < text.len; at++) {
        int space = text.data[at] == ' ';
        if (text.data[at] == '\\') {
            uint8_t escaped = text.data[++at];
            *lines += escaped == 'n';
            space = escaped == 'n' || escaped == 't' || escaped == 'r';
        }
        *words += !space && !inside;
        inside = !space;
    }
}

static uint32_t run_cycle(void *runner, kairos_bytes mandate, const kairos_host_v1 *host, kairos_bytes *answer) {
    kairos_bytes file = json_get(json_get(mandate, "params"), "file"), output;
    json_out out = {NULL, 0}, request = {NULL, 0}, reply = {NULL, 0};
    unsigned long lines = 0, words = 0;
    char line[160];
    uint32_t status;
    (void)runner;
    if (file.len == 0) file = kairos_text("\"README.md\"");
    json_put(&request, "{\"name\": \"fs.read\", \"args\": {\"path\": ");
    json_put_slice(&request, file);
    json_put(&request, "}}");
    status = ask(host, "phase", kairos_text("{\"name\": \"observe\"}"), &out);
    if (status == KAIROS_OK) {
        kairos_bytes call = {(const uint8_t *)request.data, request.len};
        status = ask(host, "tool", call, &reply);
        out.len = 0;
        if (status != KAIROS_OK) json_put_bytes(&out, reply.data, reply.len);
    }
    if (status == KAIROS_OK) {
        kairos_bytes all = {(const uint8_t *)reply.data, reply.len};
        output = json_get(all, "output");
        if (json_is(json_get(all, "ok"), "true")) {
            count(json_get(output, "content"), &lines, &words);
            snprintf(line, sizeof line, "{\"status\": \"ok\", \"summary\": \"%lu lines, %lu words\"}", lines, words);
            json_put(&out, line);
        } else {
            json_put(&out, "{\"status\": \"error\", \"error\": ");
            json_put_slice(&out, json_get(output, "error"));
            json_put(&out, "}");
        }
    }
    free(request.data);
    free(reply.data);
    answer->data = (const uint8_t *)out.data;
    answer->len = out.len;
    return status;
}

static void free_answer(void *runner, kairos_bytes answer) {
    (void)runner;
    free((void *)answer.data);
}

const kairos_plugin_v1 *kairos_plugin_entry_v1(uint32_t host_abi_major) {
    static const kairos_plugin_v1 plugin = {
        .size = sizeof plugin,
        .major = KAIROS_ABI_MAJOR,
        .minor = KAIROS_ABI_MINOR,
        .manifest = KAIROS_MANIFEST_BYTES,
        .run_cycle = run_cycle,
        .free_answer = free_answer,
    };
    return host_abi_major == KAIROS_ABI_MAJOR ? &plugin : NULL;
}
