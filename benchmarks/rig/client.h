/* A client of the load generator: it takes a reply apart as it comes, checks it, and times its events. */
#ifndef RIG_CLIENT_H
#define RIG_CLIENT_H

#include "common.h"

struct request {
    char *bytes;
    size_t length;
};

struct samples {
    uint32_t *us;
    size_t used, room;
};

struct client {
    int fd;
    struct buffer in, body; /* as it came; without HTTP's framing, what is not judged yet */
    bool busy, headed, chunked, closes, complete, done;
    long left; /* bytes of the chunk or body still to come; -1: until the connection ends */
    int events;
    int64_t began_ns;
    const char *fault;
};

static struct {
    long replies, errors, events;
} totals;
static struct samples first_event, delay, whole;

static void add_sample(struct samples *samples, int64_t ns) {
    if (samples->used == samples->room) {
        samples->room = 2 * samples->room + 4096;
        samples->us = realloc(samples->us, samples->room * sizeof *samples->us);
        if (samples->us == NULL)
            die("out of memory");
    }
    samples->us[samples->used++] = (uint32_t)(ns / 1000);
}

static void forget_reply(struct client *client) {
    client->in.used = client->body.used = 0;
    client->headed = client->chunked = client->closes = client->complete = client->done = false;
    client->left = -1;
    client->events = 0;
    client->fault = NULL;
}

/* Reads what has come; false when the connection has ended. */
static bool receive_some(struct client *client) {
    struct buffer *in = &client->in;
    for (;;) {
        reserve(in, 16384);
        size_t room = in->room - in->used - 1;
        ssize_t count = recv(client->fd, in->bytes + in->used, room, MSG_DONTWAIT);
        if (count < 0 && errno == EAGAIN)
            return true;
        if (count <= 0)
            return false;
        in->used += (size_t)count;
        in->bytes[in->used] = 0;
        if ((size_t)count < room)
            return true;
    }
}

static void take_head(struct client *client) {
    struct buffer *in = &client->in;
    char *end = memmem(in->bytes, in->used, "\r\n\r\n", 4);
    if (end == NULL)
        return;
    end[2] = 0;
    if (strncmp(in->bytes, "HTTP/1.1 200", 12) != 0)
        client->fault = "the status is not 200";
    const char *length = strcasestr(in->bytes, "\ncontent-length:");
    client->chunked = strcasestr(in->bytes, "\ntransfer-encoding: chunked") != NULL;
    client->closes = strcasestr(in->bytes, "\nconnection: close") != NULL;
    if (client->chunked)
        client->left = 0;
    else if (length != NULL)
        client->left = atol(length + 16);
    end[2] = '\r';
    client->headed = true;
    if (client->fault == NULL)
        cut(in, (size_t)(end - in->bytes) + 4);
}

/* Moves up to `left` bytes from `in` at `*place` to `body`. */
static void move_body(struct client *client, size_t *place) {
    size_t count = client->in.used - *place;
    if (client->left >= 0 && count > (size_t)client->left)
        count = (size_t)client->left;
    append(&client->body, client->in.bytes + *place, count);
    *place += count;
    if (client->left >= 0)
        client->left -= (long)count;
}

/* Takes the chunked framing off; `complete` after the last chunk. */
static void take_chunks(struct client *client, size_t *place) {
    struct buffer *in = &client->in;
    for (;;) {
        move_body(client, place);
        if (client->left > 0)
            return;
        size_t at = *place;
        if (in->used - at >= 2 && in->bytes[at] == '\r') /* behind the chunk before */
            at += 2;
        char *end = memchr(in->bytes + at, '\n', in->used - at);
        if (end == NULL)
            return;
        client->left = strtol(in->bytes + at, NULL, 16);
        if (client->left == 0) {
            client->complete = in->used >= (size_t)(end - in->bytes) + 3;
            return;
        }
        *place = (size_t)(end - in->bytes) + 1;
    }
}

