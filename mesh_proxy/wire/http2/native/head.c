/* Header blocks that come: checked beyond what nghttp2 checks, and turned into HTTP/1.1 header lines. */
#include "internal.h"

/* 1 token in lower case (field names), 2 upper case (methods), 4 in a :path, 8 in a host, 16 in [an address] */
static unsigned char kinds[256];

__attribute__((constructor)) static void make_kinds(void)
{
    static const char token[] = "!#$%&'*+-.^_`|~0123456789", host[] = "._~%!$&'()*+;=-";
    for (const char *p = token; *p; p++)
        kinds[(unsigned char)*p] |= 1;
    for (const char *p = host; *p; p++)
        kinds[(unsigned char)*p] |= 8;
    for (int ch = 0x21; ch < 0x7f; ch++) {
        int upper = ch >= 'A' && ch <= 'Z', lower = ch >= 'a' && ch <= 'z', digit = ch >= '0' && ch <= '9';
        kinds[ch] |= (unsigned char)((lower ? 1 : 0) | (upper ? 2 : 0) | (ch == '#' ? 0 : 4));
        kinds[ch] |= (unsigned char)(upper || lower || digit ? 8 : 0);
        int hex = digit || (ch >= 'a' && ch <= 'f') || (ch >= 'A' && ch <= 'F');
        kinds[ch] |= (unsigned char)(hex || ch == 'v' || ch == ':' || ch == '.' ? 16 : 0);
    }
}

static size_t span(const char *p, size_t size, int kind)
{
    size_t i = 0;
    while (i < size && kinds[(unsigned char)p[i]] & kind)
        i++;
    return i;
}

static int all(const char *p, size_t size, int kind)
{
    return size && span(p, size, kind) == size;
}

/* No control but a tab, no white space at either end (RFC 9113 8.2.1). */
static int good_value(const char *p, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        unsigned char ch = (unsigned char)p[i];
        if ((ch < 0x20 && ch != '\t') || ch == 0x7f)
            return 0;
    }
    return !size || !(p[0] == ' ' || p[0] == '\t' || p[size - 1] == ' ' || p[size - 1] == '\t');
}

/* host [":" port], without user information (RFC 9113 8.3.1); what `http1.py` takes as a Host. */
static int good_authority(const char *p, size_t size)
{
    size_t host;
    if (size && p[0] == '[') {
        host = span(p + 1, size - 1, 16) + 1;
        if (host < 2 || host >= size || p[host++] != ']')
            return 0;
    } else {
        host = span(p, size, 8);
    }
    if (!host || host == size)
        return host != 0;
    size_t port = size - host - 1;
    if (p[host] != ':' || port > 5)
        return 0;
    for (const char *at = p + host + 1; at < p + size; at++)
        if (*at < '0' || *at > '9')
            return 0;
    return 1;
}

static int good_scheme(const char *p, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        int letter = (p[i] | 32) >= 'a' && (p[i] | 32) <= 'z';
        int other = (p[i] >= '0' && p[i] <= '9') || p[i] == '+' || p[i] == '-' || p[i] == '.';
        if (!letter && !(i && other))
            return 0;
    }
    return size != 0;
}

static int same_text(const char *a, const char *b, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        char x = a[i] >= 'A' && a[i] <= 'Z' ? (char)(a[i] | 32) : a[i];
        char y = b[i] >= 'A' && b[i] <= 'Z' ? (char)(b[i] | 32) : b[i];
        if (x != y)
            return 0;
    }
    return 1;
}

static void forget(tm_head *h)
{
    tm_text_empty(&h->parts);
    tm_text_empty(&h->lines);
    tm_text_empty(&h->cookie);
    memset(h->part, 0, sizeof h->part);
    h->bytes = h->count = h->bad = 0;
    h->status = h->trailers = 0;
}

int tm_on_begin_headers(nghttp2_session *s, const nghttp2_frame *frame, void *user)
{
    static const nghttp2_extpri fair = {NGHTTP2_EXTPRI_DEFAULT_URGENCY, 1};
    tm_conn *c = user;
    int32_t id = frame->hd.stream_id;
    forget(&c->head);
    c->view.within_head = 1;
    tm_stream *st = nghttp2_session_get_stream_user_data(s, id);
    if (st) {
        c->head.trailers = c->server || st->head_got;
        return 0;
    }
    if (!c->server || frame->headers.cat != NGHTTP2_HCAT_REQUEST)
        return 0;
    st = tm_open(c, id);
    if (!st)
        return tm_fail(c, NGHTTP2_INTERNAL_ERROR, "no memory");
    nghttp2_session_set_stream_user_data(s, id, st);
    nghttp2_session_change_extpri_stream_priority(s, id, &fair, 1);
    return 0;
}

