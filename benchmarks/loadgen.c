// Closed-loop load client: every connection has one request in flight, the same bytes again and again.
//
//   gcc -O2 -o loadgen loadgen.c
//   loadgen --addr 127.0.0.1:8000|unix:/path --proto http|grpc|bytes --body FILE
//           [--path P] [--header "K: V"]... [--connections N] [--secs S] [--warm S] [--spin] [--save FILE]
//           [--shm /name:input_offset:input_bytes:output_offset:output_bytes --shm-input FILE] [--reply-bytes N]
//   loadgen --echo ADDR --request-bytes N --reply-bytes M
//
//   http   HTTP/1.1 with keep-alive: POST P with the body and headers given
//   grpc   unary gRPC over HTTP/2 with prior knowledge; the body is the protobuf message, P is /package.Service/Method
//   bytes  the body as it is; N bytes make a reply. With --echo at the other end this is the floor of the transport:
//          a server that reads as many bytes, computes nothing and writes as many.
//   --shm  before each request the input is copied into a region of shared memory, after it the output out of it, as a
//          program with data of its own must do. All connections share the region (perf_analyzer does the same).
//   --save writes the last reply: an HTTP response with its head, gRPC's messages with their prefixes, or the output in
//          shared memory. The benchmark compares it with what the bare runtime computes.
//
// Prints one JSON line. Latencies are of requests that end in the measured time; `total` counts every request of the
// run that was answered, in warm-up and drain too: CPU time of the server is to be divided by it.
// One thread, epoll, no dependencies. Linux.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    READ_CHUNK = 64 * 1024,        // room that a read is given at least
    MAX_EVENTS = 128,              // events taken from epoll at once
    MAX_RECONNECTS = 1000,         // over all connections: a server that closes each of them must not loop for ever
    DRAIN_SECS = 15,               // requests in flight at the end are waited for this long
    FRAME_HEAD = 9,                // RFC 9113, 4.1
    GRPC_PREFIX = 5,               // "gRPC over HTTP2": flag and length before each message
    INITIAL_WINDOW = 65535,        // RFC 9113, 6.9.2
    INITIAL_FRAME = 16384,         // RFC 9113, 6.5.2
    MAX_FRAME = 1 << 20,           // what this client sends or takes in one frame at most
    WINDOW_STEP = 1 << 20,         // consumed bytes after which the connection's window is opened again
};

enum { DATA = 0, HEADERS = 1, RST_STREAM = 3, SETTINGS = 4, PING = 6, GOAWAY = 7, WINDOW_UPDATE = 8 };  // frame types
enum { END_STREAM = 1, ACK = 1, END_HEADERS = 4 };                                                      // frame flags
enum { SETTINGS_INITIAL_WINDOW_SIZE = 4, SETTINGS_MAX_FRAME_SIZE = 5 };

enum proto { HTTP, GRPC, BYTES };

struct buffer {
    uint8_t *data;
    size_t used, room;
};

struct connection {
    int fd;                        // -1: given up
    int in_flight;
    int wants_write;               // epoll reports when it can be written to
    uint64_t began;                // when the request in flight was started, ns
    struct buffer in;
    struct buffer out;             // frames that wait to be sent (gRPC)
    size_t sent;                   // of the request (HTTP, bytes) or of `out` (gRPC)
    size_t head_bytes, need_bytes; // of the HTTP response: length of its head and of all of it, once known
    int chunked;
    // gRPC:
    uint32_t stream;
    int64_t connection_window, stream_window, initial_window;  // what the server lets this client send
    uint32_t max_frame;
    size_t body_sent;
    uint64_t consumed;             // of the window that the server has, since it was last opened
    struct buffer message;         // the DATA of the reply
};

static struct {
    const char *address, *path, *body_file, *save_file, *shm, *shm_input;
    enum proto proto;
    int connections, spin;
    double secs, warm;
    size_t request_bytes, reply_bytes;  // of --echo and --proto bytes
    const char *echo;
    char headers[4096];
} options = {.path = "/", .connections = 1, .secs = 2, .warm = 0.3, .headers = ""};

