/*
 * kairos.h: what a Kairos runner in C, or in any language that speaks C, exports.
 *
 * A runner decides, the host does: a cycle asks the host for each model call and each tool, and
 * reports when it is done. Payloads are JSON, the same as for runners in Rust (README.md beside
 * this directory names them); this header only carries bytes.
 *
 * A plugin is a shared object with two things in it:
 *   - KAIROS_MANIFEST("{...}"): who it is, read by the host before it runs anything;
 *   - kairos_plugin_entry_v1(): the table of its functions.
 *
 * Rules of the boundary:
 *   - Text is UTF-8 without an ending zero, as pointer and length. A pointer may be NULL when
 *     the length is 0.
 *   - What is passed to a function is valid until it returns; copy what you keep.
 *   - Who allocates frees: the host gives answers of the plugin to the plugin's free_answer, the
 *     plugin gives answers of the host to the host's. What it forgets is freed with the cycle.
 *   - Threads: run_cycle is called from several threads at once if the operator allows it, cancel,
 *     probe and begin_drain at any time beside it; export_state and import_state never beside a
 *     cycle, create and destroy never beside anything of the same runner. The host's functions may
 *     be called from any thread until the run_cycle they were given to returns.
 *   - Nothing may be thrown or jumped across a function of either side.
 *   - The library is never unloaded.
 *   - Structures grow at the end only. `size` says how much of one is there: a reader takes the
 *     functions that lie within it and are not NULL, and does without the others.
 */
#ifndef KAIROS_H
#define KAIROS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Version of this ABI, and of the plugin-api it belongs to: "api" of the manifest. */
#define KAIROS_ABI_MAJOR 1
#define KAIROS_ABI_MINOR 0
#define KAIROS_API "1.0.0"

/* What a call returns; any other value counts as KAIROS_ERROR. */
#define KAIROS_OK 0u    /* the answer is the result, JSON */
#define KAIROS_ERROR 1u /* the answer is the JSON {"code": "...", "message": "..."} */

/* deadline_ms of a cycle that has all the time. */
#define KAIROS_NO_DEADLINE INT64_MAX

/* Levels of log. */
#define KAIROS_LOG_ERROR 1u
#define KAIROS_LOG_WARN 2u
#define KAIROS_LOG_INFO 3u
#define KAIROS_LOG_DEBUG 4u
#define KAIROS_LOG_TRACE 5u

/* Bytes that belong to somebody else. Never grows. */
typedef struct kairos_bytes {
    const uint8_t *data;
    size_t len;
} kairos_bytes;

/* The host, as one cycle sees it. The first argument of each function is `ctx`. */
typedef struct kairos_host_v1 {
    uint32_t size; /* of this structure, as the host knows it */
    uint16_t major;
    uint16_t minor;
    void *ctx;
    /* One call of the context; blocks. Methods with request -> answer: "phase" {"name"} -> {},
     * "llm", "tool" {"name", "args"} -> {"ok", "output"}, "propose" (unsupported today), "usage", "now", "random",
     * "state_get", "state_put", "progress". Once one was answered with an error that ends the
     * attempt (stopped, paused, budget_exhausted, deadline, diverged), all later ones are answered
     * the same, and that is the outcome of the cycle, whatever the runner reports. */
    uint32_t (*call)(void *ctx, kairos_bytes method, kairos_bytes request, kairos_bytes *answer);
    /* Frees an answer of `call`. */
    void (*free_answer)(void *ctx, kairos_bytes answer);
    /* Not 0 when the cycle should come to an end. */
    uint32_t (*should_stop)(void *ctx);
    /* When the cycle's time is over, in milliseconds since 1970, or KAIROS_NO_DEADLINE. */
    int64_t (*deadline_ms)(void *ctx);
    /* A record for the host's log. `fields` is a JSON object, or empty. */
    void (*log)(void *ctx, uint32_t level, kairos_bytes target, kairos_bytes message, kairos_bytes fields);
} kairos_host_v1;

/* A runner: what kairos_plugin_entry_v1 returns. The first argument of most functions is what
 * `create` made. Only run_cycle is needed; leave NULL what you do not have. */
typedef struct kairos_plugin_v1 {
    uint32_t size; /* sizeof(kairos_plugin_v1) */
    uint16_t major; /* KAIROS_ABI_MAJOR */
    uint16_t minor; /* KAIROS_ABI_MINOR */
    /* The same as in the section. */
    kairos_bytes manifest;
    /* Makes an instance. `setup` holds {"params": the runner's section of the configuration}. The
     * `home` may be kept until destroy: its log works outside of cycles, its calls do not. */
    uint32_t (*create)(const kairos_host_v1 *home, kairos_bytes setup, void **runner, kairos_bytes *answer);
    /* Ends an instance; no call is under way and none will come. */
    void (*destroy)(void *runner);
    /* Runs one cycle to its end: a mandate in, {"status": "ok" | "paused" | "error", ...} out. */
    uint32_t (*run_cycle)(void *runner, kairos_bytes mandate, const kairos_host_v1 *host, kairos_bytes *answer);
    /* Frees an answer of any function here, once; `runner` is NULL for one of a failed `create`.
     * NULL when answers are never to be freed. */
    void (*free_answer)(void *runner, kairos_bytes answer);
    /* Running cycles should look at should_stop now. */
    void (*cancel)(void *runner);
    /* Could the instance work? The answer of KAIROS_OK is not looked at. */
    uint32_t (*probe)(void *runner, kairos_bytes *answer);
    /* The state for a successor, {"schema": "name/1", "data": any}, or null or nothing. */
    uint32_t (*export_state)(void *runner, kairos_bytes *answer);
    /* Takes a predecessor's state over. */
    uint32_t (*import_state)(void *runner, kairos_bytes state, kairos_bytes *answer);
    /* No new cycle will come; running ones may finish. */
    void (*begin_drain)(void *runner);
} kairos_plugin_v1;

#if defined(__GNUC__)
#define KAIROS_EXPORT __attribute__((visibility("default")))
#define KAIROS_IN_SECTION __attribute__((section(".kairos.manifest"), used))
#else
#error "kairos.h needs a compiler that can name a section, gcc or clang"
#endif

/* Your plugin defines this one. It gives the table, which lives as long as the process, or NULL
 * when the host's major version is one that it cannot serve. */
KAIROS_EXPORT const kairos_plugin_v1 *kairos_plugin_entry_v1(uint32_t host_abi_major);

/* JSON as a string literal, without a backslash before each quote. */
#define KAIROS_JSON(...) #__VA_ARGS__

/* Writes the manifest, once in a plugin, at file scope:
 *   KAIROS_MANIFEST(KAIROS_JSON({"schema": 1, "abi": "c", "api": "1.0.0",
 *                                "name": "mine", "version": "0.1.0", "capabilities": ["llm"]}));
 * and names it in the table as KAIROS_MANIFEST_BYTES, which also keeps a linker that collects
 * garbage from dropping it. */
#define KAIROS_MANIFEST(json) KAIROS_IN_SECTION static const char kairos_manifest[] = json
#define KAIROS_MANIFEST_BYTES {(const uint8_t *)kairos_manifest, sizeof kairos_manifest - 1}

/* A text as bytes. */
static inline kairos_bytes kairos_text(const char *text) {
    kairos_bytes bytes = {(const uint8_t *)text, strlen(text)};
    return bytes;
}

#ifdef __cplusplus
}
#endif

#endif