static int add_part(tm_conn *c, int part, const char *value, size_t size)
{
    tm_head *h = &c->head;
    if (h->part[part].set) {
        h->bad = NGHTTP2_PROTOCOL_ERROR;
        return 0;
    }
    h->part[part].set = 1;
    h->part[part].offset = (uint32_t)h->parts.size;
    h->part[part].size = (uint32_t)size;
    return tm_text_add(&h->parts, value, size);
}

#define IS(text) (size == sizeof text - 1 && !memcmp(name, text, sizeof text - 1))

static int pseudo(tm_conn *c, const char *name, size_t size, const char *value, size_t value_size)
{
    int good = 0, part = PARTS;
    if (c->head.trailers || c->head.lines.size || c->head.cookie.size || c->head.part[HOST].set) {
        good = 0; /* RFC 9113 8.1, 8.3: none in trailers, none behind a field */
    } else if (!c->server) {
        good = IS(":status") && value_size == 3 && value[0] >= '1' && value[0] <= '9' && value[1] >= '0' &&
               value[1] <= '9' && value[2] >= '0' && value[2] <= '9' && !c->head.status;
        if (good)
            c->head.status = (value[0] - '0') * 100 + (value[1] - '0') * 10 + value[2] - '0';
    } else if (IS(":method")) {
        good = all(value, value_size, 1 | 2), part = METHOD;
    } else if (IS(":scheme")) {
        good = good_scheme(value, value_size), part = SCHEME;
    } else if (IS(":path")) {
        good = all(value, value_size, 4), part = PATH;
    } else if (IS(":protocol")) {
        good = all(value, value_size, 1 | 2), part = PROTOCOL;
    } else if (IS(":authority")) {
        good = good_authority(value, value_size), part = AUTHORITY;
    }
    if (!good)
        c->head.bad = NGHTTP2_PROTOCOL_ERROR;
    return good && part < PARTS ? add_part(c, part, value, value_size) : 0;
}

static int field(tm_conn *c, const char *name, size_t size, const char *value, size_t value_size)
{
    tm_head *h = &c->head;
    if (!all(name, size, 1) || !good_value(value, value_size)) {
        h->bad = NGHTTP2_PROTOCOL_ERROR;
        return 0;
    }
    if (h->trailers && (IS("content-length") || IS("host") || IS("te"))) {
        h->bad = NGHTTP2_PROTOCOL_ERROR; /* RFC 9110 6.5.1: nothing here may say where a message ends or goes */
        return 0;
    }
    if (IS("http2-settings"))
        return 0;
    if (IS("content-length") && value_size > 18) {
        h->bad = NGHTTP2_PROTOCOL_ERROR; /* zeros before a number: HTTP/1.1 ends take no more digits */
        return 0;
    }
    if (c->server && !h->trailers) {
        if (IS("host")) {
            if (!good_authority(value, value_size))
                h->bad = NGHTTP2_PROTOCOL_ERROR;
            return h->bad ? 0 : add_part(c, HOST, value, value_size);
        }
        if (IS("cookie")) { /* RFC 9113 8.2.3: its crumbs are one field again */
            if (tm_text_add(&h->cookie, h->cookie.size ? "; " : "cookie: ", h->cookie.size ? 2 : 8) < 0)
                return -1;
            return tm_text_add(&h->cookie, value, value_size);
        }
    }
    tm_text *t = &h->lines;
    if (tm_text_add(t, name, size) < 0 || tm_text_add(t, ": ", 2) < 0)
        return -1;
    return tm_text_add(t, value, value_size) < 0 ? -1 : tm_text_add(t, "\r\n", 2);
}

int tm_on_header(nghttp2_session *s, const nghttp2_frame *frame, const uint8_t *name, size_t name_size,
                 const uint8_t *value, size_t value_size, uint8_t flags, void *user)
{
    tm_conn *c = user;
    tm_head *h = &c->head;
    (void)s, (void)frame, (void)flags;
    h->bytes += name_size + value_size + 32;
    h->count++;
    if (h->bytes > c->limits.head_bytes || h->count > c->limits.header_count) {
        /* The rest must be decoded too, or HPACK's state is lost: but not without end. */
        h->bad = NGHTTP2_ENHANCE_YOUR_CALM;
        if (h->bytes / 4 > c->limits.head_bytes || h->count / 4 > c->limits.header_count)
            return tm_fail(c, NGHTTP2_ENHANCE_YOUR_CALM, "a header list far above the limit");
    }
    if (h->bad)
        return 0;
    int (*take)(tm_conn *, const char *, size_t, const char *, size_t) = name[0] == ':' ? pseudo : field;
    if (take(c, (const char *)name, name_size, (const char *)value, value_size) < 0)
        return tm_fail(c, NGHTTP2_INTERNAL_ERROR, "no memory");
    return 0;
}

