/* The upstream of the benchmarks: a chat completions server that costs next to nothing. One thread, epoll.
 *
 *     upstream FD
 *
 * FD is a listening socket that does not block.
 * The model of a request says what comes back. `bench-E-I-B` with "stream":true is E events with B bytes of
 * content each, I microseconds apart (0: all at once), then [DONE]; any other request gets a reply of about
 * 1 kB. Each event carries its number and the moment at which it was made (see MARK in common.h), each reply
 * the moment. GET /stats tells what has happened so far.
 */
#include "schedule.h"

#include <poll.h>

enum { MAX_CONTENT = 4096, UNARY_CONTENT = 700 };

static struct connection *connections[MAX_DESCRIPTORS];
static int poll_fd;
static char padding[MAX_CONTENT + 1];
static struct {
    long requests, streams, events, early_closes, open;
} stats;

/* --- Sending --- */

static void hang_up(struct connection *connection) {
    if (connection->streaming) {
        stats.early_closes++;
        stats.open--;
    }
    leave_schedule(connection);
    connections[connection->fd] = NULL;
    close(connection->fd);
    release(&connection->in);
    release(&connection->out);
    free(connection);
}

/* Sends what waits; false when the connection has gone. */
static bool flush(struct connection *connection) {
    struct buffer *out = &connection->out;
    while (connection->sent < out->used) {
        ssize_t count = send(connection->fd, out->bytes + connection->sent, out->used - connection->sent, 0);
        if (count < 0 && errno == EAGAIN) {
            if (!connection->blocked)
                watch(poll_fd, EPOLL_CTL_MOD, connection->fd, EPOLLIN | EPOLLOUT);
            connection->blocked = true;
            return true;
        }
        if (count < 0) {
            hang_up(connection);
            return false;
        }
        connection->sent += (size_t)count;
    }
    connection->sent = out->used = 0;
    if (connection->blocked)
        watch(poll_fd, EPOLL_CTL_MOD, connection->fd, EPOLLIN);
    connection->blocked = false;
    return true;
}

#define USAGE                                                                                                   \
    "\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":64,\"total_tokens\":76,"                              \
    "\"prompt_tokens_details\":{\"cached_tokens\":0},\"cost_in_usd_ticks\":1580000}"

static void add_event(struct connection *stream) {
    bool first = stream->number == 0, last = stream->number == stream->events - 1;
    char event[MAX_CONTENT + 1024], size[16];
    int length = snprintf(event, sizeof event,
                          "data: {\"id\":\"bench\",\"object\":\"chat.completion.chunk\",\"created\":1780000000,"
                          "\"model\":\"grok-bench\",\"choices\":[{\"index\":0,\"delta\":{%s\"content\":"
                          "\"t=%d:%lld %.*s\"},\"finish_reason\":%s}]%s,\"system_fingerprint\":\"fp_bench\"}\n\n",
                          first ? "\"role\":\"assistant\"," : "", stream->number, (long long)read_clock_ns(),
                          stream->content_bytes, padding, last ? "\"stop\"" : "null", last ? "," USAGE : "");
    append(&stream->out, size, (size_t)snprintf(size, sizeof size, "%x\r\n", (unsigned)length));
    append(&stream->out, event, (size_t)length);
    append(&stream->out, "\r\n", 2);
    stream->number++;
    stats.events++;
}

static void end_stream(struct connection *stream) {
    static const char end[] = "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";
    append(&stream->out, end, sizeof end - 1);
    stream->streaming = false;
    stats.open--;
    leave_schedule(stream);
}

