// Closed-loop load client of the local protocol (edgeserve/client/local_wire.py has its table of messages).
//
//   gcc -O2 -o localgen localgen.c
//   localgen --addr PATH --model NAME --input NAME:DATATYPE:SHAPE --output NAME:BYTES --data FILE
//            [--connections N] [--slots S] [--secs S] [--warm S] [--spin] [--save FILE]
//
//   --input  such as x:FP32:1,4; --data is what it holds, BYTES the room for the output
//   --slots  requests that each connection has in flight; each connection has a region of its own
//   --save   writes the last output. The benchmark compares it with what the bare runtime computes.
//
// Before each request the input is copied into the region, after it the output out of it, as a program with data of its
// own must do. Prints one JSON line with the fields of loadgen.c. One thread, epoll, no dependencies. Linux.
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { HELLO = 1, OPEN = 3, REGION = 4, RUN = 5 };                          // messages of the client
enum { WELCOME = 17, READY = 19, OPENED = 20, DONE = 21, LAYOUT = 22, FAILED = 23 };  // of the server
enum { ALIGNMENT = 64, MAX_SLOTS = 64, MAX_BODY = 64 * 1024, MAX_EVENTS = 128, DRAIN_SECS = 15 };

static const uint32_t VERSION = 1, MAGIC = 0x314c5345;  // "ESL1"

struct head {
    uint32_t kind, number, extent, tag;
};

struct connection {
    int fd;
    uint32_t plan;
    uint8_t *region;
    uint8_t received[sizeof(struct head) + MAX_BODY];
    size_t used;
    uint64_t started[MAX_SLOTS];
    int in_flight;
};

static struct {
    const char *address, *model, *input, *output, *data_file, *save_file;
    int connections, slots, spin;
    double secs, warm;
} options = {.connections = 1, .slots = 1, .secs = 2, .warm = .3};

static struct {
    uint8_t *input, *output;
    size_t input_bytes, output_bytes, output_at, slot_bytes;
} tensors;

static struct {
    uint64_t *latencies, answered, errors;
    size_t measured, room;
} result;

static uint64_t measure_from, measure_to;
static int epoll_fd;

static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(2);
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static size_t aligned(size_t size) { return (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

// Opening a plan: blocking, one question at a time --------------------------------------------------------------------

static void send_message(int fd, struct head head, const char *body, int descriptor) {
    struct iovec parts[2] = {{&head, sizeof head}, {(void *)body, body ? head.extent : 0}};
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {.header = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = body ? 2 : 1};
    if (descriptor >= 0) {
        memcpy(CMSG_DATA(&control.header), &descriptor, sizeof descriptor);
        message.msg_control = &control;
        message.msg_controllen = sizeof control;
    }
    if (sendmsg(fd, &message, MSG_NOSIGNAL) < (ssize_t)sizeof head) fail("cannot send: %s", strerror(errno));
}

static struct head expect(int fd, uint32_t kind) {
    struct head head;
    char body[MAX_BODY + 1];
    if (recv(fd, &head, sizeof head, MSG_WAITALL) != sizeof head) fail("the server closed the connection");
    size_t length = head.kind == WELCOME || head.kind == FAILED ? head.extent : 0;
    if (length > MAX_BODY) fail("a message of %zu bytes", length);
    if (length && recv(fd, body, length, MSG_WAITALL) != (ssize_t)length) fail("half a message");
    body[length] = 0;
    if (head.kind != kind) fail("message %u instead of %u: %s", head.kind, kind, body);
    return head;
}

static void describe_plan(char *json, size_t room) {
    char input[128], datatype[16], shape[128], output[128];
    if (sscanf(options.input, "%127[^:]:%15[^:]:%127s", input, datatype, shape) != 3) fail("bad --input");
    if (sscanf(options.output, "%127[^:]:%zu", output, &tensors.output_bytes) != 2) fail("bad --output");
    tensors.output_at = aligned(tensors.input_bytes);
    tensors.slot_bytes = tensors.output_at + aligned(tensors.output_bytes);
    snprintf(json, room,
             "{\"model\":\"%s\",\"slots\":%d,\"slot_bytes\":%zu,"
             "\"inputs\":[{\"name\":\"%s\",\"datatype\":\"%s\",\"shape\":[%s],\"offset\":0,\"byte_size\":%zu}],"
             "\"outputs\":[{\"name\":\"%s\",\"offset\":%zu,\"byte_size\":%zu}]}",
             options.model, options.slots, tensors.slot_bytes, input, datatype, shape, tensors.input_bytes, output,
             tensors.output_at, tensors.output_bytes);
}

static void open_connection(struct connection *c, const char *json) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, options.address, sizeof address.sun_path - 1);
    c->fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) fail("%s: %s", options.address, strerror(errno));
    send_message(c->fd, (struct head){HELLO, VERSION, MAGIC, 1}, NULL, -1);
    expect(c->fd, WELCOME);
    send_message(c->fd, (struct head){OPEN, 0, (uint32_t)strlen(json), 2}, json, -1);
    c->plan = expect(c->fd, READY).number;
    size_t size = tensors.slot_bytes * (size_t)options.slots;
    int memory = memfd_create("localgen", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (memory < 0 || ftruncate(memory, (off_t)size) || fcntl(memory, F_ADD_SEALS, F_SEAL_SHRINK))
        fail("memfd: %s", strerror(errno));
    c->region = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    if (c->region == MAP_FAILED) fail("mmap: %s", strerror(errno));
    send_message(c->fd, (struct head){REGION, c->plan, 0, 3}, NULL, memory);
    expect(c->fd, OPENED);
    close(memory);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event);
}