/* What is missing or contradicts itself in a request's head as a whole (RFC 9113 8.3.1, 8.5; RFC 8441 4). */
static int good_request(tm_head *h)
{
    const char *text = h->parts.p;
    if (!h->part[METHOD].set)
        return 0;
    const char *method = text + h->part[METHOD].offset, *path = text + h->part[PATH].offset;
    size_t size = h->part[METHOD].size;
    int connect = size == 7 && !memcmp(method, "CONNECT", 7);
    if (h->part[AUTHORITY].set && h->part[HOST].set) {
        if (h->part[AUTHORITY].size != h->part[HOST].size ||
            !same_text(text + h->part[AUTHORITY].offset, text + h->part[HOST].offset, h->part[HOST].size))
            return 0;
    }
    if (connect && !h->part[PROTOCOL].set)
        return h->part[AUTHORITY].set && !h->part[SCHEME].set && !h->part[PATH].set;
    if (!h->part[SCHEME].set || !h->part[PATH].set || !(h->part[AUTHORITY].set || h->part[HOST].set))
        return 0;
    if (h->part[PROTOCOL].set && (!connect || !h->part[AUTHORITY].set))
        return 0;
    int options = size == 7 && !memcmp(method, "OPTIONS", 7);
    return path[0] == '/' || (options && h->part[PATH].size == 1 && path[0] == '*');
}

static int add_known(tm_conn *c, int part)
{
    tm_head *h = &c->head;
    return h->part[part].set ? tm_text_add(&c->text, h->parts.p + h->part[part].offset, h->part[part].size) : 0;
}

static int push_request(tm_conn *c, tm_stream *st, int end)
{
    tm_head *h = &c->head;
    tm_event *e = tm_push(c, REQUEST, st->id);
    if (!e)
        return -1;
    int path = h->part[PATH].set ? PATH : AUTHORITY, host = h->part[AUTHORITY].set ? AUTHORITY : HOST;
    e->end = (uint8_t)end;
    e->a = h->part[METHOD].size;
    e->b = h->part[SCHEME].size;
    e->c = h->part[path].size;
    e->d = h->part[PROTOCOL].size;
    tm_text *t = &c->text;
    if (add_known(c, METHOD) < 0 || add_known(c, SCHEME) < 0 || add_known(c, path) < 0 ||
        add_known(c, PROTOCOL) < 0 || tm_text_add(t, "host: ", 6) < 0 || add_known(c, host) < 0 ||
        tm_text_add(t, "\r\n", 2) < 0 || tm_text_add(t, h->lines.p, h->lines.size) < 0)
        return -1;
    if (h->cookie.size && (tm_text_add(t, h->cookie.p, h->cookie.size) < 0 || tm_text_add(t, "\r\n", 2) < 0))
        return -1;
    e->size = (uint32_t)(t->size - e->offset);
    st->told = 1;
    return 0;
}

static int push_block(tm_conn *c, tm_stream *st, int end)
{
    tm_head *h = &c->head;
    /* An empty trailer section is only an end. */
    int kind = !h->trailers ? RESPONSE : h->lines.size ? TRAILERS : DATA;
    tm_event *e = tm_push(c, kind, st->id);
    if (!e)
        return -1;
    e->end = (uint8_t)end;
    e->status = (uint16_t)h->status;
    e->size = (uint32_t)h->lines.size;
    if (kind == DATA)
        e->offset = 0;
    if (kind == RESPONSE && h->status >= 200)
        st->head_got = 1;
    return tm_text_add(&c->text, h->lines.p, h->lines.size);
}

/* A header block is complete: tell Python, or reset its stream. */
int tm_head_end(tm_conn *c, tm_stream *st, int end)
{
    tm_head *h = &c->head;
    uint32_t bad = h->bad;
    int rv = 0;
    c->view.within_head = 0;
    if (!bad && (h->trailers ? !end : c->server ? !good_request(h) : !h->status || (h->status < 200 && end)))
        bad = NGHTTP2_PROTOCOL_ERROR;
    if (bad)
        rv = nghttp2_submit_rst_stream(c->session, NGHTTP2_FLAG_NONE, st->id, bad);
    else
        rv = c->server && !h->trailers ? push_request(c, st, end) : push_block(c, st, end);
    forget(h);
    return rv < 0 ? tm_fail(c, NGHTTP2_INTERNAL_ERROR, "no memory") : 0;
}
