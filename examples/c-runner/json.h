/*
 * json.h: as much JSON as a small runner needs, on the bytes that the host gave. Values are slices
 * of the text they stand in: what is only handed on is never decoded. Copy it and make it yours.
 */
#ifndef KAIROS_EXAMPLE_JSON_H
#define KAIROS_EXAMPLE_JSON_H

#include <kairos.h>
#include <stdlib.h>

/* Text that grows; `data` is NULL while there is none. */
typedef struct json_out {
    char *data;
    size_t len;
} json_out;

static inline void json_put_bytes(json_out *out, const void *data, size_t len) {
    char *grown;
    if (len == 0) return;
    grown = (char *)realloc(out->data, out->len + len + 1);
    if (grown == NULL) abort();
    memcpy(grown + out->len, data, len);
    out->data = grown;
    out->len += len;
    grown[out->len] = 0;
}

static inline void json_put(json_out *out, const char *text) { json_put_bytes(out, text, strlen(text)); }

static inline void json_put_slice(json_out *out, kairos_bytes raw) { json_put_bytes(out, raw.data, raw.len); }

static inline size_t json_space(kairos_bytes text, size_t at) {
    while (at < text.len && strchr(" \t\r\n", text.data[at]) != NULL && text.data[at] != 0) at++;
    return at;
}

/* Where the value that begins at `at` ends. */
static inline size_t json_end(kairos_bytes text, size_t at) {
    size_t depth = 0;
    do {
        if (at < text.len && text.data[at] == '"') {
            for (at++; at < text.len && text.data[at] != '"'; at++) at += text.data[at] == '\\';
            at++;
        } else if (at < text.len && strchr("{[", text.data[at]) != NULL) {
            depth++, at++;
        } else if (at < text.len && strchr("}]", text.data[at]) != NULL) {
            if (depth > 0) depth--, at++;
        } else if (depth > 0) {
            at++;
        } else {
            while (at < text.len && strchr(",}] \t\r\n", text.data[at]) == NULL) at++;
        }
    } while (depth > 0 && at < text.len);
    return at < text.len ? at : text.len;
}

/* The next member of an object; `at` begins as 0. Gives 0 after the last one. */
static inline int json_next(kairos_bytes object, size_t *at, kairos_bytes *key, kairos_bytes *value) {
    size_t from = json_space(object, *at), end;
    if (*at == 0 && (from >= object.len || object.data[from] != '{')) return 0;
    from = json_space(object, from + 1); /* past the brace or the comma */
    if (from >= object.len || object.data[from] != '"') return 0;
    end = json_end(object, from);
    key->data = object.data + from + 1;
    key->len = end - from - 2;
    from = json_space(object, json_space(object, end) + 1); /* past the colon */
    if (from >= object.len) return 0;
    value->data = object.data + from;
    end = json_end(object, from);
    value->len = end - from;
    *at = json_space(object, end);
    return 1;
}

static inline int json_is(kairos_bytes raw, const char *text) {
    return raw.len == strlen(text) && memcmp(raw.data, text, raw.len) == 0;
}

/* The raw value under `key`; of length 0 when there is none. */
static inline kairos_bytes json_get(kairos_bytes object, const char *key) {
    kairos_bytes name, value = {NULL, 0}, none = {NULL, 0};
    size_t at = 0;
    while (json_next(object, &at, &name, &value))
        if (json_is(name, key)) return value;
    return none;
}

#endif
