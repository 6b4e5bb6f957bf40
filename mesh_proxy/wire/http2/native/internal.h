/* What the C files share. */
#ifndef TRIOMESH_INTERNAL_H
#define TRIOMESH_INTERNAL_H

#include <nghttp2/nghttp2.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"

/* seam.py */
enum { REQUEST = 1, RESPONSE, DATA, TRAILERS, RESET, GOAWAY, SETTINGS, PING_ACK };
enum { METHOD, SCHEME, PATH, PROTOCOL, AUTHORITY, HOST, PARTS };

#define DRAIN_SIZE (256 * 1024)
#define PIECE_SIZE 512 /* a piece has room for this, so that tiny ones do not take many times their size */
#define KEPT_SIZE (16 * 1024) /* a buffer that is larger is freed as soon as it is empty */
#define EXPANSION (1024 * 1024)

typedef struct {
    char *p;
    size_t size, room;
} tm_text;

/* A header block that is being received: one at a time in a connection. */
typedef struct {
    tm_text parts, lines, cookie;
    struct {
        uint32_t offset, size;
        int set;
    } part[PARTS];
    size_t bytes;
    uint32_t count;
    uint32_t bad; /* an error code */
    int status;
    int trailers;
} tm_head;

typedef struct tm_piece {
    struct tm_piece *next;
    size_t room, size, sent;
    char bytes[];
} tm_piece;

typedef struct tm_stream {
    struct tm_stream *next; /* in its slot */
    int32_t id;
    tm_piece *first, *last, *trailers;
    size_t queued;
    unsigned told : 1;      /* Python knows it */
    unsigned over : 1;      /* Python reset it, or was told that it is over */
    unsigned head_got : 1;  /* client: the final response is here */
    unsigned head_sent : 1; /* server: the final response is queued; client: HEADERS went out */
    unsigned end : 1;       /* nothing comes behind what is queued */
    unsigned end_sent : 1;  /* it has gone */
    unsigned deferred : 1;  /* nghttp2 waits for tm_data */
    unsigned by_peer : 1;   /* RST_STREAM came */
} tm_stream;

typedef struct {
    double tokens, most, per_s, at;
} tm_bucket;

struct tm_conn {
    nghttp2_session *session;
    tm_view view;
    tm_limits limits;
    int server;
    tm_stream **slots; /* by id */
    uint32_t mask, streams;
    tm_head head;
    tm_text text, out;
    tm_event *events;
    size_t event_count, event_room;
    const char *fed; /* what tm_feed was given */
    double now;
    tm_bucket resets, control;
    uint8_t frame_head[9]; /* what has come of it */
    uint32_t frame_had;
    size_t frame_skip; /* bytes until the next one; at first the client's magic */
    uint32_t continuations;
    uint32_t answers;  /* control frames in `out` */
    uint32_t own_byes; /* GOAWAY frames that are Python's wish, or follow from `failed` */
    uint32_t failed; /* the connection must end: error code + 1 */
    unsigned told_bye : 1;   /* GOAWAY with an error is in `out` */
    unsigned read : 1;       /* Python has the events */
    unsigned taken : 1;      /* Python has `out` */
    unsigned in_goaway : 1;  /* the peer's GOAWAY is being handled */
    unsigned data_counted : 1;
};

extern long tm_alive;

/* engine.c */
int tm_fail(tm_conn *c, uint32_t code, const char *why);
int tm_take(tm_conn *c, tm_bucket *bucket);
void tm_give(tm_bucket *bucket, double tokens);
tm_event *tm_push(tm_conn *c, int kind, int32_t stream);

/* frames.c */
size_t tm_walk(tm_conn *c, const char *data, size_t size);

/* stream.c */
int tm_text_add(tm_text *t, const void *bytes, size_t size);
void tm_text_empty(tm_text *t);
void tm_text_free(tm_text *t);
tm_stream *tm_find(tm_conn *c, int32_t id);
tm_stream *tm_open(tm_conn *c, int32_t id);
void tm_drop(tm_conn *c, tm_stream *st);
void tm_unqueue(tm_stream *st);
ssize_t tm_read_data(nghttp2_session *s, int32_t id, uint8_t *buf, size_t size, uint32_t *flags,
                     nghttp2_data_source *source, void *user);
int tm_send_data(nghttp2_session *s, nghttp2_frame *frame, const uint8_t *head, size_t size,
                 nghttp2_data_source *source, void *user);

/* receive.c */
int tm_on_begin_frame(nghttp2_session *s, const nghttp2_frame_hd *hd, void *user);
int tm_on_data(nghttp2_session *s, uint8_t flags, int32_t id, const uint8_t *data, size_t size, void *user);
int tm_on_frame(nghttp2_session *s, const nghttp2_frame *frame, void *user);
int tm_on_invalid_header(nghttp2_session *s, const nghttp2_frame *frame, nghttp2_rcbuf *name, nghttp2_rcbuf *value, uint8_t flags, void *user);
int tm_on_invalid_frame(nghttp2_session *s, const nghttp2_frame *frame, int error, void *user);
int tm_on_close(nghttp2_session *s, int32_t id, uint32_t code, void *user);

/* head.c */
int tm_on_begin_headers(nghttp2_session *s, const nghttp2_frame *frame, void *user);
int tm_on_header(nghttp2_session *s, const nghttp2_frame *frame, const uint8_t *name, size_t name_size,
                 const uint8_t *value, size_t value_size, uint8_t flags, void *user);
int tm_head_end(tm_conn *c, tm_stream *st, int end);

/* send.c */
int tm_submit_trailers(tm_conn *c, int32_t stream, const char *block, size_t size);

#endif
