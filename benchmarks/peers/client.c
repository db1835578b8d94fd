/* The PNSs of the benchmark: an address and a control connection of its own for each call, or for
 * as many calls as are asked for.
 *
 *     client TABLE FIRST-ADDRESS SERVER
 *
 * Prints "ready", then carries out one command per line of input and answers each
 * with one line of JSON; exits at the end of input.
 *
 *     dial FIRST COUNT INFLIGHT [EACH [PACE]]
 *                                 whole set-ups of the slots FIRST..FIRST+COUNT-1: TCP, start
 *                                 messages, call messages, one GRE packet each way; EACH calls
 *                                 (1) one after another on a connection, at most PACE connections
 *                                 a second (0: as fast as INFLIGHT of them go)
 *     clear FIRST COUNT INFLIGHT  Call-Clear-Request, Call-Disconnect-Notify, then a reset; of
 *                                 slots that have a connection each
 *     reset FIRST COUNT EACH      a reset of the connections that were dialled so
 *     echo SLOT COUNT             Echo-Request and Echo-Reply, one after another; ends early when
 *                                 the next line waits, which may be `enough` and has no answer
 *
 * Times are microseconds of CLOCK_MONOTONIC; CPU is this process's own, in nanoseconds.
 */
#define _GNU_SOURCE
#include "calls.h"
#include <linux/filter.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>

#define PATIENCE_MS 8000 /* when nothing comes to its end for so long, what is pending has failed */

enum stage { FREE, CONNECTING, STARTING, CALLING, GRE, UP, CLEARING };
static const char *const STAGE[] = {"free", "connecting", "starting", "calling", "gre", "up", "clearing"};

/* A connection, known by the slot of its first call, whose number gives the client's address. */
struct dialer {
    int fd;
    enum stage stage;
    unsigned current, last; /* the slot that is being set up, and the last one to be */
    unsigned used;
    uint64_t since;
    uint8_t octets[256];
};

static struct dialer dialers[SLOTS];
static struct call *calls;
static uint32_t first_address, server;
static int ep, gre;
static double *took;
static unsigned done, failed, pending;
static unsigned long wrong;

