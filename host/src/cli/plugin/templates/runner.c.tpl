/* A Kairos runner: asks the model about the mandate's goal, and remembers the answer for the next time. */
#include "json.h"

/* The manifest: what this runner wants to call. The host decides what it may. */
KAIROS_MANIFEST(KAIROS_JSON({"schema": 1, "abi": "c", "api": "1.0.0", "name": "{{name}}", "version": "0.1.0",
                             "capabilities": ["llm"]}));

/* Asks the host; its answer stays its own until the cycle ends. */
static uint32_t ask(const kairos_host_v1 *host, const char *method, json_out *request, kairos_bytes *reply) {
    kairos_bytes bytes = {(const uint8_t *)request->data, request->len};
    uint32_t status = host->call(host->ctx, kairos_text(method), bytes, reply);
    free(request->data);
    request->data = NULL;
    request->len = 0;
    return status;
}

/* The inside of a JSON text as it stands, to be put into another. */
static kairos_bytes inside(kairos_bytes text) {
    kairos_bytes bytes = {text.data + 1, text.len - 2}, none = {NULL, 0};
    return text.len >= 2 && text.data[0] == '"' ? bytes : none;
}

static uint32_t run_cycle(void *runner, kairos_bytes mandate, const kairos_host_v1 *host, kairos_bytes *answer) {
    json_out request = {NULL, 0}, out = {NULL, 0};
    kairos_bytes reply, text;
    uint32_t status;
    (void)runner;
    json_put(&request, "{\"key\": \"last\"}");
    status = ask(host, "state_get", &request, &reply);
    if (status == KAIROS_OK) {
        json_put(&request, "{\"messages\": [{\"role\": \"user\", \"content\": \"");
        json_put_slice(&request, inside(json_get(mandate, "goal")));
        json_put(&request, " Last time you said: ");
        json_put_slice(&request, inside(json_get(reply, "value")));
        json_put(&request, "\"}]}");
        status = ask(host, "llm", &request, &reply);
    }
    if (status == KAIROS_OK) {
        text = json_get(reply, "text");
        json_put(&request, "{\"key\": \"last\", \"value\": ");
        json_put_slice(&request, text);
        json_put(&request, "}");
        json_put(&out, "{\"status\": \"ok\", \"summary\": ");
        json_put_slice(&out, text);
        json_put(&out, "}");
        status = ask(host, "state_put", &request, &reply);
    }
    /* What the host answered instead of a result is this runner's own answer. */
    if (status != KAIROS_OK) {
        out.len = 0;
        json_put_slice(&out, reply);
    }
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