static struct {
    uint64_t *latencies;           // ns
    size_t measured, room;
    uint64_t answered, errors, opened, connection_errors;
    long last_error;               // HTTP status, or below 0: -1 closed, -2 no message, -3 stream reset
    size_t reply_bytes;            // of the last reply
    struct buffer reply;           // the last reply, when it is to be saved
} result;

static struct {
    uint8_t *region, *input, *output;
    size_t input_at, input_bytes, output_at, output_bytes;
} shm;

static struct buffer request;      // HTTP: head and body; gRPC: the header block
static struct buffer body;         // gRPC: the message with its prefix
static struct connection *connections;
static int epoll_fd;
static uint64_t measure_from, measure_to;

static void start(struct connection *c);
static void lost(struct connection *c, long code);

// Odds and ends -------------------------------------------------------------------------------------------------------

static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("loadgen: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(2);
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void reserve(struct buffer *b, size_t more) {
    if (b->used + more <= b->room) return;
    b->room = (b->used + more) * 2;
    b->data = realloc(b->data, b->room);
    if (!b->data) fail("out of memory");
}

static void append(struct buffer *b, const void *data, size_t size) {
    reserve(b, size);
    memcpy(b->data + b->used, data, size);
    b->used += size;
}

static void append_byte(struct buffer *b, unsigned byte) {
    uint8_t one = (uint8_t)byte;
    append(b, &one, 1);
}

static void append_u32(struct buffer *b, uint32_t value) {
    uint8_t four[4] = {value >> 24, value >> 16, value >> 8, value};
    append(b, four, 4);
}

static uint32_t u32(const uint8_t *p) { return (uint32_t)p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3]; }

static struct buffer read_file(const char *name) {
    struct buffer b = {0};
    FILE *file = fopen(name, "rb");
    if (!file) fail("cannot read %s: %s", name, strerror(errno));
    for (size_t got = 1; got; b.used += got) {
        reserve(&b, READ_CHUNK);
        got = fread(b.data + b.used, 1, b.room - b.used, file);
    }
    fclose(file);
    return b;
}

static void write_file(const char *name, const void *data, size_t size) {
    FILE *file = fopen(name, "wb");
    if (!file || fwrite(data, 1, size, file) != size || fclose(file))
        fail("cannot write %s: %s", name, strerror(errno));
}

// Sockets -------------------------------------------------------------------------------------------------------------

union any_address {
    struct sockaddr any;
    struct sockaddr_un un;
    struct sockaddr_in in;
};

// Fills in the address in `text`, `HOST:PORT` or `unix:PATH`, and returns its length.
static socklen_t parse_address(const char *text, union any_address *a) {
    memset(a, 0, sizeof *a);
    if (!strncmp(text, "unix:", 5)) {
        a->un.sun_family = AF_UNIX;
        if (strlen(text + 5) >= sizeof a->un.sun_path) fail("the path of %s is too long for a socket", text);
        strcpy(a->un.sun_path, text + 5);
        return sizeof a->un;
    }
    char host[64] = "";
    const char *colon = strrchr(text, ':');
    if (!colon || colon - text >= (long)sizeof host) fail("%s is neither HOST:PORT nor unix:PATH", text);
    memcpy(host, text, (size_t)(colon - text));
    a->in.sin_family = AF_INET;
    a->in.sin_port = htons((uint16_t)atoi(colon + 1));
    if (inet_pton(AF_INET, host, &a->in.sin_addr) != 1) fail("%s is not a numeric IPv4 address", host);
    return sizeof a->in;
}