// Running -------------------------------------------------------------------------------------------------------------

static void start(struct connection *c, uint32_t slot) {
    memcpy(c->region + slot * tensors.slot_bytes, tensors.input, tensors.input_bytes);
    struct head head = {RUN, c->plan, slot, slot};
    c->started[slot] = now_ns();
    c->in_flight++;
    if (send(c->fd, &head, sizeof head, MSG_NOSIGNAL) != sizeof head) fail("cannot send: %s", strerror(errno));
}

static void finish(struct connection *c, const struct head *head) {
    uint64_t now = now_ns();
    uint32_t slot = head->tag;
    c->in_flight--;
    if (head->kind == FAILED) {
        result.errors++;
    } else {
        memcpy(tensors.output, c->region + slot * tensors.slot_bytes + tensors.output_at, tensors.output_bytes);
        result.answered++;
        if (now >= measure_from && now < measure_to) {
            if (result.measured == result.room) {
                result.room = result.room ? result.room * 2 : 1 << 16;
                result.latencies = realloc(result.latencies, result.room * sizeof *result.latencies);
            }
            result.latencies[result.measured++] = now - c->started[slot];
        }
    }
    if (now < measure_to) start(c, slot);
}

static void receive(struct connection *c) {
    ssize_t count = recv(c->fd, c->received + c->used, sizeof c->received - c->used, 0);
    if (count < 0 && errno == EAGAIN) return;
    if (count <= 0) fail("the server closed a connection");
    c->used += (size_t)count;
    size_t at = 0;
    while (c->used - at >= sizeof(struct head)) {
        struct head head;
        memcpy(&head, c->received + at, sizeof head);
        size_t length = sizeof head + (head.kind == LAYOUT || head.kind == FAILED ? head.extent : 0);
        if (length > sizeof c->received) fail("a message of %zu bytes", length);
        if (c->used - at < length) break;
        if (head.kind == FAILED && !result.errors)
            fprintf(stderr, "%.*s\n", (int)head.extent, (char *)c->received + at + sizeof head);
        at += length;
        if (head.kind == DONE || head.kind == FAILED) finish(c, &head);
    }
    memmove(c->received, c->received + at, c->used - at);
    c->used -= at;
}