static void drop(struct dialer *d)
{
    struct linger now = {.l_onoff = 1};
    setsockopt(d->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(d->fd);
    d->stage = FREE;
}

static void give_up(struct dialer *d)
{
    drop(d);
    failed += d->last + 1 - d->current; /* with it go those that were to follow */
    pending--;
}

static void note_time(const struct dialer *d)
{
    took[done++] = (double)(now_ns(CLOCK_MONOTONIC) - d->since) / 1e3;
}

static void say(struct dialer *d, const uint8_t *m, unsigned length, enum stage next)
{
    if (send(d->fd, m, length, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)length)
        give_up(d);
    else
        d->stage = next;
}

static void begin_call(struct call *call, unsigned slot, uint32_t client)
{
    memset(call, 0, sizeof *call);
    call->client = client;
    /* Clients count from a small number, so many of them use the same one. */
    call->client_id = (uint16_t)(1 + slot % 500);
}

static void request_call(struct dialer *d)
{
    uint8_t m[256];
    unsigned length = begin_message(m, OCRQ);
    put16(m + 12, calls[d->current].client_id);
    put16(m + 14, d->current & 0xffff);
    put32(m + 16, 2400);
    put32(m + 20, 10000000);
    put32(m + 24, 3);
    put32(m + 28, 3);
    put16(m + 32, 64);
    put16(m + 36, (unsigned)snprintf((char *)m + PHONE, 64, "%u", d->current));
    say(d, m, length, CALLING);
}

/* The call that was being set up is up: on to the connection's next one, if there is one. */
static void came_up(struct dialer *d)
{
    note_time(d);
    if (d->current == d->last) {
        pending--;
        d->stage = UP;
        return;
    }
    uint32_t client = calls[d->current].client;
    d->current++;
    d->since = now_ns(CLOCK_MONOTONIC);
    begin_call(&calls[d->current], d->current, client);
    request_call(d);
}

static void connect_slots(unsigned slot, unsigned each)
{
    struct dialer *d = &dialers[slot];
    struct call *call = &calls[slot];
    struct sockaddr_in from = {.sin_family = AF_INET}, to = {.sin_family = AF_INET};
    int on = 1;

    begin_call(call, slot, htonl(ntohl(first_address) + slot));
    d->current = slot;
    d->last = slot + each - 1;
    d->since = now_ns(CLOCK_MONOTONIC);
    d->used = 0;
    d->stage = CONNECTING;
    pending++;
    d->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (d->fd < 0)
        die("open a socket for a call");
    setsockopt(d->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    setsockopt(d->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    from.sin_addr.s_addr = call->client;
    to.sin_addr.s_addr = server;
    to.sin_port = htons(1723);
    if (bind(d->fd, (struct sockaddr *)&from, sizeof from))
        die("bind a client address");
    struct epoll_event e = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.u32 = slot};
    if ((connect(d->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) ||
        epoll_ctl(ep, EPOLL_CTL_ADD, d->fd, &e))
        give_up(d);
}

static void clear_slot(unsigned slot, unsigned each)
{
    (void)each;
    struct dialer *d = &dialers[slot];
    uint8_t m[16];
    if (d->stage != UP)
        return;
    d->since = now_ns(CLOCK_MONOTONIC);
    pending++;
    begin_message(m, CCRQ);
    put16(m + 12, calls[slot].client_id);
    say(d, m, sizeof m, CLEARING);
}

static void heard(unsigned slot, const uint8_t *in, unsigned type)
{
    struct dialer *d = &dialers[slot];
    struct call *call = &calls[d->current];
    uint8_t m[256];

    if (d->stage == STARTING && type == SCCRP) {
        request_call(d);
    } else if (d->stage == CALLING && type == OCRP) {
        if (in[16] != 1 || get16(in + 14) != call->client_id) {
            wrong++;
            give_up(d);
            return;
        }
        call->server_id = (uint16_t)get16(in + 12);
        call->server = server;
        gre_hello(m, call->client, server, call->server_id, d->current);
        d->stage = GRE;
        if (!gre_send(gre, m, HELLO_LENGTH))
            give_up(d);
    } else if (d->stage == CLEARING && type == CDN) {
        calls[slot].flags = 0;
        note_time(d);
        pending--;
        drop(d);
    }
}

static void serve(unsigned slot, uint32_t events)
{
    struct dialer *d = &dialers[slot];
    uint8_t m[256];

    if (d->stage == FREE)
        return;
    if (d->stage == CONNECTING && events & EPOLLOUT) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(d->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error)
            give_up(d);
        else
            say(d, m, start_message(m, SCCRQ), STARTING);
        return;
    }
    while (d->stage != FREE) {
        ssize_t n = recv(d->fd, d->octets + d->used, sizeof d->octets - d->used, MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0) {
            if (d->stage == UP)
                drop(d);
            else
                give_up(d);
            return;
        }
        d->used += (unsigned)n;
        unsigned length;
        while (d->stage != FREE && d->used >= 12 && (length = get16(d->octets)) <= d->used) {
            if (length < 12) {
                give_up(d);
                return;
            }
            heard(slot, d->octets, get16(d->octets + 8));
            d->used -= length;
            memmove(d->octets, d->octets + length, d->used);
        }
    }
}

static void serve_gre(void)
{
    uint8_t in[2048];
    ssize_t n;
    while ((n = recv(gre, in, sizeof in, MSG_DONTWAIT)) > 0) {
        if (n < HELLO_LENGTH)
            continue;
        uint32_t to;
        memcpy(&to, in + 16, 4);
        unsigned first = ntohl(to) - ntohl(first_address), slot = get32(in + GRE_PAYLOAD_AT + 10);
        if (first >= SLOTS || slot >= SLOTS || calls[slot].client != to ||
            get16(in + GRE_AT + 6) != calls[slot].client_id || memcmp(in + 12, &server, 4)) {
            wrong++;
            continue;
        }
        struct dialer *d = &dialers[first];
        if (d->stage == GRE && d->current == slot) {
            calls[slot].flags |= HAVE_CLIENT;
            came_up(d);
        }
    }
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double quantile(double q)
{
    return done ? took[(unsigned)(q * (done - 1) + 0.5)] : 0;
}

static void print_times(const char *head)
{
    qsort(took, done, sizeof *took, by_size);
    double sum = 0;
    for (unsigned i = 0; i < done; i++)
        sum += took[i];
    printf("{%s\"done\": %u, \"failed\": %u, \"wrong\": %lu, \"mean_us\": %.2f, \"p10_us\": %.2f,"
           " \"p50_us\": %.2f, \"p90_us\": %.2f, \"p99_us\": %.2f, \"max_us\": %.2f}\n", head, done,
           failed, wrong, done ? sum / done : 0, quantile(.1), quantile(.5), quantile(.9),
           quantile(.99), quantile(1));
    fflush(stdout);
}

/* Begin `count` slots, `each` of them together, at most `inflight` of those at a time and `pace` a
 * second, and wait for them all. */
static void run(void (*begin)(unsigned, unsigned), unsigned first, unsigned count,
                unsigned inflight, unsigned each, unsigned pace)
{
    struct epoll_event events[256];
    char head[512];
    unsigned begun = 0, seen = 0;
    uint64_t cpu = now_ns(CLOCK_PROCESS_CPUTIME_ID), start = now_ns(CLOCK_MONOTONIC), progress = start;
    unsigned stuck[7] = {0};

    done = failed = pending = 0;
    wrong = 0;
    for (;;) {
        while (begun < count && pending < inflight &&
               (!pace || (now_ns(CLOCK_MONOTONIC) - start) / 1e9 * pace * each >= begun)) {
            unsigned together = count - begun < each ? count - begun : each;
            begin(first + begun, together);
            begun += together;
        }
        if (!pending && begun == count)
            break;
        int waits_for_time = pace && begun < count && pending < inflight;
        int n = epoll_wait(ep, events, 256, waits_for_time ? 1 : PATIENCE_MS);
        for (int i = 0; i < n; i++) {
            if (events[i].data.u32 == UINT32_MAX)
                serve_gre();
            else
                serve(events[i].data.u32, events[i].events);
        }
        uint64_t now = now_ns(CLOCK_MONOTONIC);
        if (seen != done + failed || waits_for_time)
            progress = now;
        seen = done + failed;
        if (now - progress > PATIENCE_MS * 1000000ull)
            for (unsigned s = first; s < first + begun; s += each)
                if (dialers[s].stage != FREE && dialers[s].stage != UP) {
                    stuck[dialers[s].stage]++;
                    give_up(&dialers[s]);
                }
    }
    uint64_t end = now_ns(CLOCK_MONOTONIC);
    int used = snprintf(head, sizeof head, "\"seconds\": %.6f, \"cpu_ns\": %llu, \"stuck\": {",
                        (double)(end - start) / 1e9,
                        (unsigned long long)(now_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu));
    const char *comma = "";
    for (int s = CONNECTING; s <= CLEARING; s++)
        if (stuck[s]) {
            used += snprintf(head + used, sizeof head - (unsigned)used, "%s\"%s\": %u", comma,
                             STAGE[s], stuck[s]);
            comma = ", ";
        }
    snprintf(head + used, sizeof head - (unsigned)used, "}, ");
    print_times(head);
}

/* One request at a time on a blocking socket: what a single message waits. */
static void echo(unsigned slot, unsigned count)
{
    int fd = dialers[slot].fd;
    uint8_t m[16], in[20];
    char head[64];
    uint64_t cpu = now_ns(CLOCK_PROCESS_CPUTIME_ID);

    done = failed = 0;
    wrong = 0;
    unsigned begun = 0;
    for (unsigned i = 0; i < count && dialers[slot].stage == UP; i++) {
        struct pollfd more = {.fd = 0, .events = POLLIN};
        if (poll(&more, 1, 0) > 0)
            break;
        begun++;
        begin_message(m, ECHO_REQUEST);
        put32(m + 12, i);
        uint64_t start = now_ns(CLOCK_MONOTONIC);
        unsigned got = 0;
        if (send(fd, m, sizeof m, MSG_NOSIGNAL) != sizeof m)
            break;
        while (got < sizeof in) {
            struct pollfd p = {.fd = fd, .events = POLLIN};
            if (poll(&p, 1, PATIENCE_MS) <= 0)
                break;
            ssize_t n = recv(fd, in + got, sizeof in - got, 0);
            if (n <= 0)
                break;
            got += (unsigned)n;
        }
        if (got < sizeof in)
            break;
        if (get16(in + 8) != ECHO_REPLY || get32(in + 12) != i)
            wrong++;
        took[done++] = (double)(now_ns(CLOCK_MONOTONIC) - start) / 1e3;
    }
    failed = dialers[slot].stage == UP ? begun - done : count;
    snprintf(head, sizeof head, "\"cpu_ns\": %llu, ",
             (unsigned long long)(now_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu));
    print_times(head);
}

/* Of all GRE in this namespace, take what is for this bank's 65,536 addresses. */
static void take_own_addresses_only(int fd)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 16),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0xffff0000),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ntohl(first_address), 0, 1),
        BPF_STMT(BPF_RET | BPF_K, 0xffff),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    struct sock_fprog program = {.len = 5, .filter = code};
    if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program))
        die("filter the GRE socket");
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    calls = map_calls(argv[1]);
    first_address = address(argv[2]);
    server = address(argv[3]);
    raise_descriptor_limit();
    took = calloc(SLOTS, sizeof *took);
    ep = epoll_create1(0);
    gre = gre_socket();
    take_own_addresses_only(gre);
    struct epoll_event e = {.events = EPOLLIN, .data.u32 = UINT32_MAX};
    epoll_ctl(ep, EPOLL_CTL_ADD, gre, &e);
    puts("ready");
    fflush(stdout);

    char line[128], command[16];
    unsigned first, count, inflight;
    while (fgets(line, sizeof line, stdin)) {
        unsigned each = 1, pace = 0;
        int n = sscanf(line, "%15s %u %u %u %u %u", command, &first, &count, &inflight, &each, &pace);
        if (n == 1 && !strcmp(command, "enough")) /* what ended the echoes before it */
            continue;
        if (n >= 4 && each && first + count <= SLOTS && !strcmp(command, "dial"))
            run(connect_slots, first, count, inflight, each, pace);
        else if (n == 4 && first + count <= SLOTS && !strcmp(command, "clear"))
            run(clear_slot, first, count, inflight, 1, 0);
        else if (n == 4 && inflight && first + count <= SLOTS && !strcmp(command, "reset")) {
            for (unsigned slot = first; slot < first + count; slot += inflight)
                if (dialers[slot].stage != FREE)
                    drop(&dialers[slot]);
            puts("{}");
            fflush(stdout);
        } else if (n == 3 && first < SLOTS && count <= SLOTS && !strcmp(command, "echo"))
            echo(first, count);
        else {
            puts("{\"error\": \"no such command\"}");
            fflush(stdout);
        }
    }
    return 0;
}
