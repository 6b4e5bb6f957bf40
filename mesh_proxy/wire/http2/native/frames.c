/* Frames that nghttp2 passes over without a word: found by walking over the frames' heads before it does. */
#include "internal.h"

/* Whether the connection may go on after a frame with this head. */
static int allowed(tm_conn *c)
{
    const uint8_t *head = c->frame_head;
    uint8_t type = head[3];
    int on_zero = !((head[5] & 0x7f) | head[6] | head[7] | head[8]);
    if (type == NGHTTP2_PRIORITY && on_zero) {
        tm_fail(c, NGHTTP2_PROTOCOL_ERROR, "PRIORITY of no stream"); /* RFC 9113 6.3 */
        return 0;
    }
    if (type > NGHTTP2_CONTINUATION && !tm_take(c, &c->control)) {
        tm_fail(c, NGHTTP2_ENHANCE_YOUR_CALM, "too many frames of unknown types");
        return 0;
    }
    /* Those of a stream that is over are passed over, too. */
    if (type == NGHTTP2_DATA && !c->frame_skip && !(head[4] & NGHTTP2_FLAG_END_STREAM) &&
        !tm_take(c, &c->control)) {
        tm_fail(c, NGHTTP2_ENHANCE_YOUR_CALM, "too many empty DATA frames");
        return 0;
    }
    return 1;
}

/* How many of the bytes nghttp2 may see: all, or those before the frame that ends the connection. */
size_t tm_walk(tm_conn *c, const char *data, size_t size)
{
    size_t at = 0, start = 0;
    while (at < size) {
        if (c->frame_skip) {
            size_t part = c->frame_skip < size - at ? c->frame_skip : size - at;
            c->frame_skip -= part;
            at += part;
            start = at;
            continue;
        }
        c->frame_head[c->frame_had++] = (uint8_t)data[at++];
        if (c->frame_had < sizeof c->frame_head)
            continue;
        c->frame_had = 0;
        c->frame_skip = (size_t)c->frame_head[0] << 16 | (size_t)c->frame_head[1] << 8 | c->frame_head[2];
        if (!allowed(c))
            return start;
        start = at;
    }
    return size;
}
