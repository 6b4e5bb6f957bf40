/* Messages to send: HTTP/1.1 header lines as the fields that nghttp2 compresses. */
#include "internal.h"

#define FEW 96

typedef struct {
    nghttp2_nv few[FEW], *all;
    size_t count;
    const char *host;
    size_t host_size;
} fields;

static int is_name(const char *name, size_t size, const char *lower)
{
    for (size_t i = 0; i < size; i++)
        if ((name[i] >= 'A' && name[i] <= 'Z' ? name[i] | 32 : name[i]) != lower[i])
            return 0;
    return 1;
}

/* Fields of one connection, which HTTP/2 does not have (RFC 9113 8.2.2). */
static int is_hop(const char *name, size_t size, const char *value, size_t value_size)
{
    switch (size) {
    case 2:
        return is_name(name, 2, "te") && !(value_size == 8 && is_name(value, 8, "trailers"));
    case 7:
        return is_name(name, 7, "upgrade");
    case 10:
        return is_name(name, 10, "connection") || is_name(name, 10, "keep-alive");
    case 14:
        return is_name(name, 14, "http2-settings");
    case 16:
        return is_name(name, 16, "proxy-connection");
    case 17:
        return is_name(name, 17, "transfer-encoding");
    default:
        return 0;
    }
}

static void add(fields *f, const char *name, size_t size, const char *value, size_t value_size)
{
    nghttp2_nv *nv = &f->all[f->count++];
    nv->name = (uint8_t *)name;
    nv->namelen = size;
    nv->value = (uint8_t *)value;
    nv->valuelen = value_size;
    nv->flags = NGHTTP2_NV_FLAG_NONE; /* nghttp2 makes its own copy, with the name in lower case */
}

/* Fill in the fields of `block` behind `first` places for pseudo-header fields. */
static int parse(fields *f, const char *block, size_t size, size_t first)
{
    size_t most = first + size / 4 + 1; /* no line is shorter than "a:\r\n" */
    f->all = f->few;
    f->count = first;
    f->host = NULL;
    f->host_size = 0;
    if (most > FEW) {
        f->all = malloc(most * sizeof *f->all);
        if (!f->all)
            return -1;
    }
    for (const char *p = block, *stop = block + size, *next; p < stop; p = next) {
        const char *line_end = memchr(p, '\n', (size_t)(stop - p));
        next = line_end ? line_end + 1 : stop;
        if (!line_end)
            line_end = stop;
        if (line_end > p && line_end[-1] == '\r')
            line_end--;
        const char *colon = memchr(p, ':', (size_t)(line_end - p));
        if (!colon || colon == p)
            continue;
        const char *value = colon + 1;
        while (value < line_end && (*value == ' ' || *value == '\t'))
            value++;
        while (line_end > value && (line_end[-1] == ' ' || line_end[-1] == '\t'))
            line_end--;
        size_t name_size = (size_t)(colon - p), value_size = (size_t)(line_end - value);
        if (name_size == 4 && is_name(p, 4, "host")) {
            f->host = value;
            f->host_size = value_size;
        } else if (!is_hop(p, name_size, value, value_size)) {
            add(f, p, name_size, value, value_size);
        }
    }
    return 0;
}

static void done(fields *f)
{
    if (f->all != f->few)
        free(f->all);
}

static int32_t submit_request(tm_conn *c, nghttp2_nv *start, size_t count, int end)
{
    int32_t next = (int32_t)nghttp2_session_get_next_stream_id(c->session);
    tm_stream *st = tm_open(c, next);
    if (!st)
        return -1;
    nghttp2_data_provider body = {{.ptr = st}, tm_read_data};
    int32_t id = nghttp2_submit_request(c->session, NULL, start, count, end ? NULL : &body, st);
    if (id != next) {
        tm_drop(c, st);
        return id == NGHTTP2_ERR_NOMEM ? -1 : 0;
    }
    st->told = 1;
    st->end = end != 0;
    return id;
}

int32_t tm_request(tm_conn *c, const char *method, size_t method_size, const char *scheme, size_t scheme_size,
                   const char *target, size_t target_size, const char *protocol, size_t protocol_size,
                   const char *block, size_t block_size, int end)
{
    fields f;
    if (!c || c->server || c->failed || c->streams >= c->view.max_streams ||
        !nghttp2_session_check_request_allowed(c->session))
        return 0;
    if (parse(&f, block, block_size, 5) < 0)
        return -1;
    size_t count = f.count, first = 5;
    int tunnel = !protocol_size && method_size == 7 && !memcmp(method, "CONNECT", 7);
    /* From the last place down to the first that is used. */
#define BEFORE(name, value, size) (f.count = --first, add(&f, name, sizeof name - 1, value, size))
    if (protocol_size)
        BEFORE(":protocol", protocol, protocol_size);
    if (tunnel)
        BEFORE(":authority", target, target_size);
    else if (f.host_size)
        BEFORE(":authority", f.host, f.host_size);
    if (!tunnel) {
        BEFORE(":path", target, target_size);
        BEFORE(":scheme", scheme, scheme_size);
    }
    BEFORE(":method", method, method_size);
    int32_t id = submit_request(c, f.all + first, count - first, end);
    done(&f);
    return id;
}

int tm_respond(tm_conn *c, int32_t stream, int status, const char *block, size_t size, int end)
{
    tm_stream *st = c ? tm_find(c, stream) : NULL;
    fields f;
    char digits[3] = {(char)('0' + status / 100 % 10), (char)('0' + status / 10 % 10), (char)('0' + status % 10)};
    if (!st || st->over || st->head_sent || !c->server)
        return 0;
    if (parse(&f, block, size, 1) < 0)
        return -1;
    size_t count = f.count;
    f.count = 0;
    add(&f, ":status", 7, digits, 3);
    nghttp2_data_provider body = {{.ptr = st}, tm_read_data};
    int rv;
    if (status < 200) {
        rv = nghttp2_submit_headers(c->session, NGHTTP2_FLAG_NONE, stream, NULL, f.all, count, NULL);
    } else {
        st->head_sent = 1;
        st->end = end != 0;
        rv = nghttp2_submit_response(c->session, stream, f.all, count, end ? NULL : &body);
    }
    done(&f);
    return rv == NGHTTP2_ERR_NOMEM ? -1 : 0;
}

/* 1 if there are any; 0 if nothing of the block is left, and an ordinary end must do. */
int tm_submit_trailers(tm_conn *c, int32_t stream, const char *block, size_t size)
{
    fields f;
    if (parse(&f, block, size, 0) < 0)
        return -1;
    int rv = f.count ? nghttp2_submit_trailer(c->session, stream, f.all, f.count) : 0;
    int any = f.count != 0;
    done(&f);
    return rv < 0 ? -1 : any;
}
