/* One HTTP/2 connection on libnghttp2: what comes becomes events that Python reads once for each feed. */
#include "internal.h"

long tm_alive;

/* The connection must end; the first reason counts. What callbacks return then. */
int tm_fail(tm_conn *c, uint32_t code, const char *why)
{
    if (!c->failed) {
        c->failed = code + 1;
        c->view.code = code;
        size_t size = strlen(why);
        memcpy(c->view.why, why, size < sizeof c->view.why ? size : sizeof c->view.why - 1);
    }
    return NGHTTP2_ERR_CALLBACK_FAILURE;
}

int tm_take(tm_conn *c, tm_bucket *b)
{
    if (c->now > b->at) {
        b->tokens += (c->now - b->at) * b->per_s;
        if (b->tokens > b->most)
            b->tokens = b->most;
    }
    b->at = c->now;
    if (b->tokens < 1)
        return 0;
    b->tokens -= 1;
    return 1;
}

void tm_give(tm_bucket *b, double tokens)
{
    b->tokens = b->tokens + tokens > b->most ? b->most : b->tokens + tokens;
}

static void forget_events(tm_conn *c)
{
    c->event_count = 0;
    tm_text_empty(&c->text);
    if (c->event_room * sizeof *c->events > KEPT_SIZE) {
        free(c->events);
        c->events = NULL;
        c->event_room = 0;
    }
    c->read = 0;
}

/* A new event, whose text begins where the text now ends; NULL if there is no room. */
tm_event *tm_push(tm_conn *c, int kind, int32_t stream)
{
    if (c->read)
        forget_events(c);
    if (c->text.size > EXPANSION + 16 * (size_t)c->limits.head_bytes) {
        tm_fail(c, NGHTTP2_ENHANCE_YOUR_CALM, "header lists that grow too much when decoded");
        return NULL;
    }
    if (c->event_count == c->event_room) {
        size_t room = c->event_room ? c->event_room * 2 : 8;
        tm_event *events = realloc(c->events, room * sizeof *events);
        if (!events)
            return NULL;
        c->events = events;
        c->event_room = room;
    }
    tm_event *e = &c->events[c->event_count++];
    memset(e, 0, sizeof *e);
    e->kind = (uint8_t)kind;
    e->stream = stream;
    e->offset = (uint32_t)c->text.size;
    return e;
}

static int on_sent(nghttp2_session *s, const nghttp2_frame *frame, void *user)
{
    tm_conn *c = user;
    tm_stream *st;
    int end = frame->hd.flags & NGHTTP2_FLAG_END_STREAM;
    switch (frame->hd.type) {
    case NGHTTP2_HEADERS:
    case NGHTTP2_DATA:
        if (!end && (c->server || frame->hd.type == NGHTTP2_DATA))
            return 0;
        st = nghttp2_session_get_stream_user_data(s, frame->hd.stream_id);
        if (st) {
            st->head_sent = 1;
            st->end_sent |= end != 0;
        }
        return 0;
    case NGHTTP2_GOAWAY:
        if (c->own_byes) {
            c->own_byes--;
        } else {
            /* nghttp2 found a connection error; it says which nowhere else. */
            char why[sizeof c->view.why] = "";
            size_t size = frame->goaway.opaque_data_len;
            memcpy(why, size ? (const char *)frame->goaway.opaque_data : "",
                   size < sizeof why ? size : sizeof why - 1);
            tm_fail(c, frame->goaway.error_code, why[0] ? why : nghttp2_http2_strerror(frame->goaway.error_code));
            c->told_bye = 1;
        }
        return 0;
    default:
        c->answers++;
        return 0;
    }
}

/* Take frames from nghttp2 into `out`: as many as fit; with `control` only as far as to have those frames that
 * wait, because closing streams and connection errors are known only when their frames are made. */
static int pump(tm_conn *c, int control)
{
    if (c->taken) {
        c->out.size = c->answers = 0;
        c->taken = 0;
    }
    for (int last = 0; !last && c->out.size < (control ? 2 * DRAIN_SIZE : DRAIN_SIZE);) {
        const uint8_t *p;
        last = control && !nghttp2_session_get_outbound_queue_size(c->session);
        ssize_t size = nghttp2_session_mem_send(c->session, &p);
        if (size < 0 || (size && tm_text_add(&c->out, p, (size_t)size) < 0))
            return tm_fail(c, NGHTTP2_INTERNAL_ERROR, "no memory");
        if (!size)
            break;
    }
    return 0;
}

