/* What the upstream and the load generator share: the clock, growing buffers, sockets on the loopback. */
#ifndef RIG_COMMON_H
#define RIG_COMMON_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* Descriptors are small numbers, so that connections are found in an array by them. */
enum { MAX_DESCRIPTORS = 65536, BATCH = 512 };

static const int64_t SECOND_NS = 1000000000;

/* The mark at the beginning of each event's content: "t=SEQUENCE:CLOCK followed by a space. It is part of the
 * text because a gateway that takes events apart and builds its own drops fields that it does not know. */
#define MARK "\"t="

static inline void die(const char *what) {
    perror(what);
    exit(2);
}

static inline int64_t read_clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * SECOND_NS + now.tv_nsec;
}

struct buffer {
    char *bytes;
    size_t used, room;
};

/* Makes room for `more` bytes and a closing zero. */
static inline void reserve(struct buffer *buffer, size_t more) {
    if (buffer->used + more + 1 <= buffer->room)
        return;
    buffer->room = 2 * (buffer->used + more) + 512;
    buffer->bytes = realloc(buffer->bytes, buffer->room);
    if (buffer->bytes == NULL)
        die("out of memory");
}

static inline void append(struct buffer *buffer, const char *bytes, size_t length) {
    reserve(buffer, length);
    memcpy(buffer->bytes + buffer->used, bytes, length);
    buffer->used += length;
    buffer->bytes[buffer->used] = 0;
}

/* Forgets the first `length` bytes. */
static inline void cut(struct buffer *buffer, size_t length) {
    memmove(buffer->bytes, buffer->bytes + length, buffer->used - length + 1);
    buffer->used -= length;
}

static inline void release(struct buffer *buffer) {
    free(buffer->bytes);
    *buffer = (struct buffer){0};
}

static inline struct sockaddr_in loopback(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static inline void send_at_once(int fd) {
    int yes = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
}

static inline void watch(int poll, int operation, int fd, uint32_t events) {
    struct epoll_event event = {.events = events, .data = {.fd = fd}};
    if (epoll_ctl(poll, operation, fd, &event) < 0)
        die("epoll_ctl");
}

/* As many descriptors as the administrator allows; writes to a closed socket give an error, not a signal. */
static inline void prepare_process(void) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max < MAX_DESCRIPTORS ? limit.rlim_max : MAX_DESCRIPTORS;
    setrlimit(RLIMIT_NOFILE, &limit);
    signal(SIGPIPE, SIG_IGN);
}

#endif