static void run(void) {
    char json[2048];
    describe_plan(json, sizeof json);
    tensors.output = calloc(1, tensors.output_bytes + 1);
    epoll_fd = epoll_create1(0);
    struct connection *all = calloc((size_t)options.connections, sizeof *all);
    for (int i = 0; i < options.connections; i++) open_connection(all + i, json);
    measure_from = now_ns() + (uint64_t)(options.warm * 1e9);
    measure_to = measure_from + (uint64_t)(options.secs * 1e9);
    for (int i = 0; i < options.connections; i++)
        for (int slot = 0; slot < options.slots; slot++) start(all + i, (uint32_t)slot);
    struct epoll_event events[MAX_EVENTS];
    for (int open = 1; open && now_ns() < measure_to + DRAIN_SECS * 1000000000ull;) {
        int count = epoll_wait(epoll_fd, events, MAX_EVENTS, options.spin ? 0 : 100);
        for (int i = 0; i < count; i++) receive(events[i].data.ptr);
        open = 0;
        for (int i = 0; i < options.connections; i++) open += all[i].in_flight;
    }
}

// Command line and result ---------------------------------------------------------------------------------------------

static void read_data(void) {
    FILE *file = fopen(options.data_file, "rb");
    if (!file) fail("%s: %s", options.data_file, strerror(errno));
    fseek(file, 0, SEEK_END);
    tensors.input_bytes = (size_t)ftell(file);
    rewind(file);
    tensors.input = malloc(tensors.input_bytes + 1);
    if (fread(tensors.input, 1, tensors.input_bytes, file) != tensors.input_bytes) fail("cannot read the data");
    fclose(file);
}

static void parse_option(const char *name, const char *value) {
    if (!strcmp(name, "--addr")) options.address = value;
    else if (!strcmp(name, "--model")) options.model = value;
    else if (!strcmp(name, "--input")) options.input = value;
    else if (!strcmp(name, "--output")) options.output = value;
    else if (!strcmp(name, "--data")) options.data_file = value;
    else if (!strcmp(name, "--save")) options.save_file = value;
    else if (!strcmp(name, "--connections")) options.connections = atoi(value);
    else if (!strcmp(name, "--slots")) options.slots = atoi(value);
    else if (!strcmp(name, "--secs")) options.secs = atof(value);
    else if (!strcmp(name, "--warm")) options.warm = atof(value);
    else fail("unknown option %s", name);
}

static int compare(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static double quantile_us(double q) {
    return result.measured ? (double)result.latencies[(size_t)((double)(result.measured - 1) * q)] / 1e3 : 0;
}

static void report(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
                 (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    qsort(result.latencies, result.measured, sizeof *result.latencies, compare);
    printf("{\"measured\":%zu,\"total\":%lu,\"errors\":%lu,\"rps\":%.2f,\"min_us\":%.2f,\"p10_us\":%.2f,\"p50_us\":%.2f",
           result.measured, result.answered, result.errors, (double)result.measured / options.secs, quantile_us(0),
           quantile_us(.1), quantile_us(.5));
    printf(",\"p90_us\":%.2f,\"p99_us\":%.2f,\"max_us\":%.2f,\"client_cpu_s\":%.4f}\n", quantile_us(.9), quantile_us(.99),
           quantile_us(1), cpu);
}

int main(int count, char **arguments) {
    for (int i = 1; i < count; i++) {
        if (!strcmp(arguments[i], "--spin")) options.spin = 1;
        else if (i + 1 == count) fail("%s needs a value", arguments[i]);
        else parse_option(arguments[i], arguments[i + 1]), i++;
    }
    if (!options.address || !options.model || !options.input || !options.output || !options.data_file)
        fail("--addr, --model, --input, --output and --data are needed");
    if (options.connections < 1 || options.slots < 1 || options.slots > MAX_SLOTS) fail("1 to %d slots", MAX_SLOTS);
    read_data();
    run();
    if (options.save_file) {
        FILE *file = fopen(options.save_file, "wb");
        if (!file || fwrite(tensors.output, 1, tensors.output_bytes, file) != tensors.output_bytes) fail("cannot save");
        fclose(file);
    }
    report();
    return 0;
}
