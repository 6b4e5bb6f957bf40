/* What Python calls. cffi reads this file too: declarations only. */
typedef struct tm_conn tm_conn;

typedef struct {
    uint32_t streams, stream_window, connection_window, head_bytes, header_count, continuations;
    uint32_t resets_burst, control_burst, queued_control;
    double resets_per_s, control_per_s;
} tm_limits;

/* Read by Python after a call; it stays where it is as long as the connection. */
typedef struct {
    const char *events; /* after tm_feed: text, then one tm_event for each event */
    const char *out;    /* after tm_drain */
    uint32_t max_streams;
    uint32_t connect_protocol;
    uint32_t within_head;
    uint32_t code; /* why the connection ends ... */
    char why[120]; /* ... in words */
} tm_view;

typedef struct {
    uint8_t kind, end;
    uint16_t status;
    int32_t stream;
    uint32_t offset, size; /* in the text; of DATA in what was fed */
    uint32_t a, b, c, d;
} tm_event;

/* NULL if memory is short. */
tm_conn *tm_new(int server, const tm_limits *limits);
void tm_free(tm_conn *conn);
const tm_view *tm_look(tm_conn *conn);

/* The number of events times 2^32, plus the bytes of text; if the connection must end, -1 minus that. */
int64_t tm_feed(tm_conn *conn, const char *data, size_t size, double now);
/* Bytes in view.out, good until the next call; negative if memory is short. */
int64_t tm_drain(tm_conn *conn);

/* The new stream; 0 if none is allowed; negative if memory is short. */
int32_t tm_request(tm_conn *conn, const char *method, size_t method_size, const char *scheme, size_t scheme_size,
                   const char *target, size_t target_size, const char *protocol, size_t protocol_size,
                   const char *block, size_t block_size, int end);
/* These return negative only if memory is short; a stream that is over is none of their business. */
int tm_respond(tm_conn *conn, int32_t stream, int status, const char *block, size_t size, int end);
int tm_data(tm_conn *conn, int32_t stream, const char *data, size_t size, int end);
int tm_trailers(tm_conn *conn, int32_t stream, const char *block, size_t size);
int tm_consumed(tm_conn *conn, int32_t stream, size_t size);
int tm_reset(tm_conn *conn, int32_t stream, uint32_t code);
int tm_ping(tm_conn *conn, const char *opaque);
int tm_goaway(tm_conn *conn, uint32_t code, int notice);
size_t tm_queued(tm_conn *conn, int32_t stream);

/* Connections, streams and queued pieces that are not freed, in the whole process. */
long tm_live(void);
const char *tm_version(void);
/* What this libnghttp2 does when it is attacked: NULL if it ends the connection, else what it lets pass. */
const char *tm_unsafe(void);
