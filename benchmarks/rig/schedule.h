/* The upstream's connections, and a heap of the open streams: the one whose next event is due first is first. */
#ifndef RIG_SCHEDULE_H
#define RIG_SCHEDULE_H

#include "common.h"

struct connection {
    int fd;
    struct buffer in, out;
    size_t sent;             /* bytes of `out` that have gone */
    bool streaming, blocked; /* a stream is open; the peer's window is full */
    int events, number;      /* of the stream: how many there will be, the next one's number */
    int content_bytes;
    int64_t interval_ns, due_ns;
    int place; /* in `schedule`; -1: not there */
};

static struct connection *schedule[MAX_DESCRIPTORS];
static int scheduled;

static inline void put(struct connection *stream, int place) {
    schedule[place] = stream;
    stream->place = place;
}

static inline void rise(struct connection *stream) {
    int place = stream->place;
    for (; place > 0 && schedule[(place - 1) / 2]->due_ns > stream->due_ns; place = (place - 1) / 2)
        put(schedule[(place - 1) / 2], place);
    put(stream, place);
}

static inline void sink(struct connection *stream) {
    int place = stream->place;
    for (;;) {
        int child = 2 * place + 1;
        if (child + 1 < scheduled && schedule[child + 1]->due_ns < schedule[child]->due_ns)
            child++;
        if (child >= scheduled || schedule[child]->due_ns >= stream->due_ns)
            break;
        put(schedule[child], place);
        place = child;
    }
    put(stream, place);
}

static inline void add_to_schedule(struct connection *stream) {
    put(stream, scheduled++);
    rise(stream);
}

static inline void leave_schedule(struct connection *stream) {
    int place = stream->place;
    if (place < 0)
        return;
    stream->place = -1;
    struct connection *last = schedule[--scheduled];
    if (last == stream)
        return;
    put(last, place);
    rise(last);
    sink(last);
}

#endif
