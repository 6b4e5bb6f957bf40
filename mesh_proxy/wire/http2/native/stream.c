/* Streams of a connection, what is queued on them, and buffers that grow. */
#include "internal.h"

int tm_text_add(tm_text *t, const void *bytes, size_t size)
{
    if (size > t->room - t->size) {
        size_t room = t->room ? t->room : 512;
        while (room - t->size < size)
            room *= 2;
        char *p = realloc(t->p, room);
        if (!p)
            return -1;
        t->p = p;
        t->room = room;
    }
    if (size)
        memcpy(t->p + t->size, bytes, size);
    t->size += size;
    return 0;
}

void tm_text_free(tm_text *t)
{
    free(t->p);
    memset(t, 0, sizeof *t);
}

void tm_text_empty(tm_text *t)
{
    t->size = 0;
    if (t->room > KEPT_SIZE)
        tm_text_free(t);
}

/* Ids of one end are all odd, so the last bit says nothing. */
static tm_stream **slot(tm_conn *c, int32_t id)
{
    return &c->slots[((uint32_t)id >> 1) & c->mask];
}

tm_stream *tm_find(tm_conn *c, int32_t id)
{
    tm_stream *st = *slot(c, id);
    while (st && st->id != id)
        st = st->next;
    return st;
}

static int grow(tm_conn *c)
{
    uint32_t mask = c->mask * 2 + 1, former = c->mask;
    tm_stream **old = c->slots, **slots = calloc((size_t)mask + 1, sizeof *slots);
    if (!slots)
        return -1;
    c->slots = slots;
    c->mask = mask;
    for (uint32_t i = 0; i <= former; i++) {
        for (tm_stream *st = old[i], *next; st; st = next) {
            next = st->next;
            tm_stream **at = slot(c, st->id);
            st->next = *at;
            *at = st;
        }
    }
    free(old);
    return 0;
}

/* NULL if memory is short. */
tm_stream *tm_open(tm_conn *c, int32_t id)
{
    if (c->streams > c->mask && grow(c) < 0)
        return NULL;
    tm_stream *st = calloc(1, sizeof *st);
    if (!st)
        return NULL;
    tm_alive++;
    c->streams++;
    st->id = id;
    tm_stream **at = slot(c, id);
    st->next = *at;
    *at = st;
    return st;
}

static void free_piece(tm_piece *piece)
{
    free(piece);
    tm_alive--;
}

/* Drop what is queued. */
void tm_unqueue(tm_stream *st)
{
    for (tm_piece *piece = st->first, *next; piece; piece = next) {
        next = piece->next;
        free_piece(piece);
    }
    if (st->trailers)
        free_piece(st->trailers);
    st->first = st->last = st->trailers = NULL;
    st->queued = 0;
}

void tm_drop(tm_conn *c, tm_stream *st)
{
    tm_stream **at = slot(c, st->id);
    while (*at != st)
        at = &(*at)->next;
    *at = st->next;
    tm_unqueue(st);
    free(st);
    tm_alive--;
    c->streams--;
}

static tm_piece *new_piece(const char *bytes, size_t size)
{
    size_t room = size < PIECE_SIZE ? PIECE_SIZE : size;
    tm_piece *piece = malloc(sizeof *piece + room);
    if (!piece)
        return NULL;
    tm_alive++;
    piece->next = NULL;
    piece->room = room;
    piece->size = size;
    piece->sent = 0;
    if (size)
        memcpy(piece->bytes, bytes, size);
    return piece;
}

/* The stream if something may still be queued on it. */
static tm_stream *writable(tm_conn *c, int32_t id)
{
    tm_stream *st = c ? tm_find(c, id) : NULL;
    return st && !st->over && !st->end && (st->head_sent || !c->server) ? st : NULL;
}

static int resume(tm_conn *c, tm_stream *st)
{
    if (!st->deferred)
        return 0;
    st->deferred = 0;
    return nghttp2_session_resume_data(c->session, st->id) == NGHTTP2_ERR_NOMEM ? -1 : 0;
}

int tm_data(tm_conn *c, int32_t stream, const char *data, size_t size, int end)
{
    tm_stream *st = writable(c, stream);
    if (!st || (!size && !end))
        return 0;
    tm_piece *last = st->last;
    if (last && size <= last->room - last->size) {
        memcpy(last->bytes + last->size, data, size);
        last->size += size;
    } else if (size) {
        tm_piece *piece = new_piece(data, size);
        if (!piece)
            return -1;
        if (last)
            last->next = piece;
        else
            st->first = piece;
        st->last = piece;
    }
    st->queued += size;
    st->end = end != 0;
    return resume(c, st);
}

int tm_trailers(tm_conn *c, int32_t stream, const char *block, size_t size)
{
    tm_stream *st = writable(c, stream);
    if (!st)
        return 0;
    st->end = 1;
    st->trailers = new_piece(block, size);
    return st->trailers ? resume(c, st) : -1;
}

size_t tm_queued(tm_conn *c, int32_t stream)
{
    tm_stream *st = c ? tm_find(c, stream) : NULL;
    return st ? st->queued + (st->end && !st->end_sent) : 0;
}

/* nghttp2 asks how much of a stream's data goes into the frame it makes. */
ssize_t tm_read_data(nghttp2_session *s, int32_t id, uint8_t *buf, size_t size, uint32_t *flags,
                     nghttp2_data_source *source, void *user)
{
    tm_conn *c = user;
    tm_stream *st = source->ptr;
    (void)s, (void)buf;
    if (!st->queued && !st->end) {
        st->deferred = 1;
        return NGHTTP2_ERR_DEFERRED;
    }
    *flags |= NGHTTP2_DATA_FLAG_NO_COPY;
    if (size >= st->queued) {
        size = st->queued;
        if (st->end)
            *flags |= NGHTTP2_DATA_FLAG_EOF;
        if (st->end && st->trailers) {
            int sent = tm_submit_trailers(c, id, st->trailers->bytes, st->trailers->size);
            if (sent < 0)
                return NGHTTP2_ERR_CALLBACK_FAILURE;
            if (sent)
                *flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
            free_piece(st->trailers);
            st->trailers = NULL;
        }
    }
    return (ssize_t)size;
}

/* Write the DATA frame that tm_read_data gave the size of. */
int tm_send_data(nghttp2_session *s, nghttp2_frame *frame, const uint8_t *head, size_t size,
                 nghttp2_data_source *source, void *user)
{
    tm_conn *c = user;
    tm_stream *st = source->ptr;
    (void)s, (void)frame;
    if (c->out.size >= DRAIN_SIZE)
        return NGHTTP2_ERR_WOULDBLOCK;
    if (size > st->queued)
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE; /* reset since: what was to be sent is dropped */
    /* What it may bring: a WINDOW_UPDATE for stream and connection each time a few KiB are read; a PING. */
    tm_give(&c->control, 1 + (double)size / 1024);
    if (tm_text_add(&c->out, head, 9) < 0)
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    st->queued -= size;
    while (size) {
        tm_piece *piece = st->first;
        size_t part = piece->size - piece->sent;
        if (part > size)
            part = size;
        if (tm_text_add(&c->out, piece->bytes + piece->sent, part) < 0)
            return NGHTTP2_ERR_CALLBACK_FAILURE;
        piece->sent += part;
        size -= part;
        if (piece->sent == piece->size) {
            st->first = piece->next;
            if (!st->first)
                st->last = NULL;
            free_piece(piece);
        }
    }
    return 0;
}