static void recv_failed(tm_conn *c, ssize_t error)
{
    if (error == NGHTTP2_ERR_FLOODED || error == NGHTTP2_ERR_TOO_MANY_CONTINUATIONS)
        tm_fail(c, NGHTTP2_ENHANCE_YOUR_CALM, nghttp2_strerror((int)error));
    else if (error == NGHTTP2_ERR_BAD_CLIENT_MAGIC)
        tm_fail(c, NGHTTP2_PROTOCOL_ERROR, nghttp2_strerror((int)error));
    else
        tm_fail(c, NGHTTP2_INTERNAL_ERROR, nghttp2_strerror((int)error));
}

int64_t tm_feed(tm_conn *c, const char *data, size_t size, double now)
{
    if (!c || c->failed)
        return 0;
    if (c->read)
        forget_events(c);
    c->fed = data;
    c->now = now;
    size_t good = tm_walk(c, data, size);
    ssize_t rv = nghttp2_session_mem_recv(c->session, (const uint8_t *)data, good);
    if (rv < 0)
        recv_failed(c, rv);
    if (nghttp2_session_get_outbound_queue_size(c->session))
        pump(c, 1);
    if (c->answers > c->limits.queued_control)
        tm_fail(c, NGHTTP2_ENHANCE_YOUR_CALM, "too many answers wait for the peer to read");
    if (c->failed && !c->told_bye) {
        c->own_byes++;
        c->told_bye = 1;
        nghttp2_session_terminate_session(c->session, c->view.code);
    }
    c->read = 1;
    size_t text = c->text.size;
    if (tm_text_add(&c->text, c->events, c->event_count * sizeof *c->events) < 0) {
        tm_fail(c, NGHTTP2_INTERNAL_ERROR, "no memory");
        c->event_count = text = 0;
    }
    c->view.events = c->text.p;
    int64_t result = (int64_t)((uint64_t)c->event_count << 32 | text);
    return c->failed ? -1 - result : result;
}

int64_t tm_drain(tm_conn *c)
{
    if (!c)
        return 0;
    if (c->read)
        forget_events(c);
    int rv = pump(c, 0);
    c->taken = 1;
    c->view.out = c->out.p;
    size_t size = c->out.size;
    if (!size)
        tm_text_empty(&c->out);
    return rv < 0 ? -1 : (int64_t)size;
}

int tm_consumed(tm_conn *c, int32_t stream, size_t size)
{
    if (!c)
        return 0;
    int rv = stream ? nghttp2_session_consume_stream(c->session, stream, size)
                    : nghttp2_session_consume_connection(c->session, size);
    return rv == NGHTTP2_ERR_NOMEM ? -1 : 0;
}

int tm_reset(tm_conn *c, int32_t stream, uint32_t code)
{
    tm_stream *st = c ? tm_find(c, stream) : NULL;
    if (!st || st->over)
        return 0;
    st->over = 1;
    tm_unqueue(st);
    return nghttp2_submit_rst_stream(c->session, NGHTTP2_FLAG_NONE, stream, code) == NGHTTP2_ERR_NOMEM ? -1 : 0;
}

int tm_ping(tm_conn *c, const char *opaque)
{
    if (!c || c->failed)
        return 0;
    return nghttp2_submit_ping(c->session, NGHTTP2_FLAG_NONE, (const uint8_t *)opaque) == NGHTTP2_ERR_NOMEM ? -1 : 0;
}

/* The frame is made at once: a stream that came in between would be told of and then refused. */
int tm_goaway(tm_conn *c, uint32_t code, int notice)
{
    int rv;
    if (!c || c->failed || (notice && !c->server))
        return 0;
    if (notice)
        rv = nghttp2_submit_shutdown_notice(c->session);
    else
        rv = nghttp2_submit_goaway(c->session, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(c->session),
                                   code, NULL, 0);
    if (rv)
        return rv == NGHTTP2_ERR_NOMEM ? -1 : 0;
    c->own_byes++;
    return pump(c, 1) < 0 ? -1 : 0;
}

const tm_view *tm_look(tm_conn *c)
{
    return &c->view;
}

