/* What nghttp2 tells of frames that come: counted against the limits, and turned into events. */
#include "internal.h"

int tm_on_begin_frame(nghttp2_session *s, const nghttp2_frame_hd *hd, void *user)
{
    tm_conn *c = user;
    (void)s;
    c->in_goaway = 0;
    switch (hd->type) {
    case NGHTTP2_HEADERS:
        c->continuations = 0;
        tm_give(&c->control, 2);
        return 0;
    case NGHTTP2_CONTINUATION:
        c->view.within_head = !(hd->flags & NGHTTP2_FLAG_END_HEADERS);
        if (++c->continuations > c->limits.continuations)
            return tm_fail(c, NGHTTP2_ENHANCE_YOUR_CALM, "too many CONTINUATION frames");
        return 0;
    case NGHTTP2_RST_STREAM:
        /* Each of a server's resets costs it a request of ours. */
        if (c->server && !tm_take(c, &c->resets))
            return tm_fail(c, NGHTTP2_ENHANCE_YOUR_CALM, "too many streams are reset");
        return 0;
    case NGHTTP2_DATA:
        c->data_counted = 0;
        if (hd->flags & NGHTTP2_FLAG_END_STREAM || !hd->length) /* empty ones are counted in frames.c */
            return 0;
        break;
    default:
        break;
    }
    if (!tm_take(c, &c->control))
        return tm_fail(c, NGHTTP2_ENHANCE_YOUR_CALM, "too many control frames");
    return 0;
}

int tm_on_data(nghttp2_session *s, uint8_t flags, int32_t id, const uint8_t *data, size_t size, void *user)
{
    tm_conn *c = user;
    tm_stream *st = nghttp2_session_get_stream_user_data(s, id);
    (void)flags;
    if (!c->data_counted) {
        tm_give(&c->control, 2);
        c->data_counted = 1;
    }
    if (!st || st->over) /* nobody hears of it, so nobody gives it back */
        return nghttp2_session_consume_connection(s, size) == NGHTTP2_ERR_NOMEM
                   ? tm_fail(c, NGHTTP2_INTERNAL_ERROR, "no memory")
                   : 0;
    tm_event *e = tm_push(c, DATA, id);
    if (!e)
        return tm_fail(c, NGHTTP2_INTERNAL_ERROR, "no memory");
    e->offset = (uint32_t)((const char *)data - c->fed);
    e->size = (uint32_t)size;
    return 0;
}

static int push_end(tm_conn *c, int32_t id)
{
    tm_event *e = c->event_count && !c->read ? &c->events[c->event_count - 1] : NULL;
    if (!e || e->kind != DATA || e->stream != id) {
        e = tm_push(c, DATA, id);
        if (!e)
            return tm_fail(c, NGHTTP2_INTERNAL_ERROR, "no memory");
        e->offset = 0;
    }
    e->end = 1;
    return 0;
}

/* Streams whose HEADERS wait here will not be taken any more; nghttp2 closes those that went out. */
static int refuse_unsent(tm_conn *c)
{
    for (uint32_t i = 0; i <= c->mask; i++) {
        for (tm_stream *st = c->slots[i]; st; st = st->next) {
            if (st->head_sent || st->over)
                continue;
            tm_event *e = tm_push(c, RESET, st->id);
            if (!e || nghttp2_submit_rst_stream(c->session, 0, st->id, NGHTTP2_REFUSED_STREAM))
                return tm_fail(c, NGHTTP2_INTERNAL_ERROR, "no memory");
            e->a = NGHTTP2_REFUSED_STREAM;
            e->b = 1;
            st->over = 1;
            tm_unqueue(st);
        }
    }
    return 0;
}

static int push_goaway(tm_conn *c, const nghttp2_goaway *frame)
{
    tm_event *e = tm_push(c, GOAWAY, 0);
    size_t size = frame->opaque_data_len < 256 ? frame->opaque_data_len : 256;
    if (!e || tm_text_add(&c->text, frame->opaque_data, size) < 0)
        return tm_fail(c, NGHTTP2_INTERNAL_ERROR, "no memory");
    e->size = (uint32_t)size;
    e->a = (uint32_t)frame->last_stream_id;
    e->b = frame->error_code;
    c->in_goaway = 1;
    return c->server ? 0 : refuse_unsent(c);
}