static void add_json(struct connection *connection, const char *body, int length) {
    char head[128];
    int size = snprintf(head, sizeof head,
                        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", length);
    append(&connection->out, head, (size_t)size);
    append(&connection->out, body, (size_t)length);
}

/* --- Requests --- */

static void answer_stats(struct connection *connection) {
    char body[256];
    int length = snprintf(body, sizeof body,
                          "{\"requests\":%ld,\"streams\":%ld,\"events\":%ld,\"early_closes\":%ld,\"open\":%ld}",
                          stats.requests, stats.streams, stats.events, stats.early_closes, stats.open);
    add_json(connection, body, length);
}

static void answer_whole(struct connection *connection) {
    char body[UNARY_CONTENT + 512];
    int length = snprintf(body, sizeof body,
                          "{\"id\":\"bench\",\"object\":\"chat.completion\",\"created\":1780000000,\"model\":"
                          "\"grok-bench\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":"
                          "\"t=0:%lld %.*s\",\"refusal\":null},\"finish_reason\":\"stop\"}]," USAGE "}",
                          (long long)read_clock_ns(), UNARY_CONTENT, padding);
    add_json(connection, body, length);
}

static void begin_stream(struct connection *stream, const char *model) {
    static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
                               "Transfer-Encoding: chunked\r\n\r\n";
    int events = 0, interval_us = 0, content_bytes = 0;
    if (sscanf(model, "bench-%d-%d-%d", &events, &interval_us, &content_bytes) != 3 || events < 1)
        events = 8;
    stream->events = events;
    stream->number = 0;
    stream->content_bytes = content_bytes < MAX_CONTENT ? content_bytes : MAX_CONTENT;
    stream->interval_ns = interval_us * (int64_t)1000;
    stream->streaming = true;
    stats.streams++;
    stats.open++;
    append(&stream->out, head, sizeof head - 1);
    do
        add_event(stream);
    while (stream->number < events && interval_us == 0);
    if (stream->number == events) {
        end_stream(stream);
        return;
    }
    stream->due_ns = read_clock_ns() + stream->interval_ns;
    add_to_schedule(stream);
}

static void answer(struct connection *connection, const char *head, const char *body) {
    const char *model = strstr(body, "bench-");
    if (strncmp(head, "GET /stats", 10) == 0) {
        answer_stats(connection);
        return;
    }
    stats.requests++;
    if (model != NULL && (strstr(body, "\"stream\":true") || strstr(body, "\"stream\": true")))
        begin_stream(connection, model);
    else
        answer_whole(connection);
}

/* The length of the request at the start of `in`; 0 when it is not all there. Sets where its body begins. */
static size_t measure_request(struct buffer *in, size_t *body) {
    char *end = memmem(in->bytes, in->used, "\r\n\r\n", 4);
    if (end == NULL)
        return 0;
    *body = (size_t)(end - in->bytes) + 4;
    *end = 0; /* so that the headers alone are searched */
    char *length = strcasestr(in->bytes, "\ncontent-length:");
    bool chunked = strcasestr(in->bytes, "\ntransfer-encoding: chunked") != NULL;
    *end = '\r';
    if (chunked) {
        char *last = memmem(in->bytes + *body, in->used - *body, "0\r\n\r\n", 5);
        return last ? (size_t)(last - in->bytes) + 5 : 0;
    }
    size_t whole = *body + (length ? strtoul(length + 16, NULL, 10) : 0);
    return whole <= in->used ? whole : 0;
}

static void receive(struct connection *connection) {
    struct buffer *in = &connection->in;
    for (;;) {
        reserve(in, 4096);
        ssize_t count = recv(connection->fd, in->bytes + in->used, 4096, 0);
        if (count < 0 && errno == EAGAIN)
            break;
        if (count <= 0) {
            hang_up(connection);
            return;
        }
        in->used += (size_t)count;
        in->bytes[in->used] = 0;
    }
    size_t body, length;
    while (!connection->streaming && in->used > 0 && (length = measure_request(in, &body)) > 0) {
        char after = in->bytes[length];
        in->bytes[length] = 0;
        answer(connection, in->bytes, in->bytes + body);
        in->bytes[length] = after;
        cut(in, length);
        if (!flush(connection))
            return;
    }
    if (in->used == 0)
        release(in);
}

/* --- The loop --- */

static void welcome(int listener) {
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        struct connection *connection = calloc(1, sizeof *connection);
        if (connection == NULL || fd >= MAX_DESCRIPTORS)
            die("too many connections");
        connection->fd = fd;
        connection->place = -1;
        connections[fd] = connection;
        send_at_once(fd);
        watch(poll_fd, EPOLL_CTL_ADD, fd, EPOLLIN);
    }
}

static void send_what_is_due(void) {
    int64_t now = read_clock_ns();
    while (scheduled > 0 && schedule[0]->due_ns <= now) {
        struct connection *stream = schedule[0];
        add_event(stream);
        stream->due_ns += stream->interval_ns;
        if (stream->number == stream->events)
            end_stream(stream);
        else
            sink(stream);
        flush(stream);
    }
}

/* Waits for a socket or the next event. In nanoseconds: epoll_wait's milliseconds would bunch events up. */
static void wait_for_work(void) {
    struct pollfd any = {.fd = poll_fd, .events = POLLIN};
    int64_t left_ns = scheduled ? schedule[0]->due_ns - read_clock_ns() : SECOND_NS;
    if (left_ns <= 0)
        return;
    struct timespec wait = {.tv_sec = left_ns / SECOND_NS, .tv_nsec = left_ns % SECOND_NS};
    ppoll(&any, 1, &wait, NULL);
}

static void serve_socket(int listener, struct epoll_event *event) {
    struct connection *connection = connections[event->data.fd];
    if (event->data.fd == listener)
        welcome(listener);
    else if (connection != NULL && (!(event->events & EPOLLOUT) || flush(connection)) &&
             event->events & ~(uint32_t)EPOLLOUT)
        receive(connection);
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: upstream FD\n");
        return 2;
    }
    prepare_process();
    memset(padding, 'x', MAX_CONTENT);
    int listener = atoi(argv[1]);
    poll_fd = epoll_create1(0);
    watch(poll_fd, EPOLL_CTL_ADD, listener, EPOLLIN);
    for (;;) {
        struct epoll_event events[BATCH];
        int count = epoll_wait(poll_fd, events, BATCH, 0);
        for (int i = 0; i < count; i++)
            serve_socket(listener, &events[i]);
        send_what_is_due();
        if (count == 0)
            wait_for_work();
    }
}