static int start(tm_conn *c)
{
    nghttp2_settings_entry entries[5];
    size_t count = 0;
    entries[count++] = (nghttp2_settings_entry){NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, c->limits.stream_window};
    entries[count++] = (nghttp2_settings_entry){NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, c->limits.head_bytes};
    if (c->server) {
        entries[count++] = (nghttp2_settings_entry){NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, c->limits.streams};
        entries[count++] = (nghttp2_settings_entry){NGHTTP2_SETTINGS_ENABLE_CONNECT_PROTOCOL, 1};
        entries[count++] = (nghttp2_settings_entry){NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES, 1};
    } else {
        entries[count++] = (nghttp2_settings_entry){NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, 0};
        entries[count++] = (nghttp2_settings_entry){NGHTTP2_SETTINGS_ENABLE_PUSH, 0};
    }
    if (nghttp2_submit_settings(c->session, NGHTTP2_FLAG_NONE, entries, count))
        return -1;
    return nghttp2_session_set_local_window_size(c->session, NGHTTP2_FLAG_NONE, 0, (int32_t)c->limits.connection_window);
}

static int make_session(tm_conn *c)
{
    nghttp2_session_callbacks *cb = NULL;
    nghttp2_option *option = NULL;
    int rv = -1;
    if (nghttp2_session_callbacks_new(&cb) || nghttp2_option_new(&option))
        goto out;
    nghttp2_session_callbacks_set_on_begin_frame_callback(cb, tm_on_begin_frame);
    nghttp2_session_callbacks_set_on_begin_headers_callback(cb, tm_on_begin_headers);
    nghttp2_session_callbacks_set_on_header_callback(cb, tm_on_header);
    nghttp2_session_callbacks_set_on_invalid_header_callback2(cb, tm_on_invalid_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(cb, tm_on_data);
    nghttp2_session_callbacks_set_on_frame_recv_callback(cb, tm_on_frame);
    nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(cb, tm_on_invalid_frame);
    nghttp2_session_callbacks_set_on_frame_send_callback(cb, on_sent);
    nghttp2_session_callbacks_set_on_stream_close_callback(cb, tm_on_close);
    nghttp2_session_callbacks_set_send_data_callback(cb, tm_send_data);
    nghttp2_option_set_no_auto_window_update(option, 1);
    nghttp2_option_set_no_closed_streams(option, 1);
    nghttp2_option_set_max_outbound_ack(option, c->limits.queued_control);
    /* It counts one for each piece of a frame's head that comes alone; on_begin_frame counts frames. */
    nghttp2_option_set_max_continuations(option, 9 * ((size_t)c->limits.continuations + 1));
    /* Blocks to send are what was received and edited: bounded already. */
    nghttp2_option_set_max_send_header_block_length(option, 1 << 30);
    /* `resets` does it, by the time that it is told. */
    nghttp2_option_set_stream_reset_rate_limit(option, 1 << 30, 1 << 30);
    rv = (c->server ? nghttp2_session_server_new2 : nghttp2_session_client_new2)(&c->session, cb, c, option);
out:
    nghttp2_session_callbacks_del(cb);
    nghttp2_option_del(option);
    return rv;
}

tm_conn *tm_new(int server, const tm_limits *limits)
{
    tm_conn *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    tm_alive++;
    c->server = server;
    c->limits = *limits;
    c->resets = (tm_bucket){limits->resets_burst, limits->resets_burst, limits->resets_per_s, 0};
    c->control = (tm_bucket){limits->control_burst, limits->control_burst, limits->control_per_s, 0};
    c->view.max_streams = 100;
    c->frame_skip = server ? NGHTTP2_CLIENT_MAGIC_LEN : 0;
    c->mask = 7;
    c->slots = calloc((size_t)c->mask + 1, sizeof *c->slots);
    if (!c->slots || make_session(c) || start(c)) {
        tm_free(c);
        return NULL;
    }
    return c;
}

void tm_free(tm_conn *c)
{
    if (!c)
        return;
    nghttp2_session_del(c->session);
    for (uint32_t i = 0; c->slots && i <= c->mask; i++)
        while (c->slots[i])
            tm_drop(c, c->slots[i]);
    free(c->slots);
    free(c->events);
    tm_text_free(&c->text);
    tm_text_free(&c->out);
    tm_text_free(&c->head.parts);
    tm_text_free(&c->head.lines);
    tm_text_free(&c->head.cookie);
    free(c);
    tm_alive--;
}

long tm_live(void)
{
    return tm_alive;
}

const char *tm_version(void)
{
    return nghttp2_version(0)->version_str;
}