static int open_socket(const char *text) {
    union any_address a;
    socklen_t length = parse_address(text, &a);
    int fd = socket(a.any.sa_family, SOCK_STREAM, 0);
    if (fd < 0) fail("socket: %s", strerror(errno));
    if (connect(fd, &a.any, length)) {
        close(fd);
        return -1;
    }
    int on = 1;
    if (a.any.sa_family == AF_INET) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

static void watch(struct connection *c, int operation) {
    struct epoll_event event = {.events = EPOLLIN | (c->wants_write ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(epoll_fd, operation, c->fd, &event);
}

static void want_write(struct connection *c, int wanted) {
    if (c->wants_write == wanted) return;
    c->wants_write = wanted;
    watch(c, EPOLL_CTL_MOD);
}

// Sends from `data` on, of which `c->sent` bytes are gone; returns 0 when the connection is lost.
static int send_rest(struct connection *c, const uint8_t *data, size_t size) {
    while (c->sent < size) {
        ssize_t sent = send(c->fd, data + c->sent, size - c->sent, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EAGAIN) {
                want_write(c, 1);
                return 1;
            }
            lost(c, -1);
            return 0;
        }
        c->sent += (size_t)sent;
    }
    want_write(c, 0);
    return 1;
}

// Reads once into `c->in`; 1: there is more to look at, 0: nothing now, -1: the connection is lost.
static int receive(struct connection *c) {
    reserve(&c->in, READ_CHUNK);
    ssize_t got = recv(c->fd, c->in.data + c->in.used, c->in.room - c->in.used - 1, 0);
    if (got < 0 && errno == EAGAIN) return 0;
    if (got <= 0) {
        lost(c, -1);
        return -1;
    }
    c->in.used += (size_t)got;
    c->in.data[c->in.used] = 0;  // so that the head of a response can be searched as text
    return 1;
}

// The end of a request ------------------------------------------------------------------------------------------------

// Counts the request that has ended and starts the next.
static void finish(struct connection *c, int ok, long code, const uint8_t *reply, size_t size) {
    if (shm.region) memcpy(shm.output, shm.region + shm.output_at, shm.output_bytes);
    uint64_t ended = now();
    c->in_flight = 0;
    result.answered++;
    if (!ok) {
        result.errors++;
        result.last_error = code;
    } else if (ended >= measure_from && ended < measure_to) {
        if (result.measured == result.room) {
            result.room = result.room ? result.room * 2 : 1 << 16;
            result.latencies = realloc(result.latencies, result.room * sizeof *result.latencies);
            if (!result.latencies) fail("out of memory");
        }
        result.latencies[result.measured++] = ended - c->began;
    }
    result.reply_bytes = size;
    // Only the last reply is kept: copying each would be work of the client that no real one has.
    if (options.save_file && (ended >= measure_to || !ok)) {
        result.reply.used = 0;
        append(&result.reply, reply, size);
    }
    if (ended < measure_to) start(c);
}

// HTTP/1.1 ------------------------------------------------------------------------------------------------------------

static void http_prepare(void) {
    struct buffer content = read_file(options.body_file);
    reserve(&request, content.used + sizeof options.headers + strlen(options.path) + 128);
    request.used = (size_t)sprintf((char *)request.data,
                                   "POST %s HTTP/1.1\r\nHost: localhost\r\n%sContent-Length: %zu\r\n\r\n", options.path,
                                   options.headers, content.used);
    append(&request, content.data, content.used);
}

// Whether the head of the response is there; finds how long all of it is.
static int http_head(struct connection *c) {
    if (c->head_bytes) return 1;
    uint8_t *end = memmem(c->in.data, c->in.used, "\r\n\r\n", 4);
    if (!end) return 0;
    c->head_bytes = (size_t)(end - c->in.data) + 4;
    char *length = strcasestr((char *)c->in.data, "\r\ncontent-length:");
    c->chunked = !length || length >= (char *)end;
    if (!c->chunked) c->need_bytes = c->head_bytes + strtoul(length + 17, NULL, 10);
    return 1;
}

static void http_read(struct connection *c) {
    while (c->in_flight) {
        if (receive(c) <= 0) return;
        if (!http_head(c)) continue;
        int whole = c->chunked ? c->in.used >= c->head_bytes + 5 && !memcmp(c->in.data + c->in.used - 5, "0\r\n\r\n", 5)
                               : c->in.used >= c->need_bytes;
        if (!whole) continue;
        long status = strtol((char *)c->in.data + 9, NULL, 10);  // after "HTTP/1.1 "
        finish(c, status == 200, status, c->in.data, c->in.used);
        return;
    }
    receive(c);  // nothing was asked: only the end of the connection can come
}

static void bytes_read(struct connection *c) {
    while (c->in_flight) {
        if (receive(c) <= 0) return;
        if (c->in.used < options.reply_bytes) continue;
        finish(c, 1, 0, c->in.data, c->in.used);
        return;
    }
    receive(c);
}

// gRPC ----------------------------------------------------------------------------------------------------------------

// The header block: HPACK (RFC 7541) without Huffman code and without the dynamic table.
static void grpc_prepare(void) {
    struct buffer message = read_file(options.body_file);
    append_byte(&body, 0);  // not compressed
    append_u32(&body, (uint32_t)message.used);
    append(&body, message.data, message.used);
    if (strlen(options.path) > 126) fail("the path is longer than 126 characters");
    append_byte(&request, 0x83);                                                  // :method: POST
    append_byte(&request, 0x86);                                                  // :scheme: http
    append_byte(&request, 0x04), append_byte(&request, (unsigned)strlen(options.path));  // :path
    append(&request, options.path, strlen(options.path));
    append(&request, "\x01\x09localhost", 11);                                    // :authority
    append(&request, "\x0f\x10\x10" "application/grpc", 19);                      // content-type
    append(&request, "\x00\x02te\x08trailers", 13);
}

static void frame(struct connection *c, size_t size, int type, int flags, uint32_t stream) {
    uint8_t head[5] = {size >> 16, size >> 8, size, type, flags};
    append(&c->out, head, sizeof head);
    append_u32(&c->out, stream);
}

// Sends what waits; DATA goes out only as far as both windows allow (RFC 9113, 5.2).
static void grpc_send(struct connection *c) {
    while (c->in_flight && c->body_sent < body.used) {
        int64_t window = c->connection_window < c->stream_window ? c->connection_window : c->stream_window;
        if (window <= 0) break;
        size_t size = body.used - c->body_sent;
        if (size > c->max_frame) size = c->max_frame;
        if ((int64_t)size > window) size = (size_t)window;
        frame(c, size, DATA, c->body_sent + size == body.used ? END_STREAM : 0, c->stream);
        append(&c->out, body.data + c->body_sent, size);
        c->body_sent += size;
        c->connection_window -= (int64_t)size;
        c->stream_window -= (int64_t)size;
    }
    if (send_rest(c, c->out.data, c->out.used) && c->sent == c->out.used) c->sent = c->out.used = 0;
}

// The preface, and settings that let the server send as much as it likes.
static void grpc_greet(struct connection *c) {
    c->stream = (uint32_t)-1;  // the first request adds 2
    c->connection_window = c->initial_window = INITIAL_WINDOW;
    c->max_frame = INITIAL_FRAME;
    append(&c->out, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24);
    frame(c, 18, SETTINGS, 0, 0);
    append(&c->out, "\0\2\0\0\0\0", 6);  // no server push
    append(&c->out, "\0\4\x7f\xff\xff\xff", 6);
    append(&c->out, "\0\5\0\x10\0\0", 6);  // MAX_FRAME
    frame(c, 4, WINDOW_UPDATE, 0, 0);
    append_u32(&c->out, 0x7fffffff - INITIAL_WINDOW);
}

static void grpc_settings(struct connection *c, const uint8_t *p, size_t size) {
    for (size_t i = 0; i + 6 <= size; i += 6) {
        unsigned id = (unsigned)p[i] << 8 | p[i + 1];
        uint32_t value = u32(p + i + 2);
        if (id == SETTINGS_INITIAL_WINDOW_SIZE) {
            c->stream_window += (int64_t)value - c->initial_window;
            c->initial_window = value;
        } else if (id == SETTINGS_MAX_FRAME_SIZE) {
            c->max_frame = value < MAX_FRAME ? value : MAX_FRAME;
        }
    }
    frame(c, 0, SETTINGS, ACK, 0);
}

static void grpc_consume(struct connection *c, size_t size) {
    c->consumed += size;
    if (c->consumed < WINDOW_STEP) return;
    frame(c, 4, WINDOW_UPDATE, 0, 0);
    append_u32(&c->out, (uint32_t)c->consumed);
    c->consumed = 0;
}

static void grpc_frame(struct connection *c, int type, int flags, uint32_t stream, const uint8_t *p, size_t size) {
    int ours = stream == c->stream && c->in_flight;
    if (type == DATA) {
        if (ours) append(&c->message, p, size);
        grpc_consume(c, size);
    } else if (type == SETTINGS && !(flags & ACK)) {
        grpc_settings(c, p, size);
    } else if (type == PING && !(flags & ACK)) {
        frame(c, 8, PING, ACK, 0);
        append(&c->out, p, 8);
    } else if (type == WINDOW_UPDATE) {
        if (stream == 0) c->connection_window += u32(p) & 0x7fffffff;
        else if (ours) c->stream_window += u32(p) & 0x7fffffff;
    } else if (type == RST_STREAM && ours) {
        finish(c, 0, -3, c->message.data, c->message.used);
        return;
    }
    // A call that failed ends with trailers and no message: that is told apart without reading the header block.
    if ((type == DATA || type == HEADERS) && (flags & END_STREAM) && ours) {
        int ok = c->message.used > GRPC_PREFIX;
        finish(c, ok, ok ? 0 : -2, c->message.data, c->message.used);
    }
}

static void grpc_read(struct connection *c) {
    int state;
    uint64_t opened = result.opened;
    while ((state = receive(c)) > 0) {
        size_t at = 0;
        while (c->in.used - at >= FRAME_HEAD) {
            const uint8_t *head = c->in.data + at;
            size_t size = (size_t)head[0] << 16 | head[1] << 8 | head[2];
            if (c->in.used - at < FRAME_HEAD + size) break;
            grpc_frame(c, head[3], head[4], u32(head + 5) & 0x7fffffff, head + FRAME_HEAD, size);
            if (c->fd < 0 || result.opened != opened) return;  // lost while the next request was sent
            at += FRAME_HEAD + size;
        }
        memmove(c->in.data, c->in.data + at, c->in.used - at);
        c->in.used -= at;
    }
    if (state == 0) grpc_send(c);
}

// Connections ---------------------------------------------------------------------------------------------------------

static int open_connection(struct connection *c) {
    c->fd = open_socket(options.address);
    if (c->fd < 0) {
        result.connection_errors++;
        return 0;
    }
    result.opened++;
    c->in_flight = c->wants_write = 0;
    c->in.used = c->out.used = c->message.used = c->sent = c->consumed = 0;
    watch(c, EPOLL_CTL_ADD);
    if (options.proto == GRPC) grpc_greet(c);
    return 1;
}

// The connection has ended: an error if a request was under way. Another takes its place.
static void lost(struct connection *c, long code) {
    if (c->in_flight) {
        result.errors++;
        result.last_error = code;
    }
    c->in_flight = 0;
    close(c->fd);
    c->fd = -1;
    if (now() >= measure_to) return;
    result.connection_errors++;
    if (result.connection_errors < MAX_RECONNECTS && open_connection(c)) start(c);
}

static void start(struct connection *c) {
    c->began = now();
    if (shm.region) memcpy(shm.region + shm.input_at, shm.input, shm.input_bytes);
    c->in_flight = 1;
    if (options.proto == GRPC) {
        c->stream += 2;
        c->stream_window = c->initial_window;
        c->body_sent = c->message.used = 0;
        frame(c, request.used, HEADERS, END_HEADERS, c->stream);
        append(&c->out, request.data, request.used);
        grpc_send(c);
    } else {
        c->sent = c->in.used = c->head_bytes = c->need_bytes = 0;
        send_rest(c, request.data, request.used);
    }
}

static void on_event(struct connection *c, uint32_t events) {
    if (c->fd >= 0 && events & EPOLLOUT) {
        if (options.proto == GRPC) grpc_send(c);
        else send_rest(c, request.data, request.used);
    }
    if (c->fd < 0 || !(events & (EPOLLIN | EPOLLHUP | EPOLLERR))) return;
    if (options.proto == GRPC) grpc_read(c);
    else if (options.proto == HTTP) http_read(c);
    else bytes_read(c);
}

static int in_flight(void) {
    int count = 0;
    for (int i = 0; i < options.connections; i++) count += connections[i].in_flight;
    return count;
}

static int alive(void) {
    for (int i = 0; i < options.connections; i++)
        if (connections[i].fd >= 0) return 1;
    return 0;
}

static void run(void) {
    epoll_fd = epoll_create1(0);
    connections = calloc((size_t)options.connections, sizeof *connections);
    measure_to = UINT64_MAX;
    for (int i = 0; i < options.connections; i++)
        if (!open_connection(connections + i)) fail("cannot connect to %s: %s", options.address, strerror(errno));
    measure_from = now() + (uint64_t)(options.warm * 1e9);
    measure_to = measure_from + (uint64_t)(options.secs * 1e9);
    for (int i = 0; i < options.connections; i++) start(connections + i);
    uint64_t give_up = measure_to + DRAIN_SECS * 1000000000ull;
    struct epoll_event events[MAX_EVENTS];
    for (uint64_t t = now(); t < give_up && (t < measure_to ? alive() : in_flight()); t = now()) {
        int count = epoll_wait(epoll_fd, events, MAX_EVENTS, options.spin ? 0 : 200);
        for (int i = 0; i < count; i++) on_event(events[i].data.ptr, events[i].events);
    }
    result.errors += (uint64_t)in_flight();  // never answered
}

// The echo server: reads as many bytes as a request has, writes as many as a reply has --------------------------------

static void echo_answer(int fd, struct buffer *got, const uint8_t *reply) {
    reserve(got, options.request_bytes + 1);
    ssize_t size = recv(fd, got->data + got->used, options.request_bytes - got->used, 0);
    if (size <= 0 && !(size < 0 && errno == EAGAIN)) {
        close(fd);
        got->used = 0;
        return;
    }
    if (size > 0) got->used += (size_t)size;
    if (got->used < options.request_bytes) return;
    got->used = 0;
    for (size_t sent = 0; sent < options.reply_bytes;) {  // replies are small: waiting for room is no matter
        ssize_t one = send(fd, reply + sent, options.reply_bytes - sent, MSG_NOSIGNAL);
        if (one > 0) sent += (size_t)one;
        else if (errno != EAGAIN) return;
    }
}

static void echo(void) {
    union any_address a;
    socklen_t length = parse_address(options.echo, &a);
    static struct buffer received[1024];  // by file descriptor
    uint8_t *reply = calloc(1, options.reply_bytes + 1);
    int listener = socket(a.any.sa_family, SOCK_STREAM, 0), on = 1;
    if (bind(listener, &a.any, length) || listen(listener, 128))
        fail("cannot listen on %s: %s", options.echo, strerror(errno));
    getsockname(listener, &a.any, &length);
    printf("{\"port\":%d}\n", a.any.sa_family == AF_INET ? ntohs(a.in.sin_port) : 0);
    fflush(stdout);
    epoll_fd = epoll_create1(0);
    struct epoll_event events[MAX_EVENTS], event = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int count = epoll_wait(epoll_fd, events, MAX_EVENTS, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd != listener) {
                echo_answer(fd, received + fd, reply);
            } else if ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                if (fd >= 1024) fail("more than 1000 connections");
                if (a.any.sa_family == AF_INET) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                event.data.fd = fd;
                epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
            }
        }
    }
}