static int push_settings(tm_conn *c)
{
    uint32_t most = nghttp2_session_get_remote_settings(c->session, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS);
    c->view.max_streams = most > INT32_MAX ? INT32_MAX : most;
    c->view.connect_protocol =
        nghttp2_session_get_remote_settings(c->session, NGHTTP2_SETTINGS_ENABLE_CONNECT_PROTOCOL) == 1;
    return tm_push(c, SETTINGS, 0) ? 0 : tm_fail(c, NGHTTP2_INTERNAL_ERROR, "no memory");
}

int tm_on_frame(nghttp2_session *s, const nghttp2_frame *frame, void *user)
{
    tm_conn *c = user;
    int ack = frame->hd.flags & NGHTTP2_FLAG_ACK, end = frame->hd.flags & NGHTTP2_FLAG_END_STREAM;
    tm_stream *st;
    tm_event *e;
    switch (frame->hd.type) {
    case NGHTTP2_HEADERS:
        st = nghttp2_session_get_stream_user_data(s, frame->hd.stream_id);
        c->view.within_head = 0;
        return st && !st->over ? tm_head_end(c, st, end) : 0;
    case NGHTTP2_DATA:
        st = nghttp2_session_get_stream_user_data(s, frame->hd.stream_id);
        return end && st && !st->over ? push_end(c, frame->hd.stream_id) : 0;
    case NGHTTP2_RST_STREAM:
        st = nghttp2_session_get_stream_user_data(s, frame->hd.stream_id);
        if (st)
            st->by_peer = 1;
        return 0;
    case NGHTTP2_SETTINGS:
        return ack ? 0 : push_settings(c);
    case NGHTTP2_PING:
        if (!ack)
            return 0;
        e = tm_push(c, PING_ACK, 0);
        if (!e || tm_text_add(&c->text, frame->ping.opaque_data, 8) < 0)
            return tm_fail(c, NGHTTP2_INTERNAL_ERROR, "no memory");
        e->size = 8;
        return 0;
    case NGHTTP2_GOAWAY:
        return push_goaway(c, &frame->goaway);
    default:
        return 0;
    }
}

/* A field that nghttp2 would only leave out makes the message malformed (RFC 9113 8.1.1). */
int tm_on_invalid_header(nghttp2_session *s, const nghttp2_frame *frame, nghttp2_rcbuf *name,
                             nghttp2_rcbuf *value, uint8_t flags, void *user)
{
    (void)s, (void)frame, (void)name, (void)value, (void)flags, (void)user;
    return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
}

int tm_on_invalid_frame(nghttp2_session *s, const nghttp2_frame *frame, int error, void *user)
{
    tm_conn *c = user;
    (void)s, (void)frame, (void)error;
    c->view.within_head = 0;
    return 0;
}

int tm_on_close(nghttp2_session *s, int32_t id, uint32_t code, void *user)
{
    tm_conn *c = user;
    tm_stream *st = nghttp2_session_get_stream_user_data(s, id);
    if (!st)
        return 0;
    int by_peer = st->by_peer || c->in_goaway, made_by_us = st->over;
    if (st->told && !st->over && (by_peer || code != NGHTTP2_NO_ERROR)) {
        tm_event *e = tm_push(c, RESET, id);
        if (!e)
            return tm_fail(c, NGHTTP2_INTERNAL_ERROR, "no memory");
        e->a = code;
        e->b = (uint32_t)by_peer;
    }
    nghttp2_session_set_stream_user_data(s, id, NULL);
    tm_drop(c, st);
    if (c->server && !by_peer && !made_by_us && code != NGHTTP2_NO_ERROR && !tm_take(c, &c->resets))
        tm_fail(c, NGHTTP2_ENHANCE_YOUR_CALM, "too many streams have to be reset");
    return 0;
}
