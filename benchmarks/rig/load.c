/* The load generator of the benchmarks: many clients in one thread, epoll.
 *
 *     load --port P --path PATH --connections N --replies R --model M [--stream] [--ramp-us U]
 *          [--keys FILE] [--header 'Name: value' ...] [--deadline-s S]
 *
 * Opens N connections, U microseconds apart, and keeps each busy until R replies have ended in all. A reply
 * is right when its status is 200 and, for a stream of the model `bench-E-…`, the events 0 to E-1 came in
 * this order and [DONE] after them. Everything else is an error. The file has a client's key in each line,
 * which take turns. Prints one line of JSON; exit code 1 when there were errors.
 */
#include "client.h"

#include <getopt.h>

static struct client *clients[MAX_DESCRIPTORS];
static struct request *requests; /* one for each key */
static struct {
    int port, connections, ramp_us, keys, events;
    long replies;
    bool stream;
    double deadline_s;
    const char *path, *model, *keys_file;
    char headers[4096];
} want = {.connections = 1, .replies = 1, .deadline_s = 300, .path = "/", .model = "bench-1-0-8"};
static long started, ended;
static int poll_fd, opened;

static void start_request(struct client *client) {
    struct request *request = &requests[started++ % want.keys];
    forget_reply(client);
    client->busy = true;
    client->began_ns = read_clock_ns();
    if (send(client->fd, request->bytes, request->length, 0) != (ssize_t)request->length)
        client->fault = "the request could not be sent";
}

static void open_client(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = loopback(want.port);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        die("connect");
    send_at_once(fd);
    clients[fd] = calloc(1, sizeof **clients);
    clients[fd]->fd = fd;
    watch(poll_fd, EPOLL_CTL_ADD, fd, EPOLLIN);
    start_request(clients[fd]);
}

static void close_client(struct client *client) {
    clients[client->fd] = NULL;
    close(client->fd);
    release(&client->in);
    release(&client->body);
    free(client);
}

/* Notes how a reply went, and lets the client go on, with a new connection if this one is of no more use. */
static void end_reply(struct client *client, bool usable) {
    ended++;
    note_reply(client, want.stream ? want.events : 1, want.stream);
    client->busy = false;
    if (!usable)
        close_client(client);
    if (started >= want.replies)
        return;
    if (usable)
        start_request(client);
    else
        open_client();
}

static void serve(struct client *client) {
    bool alive = receive_some(client);
    if (!client->busy) {
        if (!alive)
            close_client(client);
        return;
    }
    take_reply(client, !alive, want.stream);
    if (client->complete)
        end_reply(client, alive && !client->closes);
    else if (!alive || client->fault != NULL) {
        if (client->fault == NULL)
            client->fault = "the connection ended in mid-reply";
        end_reply(client, false);
    }
}

/* Opens the clients whose time has come; the milliseconds until the next one's. */
static int open_clients(int64_t began_ns) {
    while (opened < want.connections && started < want.replies) {
        int64_t due_ns = began_ns + opened * (int64_t)want.ramp_us * 1000 - read_clock_ns();
        if (due_ns > 0)
            return (int)(due_ns / 1000000) + 1;
        open_client();
        opened++;
        if (opened % 64 == 0)
            return 0; /* the open ones must not wait meanwhile */
    }
    return 1000;
}

static void run(void) {
    int64_t began_ns = read_clock_ns();
    while (ended < want.replies && (double)(read_clock_ns() - began_ns) < want.deadline_s * 1e9) {
        struct epoll_event events[BATCH];
        int count = epoll_wait(poll_fd, events, BATCH, open_clients(began_ns));
        for (int i = 0; i < count; i++)
            if (clients[events[i].data.fd] != NULL)
                serve(clients[events[i].data.fd]);
    }
    report(want.replies - ended, (double)(read_clock_ns() - began_ns) / 1e9);
}

static void make_request(struct request *request, const char *key) {
    char body[1024];
    int size = snprintf(body, sizeof body,
                        "{\"model\":\"%s\",\"messages\":[{\"role\":\"system\",\"content\":\"You are a helpful "
                        "assistant.\"},{\"role\":\"user\",\"content\":\"Write a short story about a space "
                        "adventure\"}],\"stream\":%s}",
                        want.model, want.stream ? "true" : "false");
    int length = asprintf(&request->bytes,
                          "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer %s\r\nContent-Type: "
                          "application/json\r\nAccept: %s\r\n%sContent-Length: %d\r\n\r\n%s",
                          want.path, want.port, key, want.stream ? "text/event-stream" : "application/json",
                          want.headers, size, body);
    if (length < 0)
        die("out of memory");
    request->length = (size_t)length;
}

static void make_requests(void) {
    char key[512] = "none";
    FILE *file = want.keys_file ? fopen(want.keys_file, "r") : NULL;
    if (want.keys_file && file == NULL)
        die(want.keys_file);
    while (file != NULL && fgets(key, sizeof key, file) != NULL) {
        key[strcspn(key, "\r\n")] = 0;
        requests = realloc(requests, (size_t)(want.keys + 1) * sizeof *requests);
        make_request(&requests[want.keys++], key);
    }
    if (want.keys == 0) {
        requests = malloc(sizeof *requests);
        make_request(&requests[want.keys++], key);
    }
    if (file != NULL)
        fclose(file);
}

static void add_header(const char *header) {
    size_t used = strlen(want.headers);
    snprintf(want.headers + used, sizeof want.headers - used, "%s\r\n", header);
}

static bool read_options(int argc, char **argv) {
    static const struct option options[] = {
        {"port", 1, NULL, 'p'},     {"path", 1, NULL, 'a'},   {"connections", 1, NULL, 'c'},
        {"replies", 1, NULL, 'r'},  {"model", 1, NULL, 'm'},  {"stream", 0, NULL, 's'},
        {"ramp-us", 1, NULL, 'u'},  {"keys", 1, NULL, 'k'},   {"header", 1, NULL, 'h'},
        {"deadline-s", 1, NULL, 'd'}, {NULL, 0, NULL, 0},
    };
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;)
        switch (option) {
        case 'p': want.port = atoi(optarg); break;
        case 'a': want.path = optarg; break;
        case 'c': want.connections = atoi(optarg); break;
        case 'r': want.replies = atol(optarg); break;
        case 'm': want.model = optarg; break;
        case 's': want.stream = true; break;
        case 'u': want.ramp_us = atoi(optarg); break;
        case 'k': want.keys_file = optarg; break;
        case 'h': add_header(optarg); break;
        case 'd': want.deadline_s = atof(optarg); break;
        default: return false;
        }
    return want.port > 0 && sscanf(want.model, "bench-%d-", &want.events) == 1;
}

int main(int argc, char **argv) {
    if (!read_options(argc, argv)) {
        fprintf(stderr, "usage: see the beginning of load.c\n");
        return 2;
    }
    prepare_process();
    make_requests();
    poll_fd = epoll_create1(0);
    run();
    return totals.errors ? 1 : 0;
}