/* One line of a stream, or a whole reply: its mark, if it has one. */
static void take_line(struct client *client, char *line, int64_t now_ns) {
    char *mark = strstr(line, MARK), *clock;
    if (mark == NULL) {
        if (strcmp(line, "data: [DONE]") == 0 || strcmp(line, "data:[DONE]") == 0)
            client->done = true;
        else if (strstr(line, "\"error\":") != NULL)
            client->fault = "an error event";
        return;
    }
    long number = strtol(mark + strlen(MARK), &clock, 10);
    int64_t made_ns = *clock == ':' ? strtoll(clock + 1, NULL, 10) : 0;
    if (number != client->events || made_ns == 0 || client->done)
        client->fault = "an event is missing, doubled or out of order";
    if (client->events++ == 0)
        add_sample(&first_event, now_ns - client->began_ns);
    totals.events++;
    add_sample(&delay, now_ns - made_ns);
}

static void take_lines(struct client *client) {
    struct buffer *body = &client->body;
    int64_t now_ns = read_clock_ns();
    size_t place = 0;
    for (char *end; (end = memchr(body->bytes + place, '\n', body->used - place)) != NULL;) {
        *end = 0;
        if (end > body->bytes + place && end[-1] == '\r')
            end[-1] = 0;
        take_line(client, body->bytes + place, now_ns);
        place = (size_t)(end - body->bytes) + 1;
    }
    cut(body, place);
}

/* Goes as far into the reply as it has come. */
static void take_reply(struct client *client, bool over, bool stream) {
    size_t place = 0;
    if (!client->headed)
        take_head(client);
    if (!client->headed || client->fault != NULL)
        return;
    if (client->chunked)
        take_chunks(client, &place);
    else {
        move_body(client, &place);
        client->complete = client->left == 0 || (client->left < 0 && over);
    }
    if (client->in.used > 0)
        cut(&client->in, place);
    if (client->body.used == 0)
        return;
    if (stream)
        take_lines(client);
    else if (client->complete)
        take_line(client, client->body.bytes, read_clock_ns());
}

/* Counts a reply that has ended, and tells the first faults. */
static void note_reply(struct client *client, int events, bool stream) {
    if (client->fault == NULL && client->events != events)
        client->fault = "not all events have come";
    if (client->fault == NULL && stream && !client->done)
        client->fault = "the stream has no [DONE]";
    totals.replies++;
    add_sample(&whole, read_clock_ns() - client->began_ns);
    if (client->fault == NULL)
        return;
    if (totals.errors++ < 3)
        fprintf(stderr, "%s, after %d events: %.300s\n", client->fault, client->events,
                client->in.used ? client->in.bytes : client->body.used ? client->body.bytes : "");
}

static int compare(const void *left, const void *right) {
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

static void print_samples(const char *name, struct samples *samples) {
    static const double shares[] = {0.5, 0.9, 0.99, 1};
    static const char *names[] = {"p50", "p90", "p99", "max"};
    qsort(samples->us, samples->used, sizeof *samples->us, compare);
    printf(",\"%s_us\":{", name);
    for (int i = 0; i < 4; i++)
        printf("%s\"%s\":%u", i ? "," : "", names[i],
               samples->used ? samples->us[(size_t)(shares[i] * (double)(samples->used - 1))] : 0);
    printf("}");
}

/* `unfinished` replies had not ended at the deadline: they are errors too. */
static void report(long unfinished, double seconds) {
    if (unfinished > 0)
        fprintf(stderr, "%ld replies had not ended at the deadline\n", unfinished);
    totals.errors += unfinished;
    printf("{\"replies\":%ld,\"errors\":%ld,\"events\":%ld,\"seconds\":%.3f", totals.replies, totals.errors,
           totals.events, seconds);
    print_samples("first_event", &first_event);
    print_samples("delay", &delay);
    print_samples("whole", &whole);
    printf("}\n");
}

#endif
