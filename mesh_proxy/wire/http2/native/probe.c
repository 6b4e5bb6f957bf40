/* Does this libnghttp2 defend itself? Distributions mend old versions, so only its behaviour tells. */
#include "internal.h"

static const uint8_t preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"; /* with empty SETTINGS */
static const uint8_t fields[] = {0x82, 0x86, 0x84, 0x41, 1, 'a'}; /* GET http / a */

static void add_frame(tm_text *t, int type, int flags, uint32_t stream, const void *payload, size_t size)
{
    uint8_t head[9] = {0, 0, (uint8_t)size, (uint8_t)type, (uint8_t)flags, (uint8_t)(stream >> 24),
                       (uint8_t)(stream >> 16), (uint8_t)(stream >> 8), (uint8_t)stream};
    tm_text_add(t, head, sizeof head);
    tm_text_add(t, payload, size);
}

/* CVE-2024-28182 */
static void continuations(tm_text *t)
{
    add_frame(t, NGHTTP2_HEADERS, 0, 1, fields, sizeof fields);
    for (int i = 0; i < 500; i++)
        add_frame(t, NGHTTP2_CONTINUATION, 0, 1, fields, 0);
}

/* CVE-2023-44487 */
static void resets(tm_text *t)
{
    for (uint32_t stream = 1; stream < 1000; stream += 2) {
        add_frame(t, NGHTTP2_HEADERS, NGHTTP2_FLAG_END_HEADERS | NGHTTP2_FLAG_END_STREAM, stream, fields,
                  sizeof fields);
        add_frame(t, NGHTTP2_RST_STREAM, 0, stream, "\0\0\0\10", 4);
    }
}

static int ends_connection(void (*attack)(tm_text *))
{
    nghttp2_session_callbacks *cb = NULL;
    nghttp2_option *option = NULL;
    nghttp2_session *s = NULL;
    tm_text t = {0};
    int ended = 0;
    tm_text_add(&t, preface, sizeof preface - 1);
    attack(&t);
    if (!nghttp2_session_callbacks_new(&cb) && !nghttp2_option_new(&option)) {
        nghttp2_option_set_stream_reset_rate_limit(option, 10, 1);
        if (!nghttp2_session_server_new2(&s, cb, NULL, option)) {
            const uint8_t *p;
            ended = nghttp2_session_mem_recv(s, (const uint8_t *)t.p, t.size) < 0;
            for (ssize_t size; !ended && (size = nghttp2_session_mem_send(s, &p)) > 0;)
                ended = size > 3 && p[3] == NGHTTP2_GOAWAY;
        }
    }
    nghttp2_session_del(s);
    nghttp2_session_callbacks_del(cb);
    nghttp2_option_del(option);
    tm_text_free(&t);
    return ended;
}

const char *tm_unsafe(void)
{
    if (!ends_connection(continuations))
        return "it takes CONTINUATION frames without end (CVE-2024-28182)";
    if (!ends_connection(resets))
        return "it takes streams that are reset at once without end (CVE-2023-44487)";
    return NULL;
}