// Command line and result ---------------------------------------------------------------------------------------------

static void map_shared_memory(void) {
    char name[128];
    if (sscanf(options.shm, "%127[^:]:%zu:%zu:%zu:%zu", name, &shm.input_at, &shm.input_bytes, &shm.output_at,
               &shm.output_bytes) != 5)
        fail("%s is not /name:input_offset:input_bytes:output_offset:output_bytes", options.shm);
    int fd = shm_open(name, O_RDWR, 0);
    if (fd < 0) fail("shm_open %s: %s", name, strerror(errno));
    size_t input_end = shm.input_at + shm.input_bytes, output_end = shm.output_at + shm.output_bytes;
    shm.region = mmap(NULL, input_end > output_end ? input_end : output_end, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (shm.region == MAP_FAILED) fail("mmap %s: %s", name, strerror(errno));
    if (!options.shm_input) fail("--shm needs --shm-input");
    struct buffer input = read_file(options.shm_input);
    if (input.used != shm.input_bytes) fail("%s does not have %zu bytes", options.shm_input, shm.input_bytes);
    shm.input = input.data;
    shm.output = calloc(1, shm.output_bytes + 1);
}

static enum proto parse_proto(const char *text) {
    if (!strcmp(text, "http")) return HTTP;
    if (!strcmp(text, "grpc")) return GRPC;
    if (strcmp(text, "bytes")) fail("%s is none of http, grpc, bytes", text);
    return BYTES;
}

static void parse_option(const char *name, const char *value) {
    if (!strcmp(name, "--addr")) options.address = value;
    else if (!strcmp(name, "--proto")) options.proto = parse_proto(value);
    else if (!strcmp(name, "--path")) options.path = value;
    else if (!strcmp(name, "--body")) options.body_file = value;
    else if (!strcmp(name, "--connections")) options.connections = atoi(value);
    else if (!strcmp(name, "--secs")) options.secs = atof(value);
    else if (!strcmp(name, "--warm")) options.warm = atof(value);
    else if (!strcmp(name, "--save")) options.save_file = value;
    else if (!strcmp(name, "--shm")) options.shm = value;
    else if (!strcmp(name, "--shm-input")) options.shm_input = value;
    else if (!strcmp(name, "--request-bytes")) options.request_bytes = strtoul(value, NULL, 10);
    else if (!strcmp(name, "--reply-bytes")) options.reply_bytes = strtoul(value, NULL, 10);
    else if (!strcmp(name, "--echo")) options.echo = value;
    else if (!strcmp(name, "--header")) {
        if (strlen(options.headers) + strlen(value) + 3 > sizeof options.headers) fail("too many headers");
        strcat(strcat(options.headers, value), "\r\n");
    } else fail("unknown option %s", name);
}

static int compare(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static double quantile_us(double q) {
    return result.measured ? (double)result.latencies[(size_t)((double)(result.measured - 1) * q)] / 1e3 : 0;
}

static double cpu_seconds(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
           (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static void report(void) {
    qsort(result.latencies, result.measured, sizeof *result.latencies, compare);
    printf("{\"measured\":%zu,\"total\":%lu,\"errors\":%lu,\"last_error\":%ld,\"opened\":%lu,\"connection_errors\":%lu",
           result.measured, result.answered, result.errors, result.last_error, result.opened, result.connection_errors);
    printf(",\"rps\":%.2f,\"min_us\":%.2f,\"p10_us\":%.2f,\"p50_us\":%.2f", (double)result.measured / options.secs,
           quantile_us(0), quantile_us(.1), quantile_us(.5));
    printf(",\"p90_us\":%.2f,\"p99_us\":%.2f,\"max_us\":%.2f", quantile_us(.9), quantile_us(.99), quantile_us(1));
    printf(",\"client_cpu_s\":%.4f,\"request_bytes\":%zu,\"reply_bytes\":%zu}\n", cpu_seconds(),
           request.used + body.used, result.reply_bytes);
}

int main(int count, char **arguments) {
    for (int i = 1; i < count; i++) {
        if (!strcmp(arguments[i], "--spin")) options.spin = 1;
        else if (i + 1 == count) fail("%s needs a value", arguments[i]);
        else parse_option(arguments[i], arguments[i + 1]), i++;
    }
    if (options.echo) echo();
    if (!options.address || !options.body_file || options.connections < 1) fail("--addr and --body are needed");
    if (options.shm) map_shared_memory();
    if (options.proto == GRPC) grpc_prepare();
    else if (options.proto == HTTP) http_prepare();
    else request = read_file(options.body_file);
    run();
    if (options.save_file && shm.region) write_file(options.save_file, shm.output, shm.output_bytes);
    else if (options.save_file) write_file(options.save_file, result.reply.data, result.reply.used);
    report();
    return 0;
}
