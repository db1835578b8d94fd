/* The PAC of the benchmark: answers control connections and GRE, keeps its half of the table.
 *
 *     server TABLE ADDRESS
 *
 * Prints "ready".  On a line of input it prints its counts as JSON; at the end of
 * input it exits.  Call IDs are unique at this address, as the kernel helper,
 * pptpd and accel-ppp all have it.
 */
#define _GNU_SOURCE
#include "calls.h"
#include <netinet/tcp.h>
#include <sys/epoll.h>

struct connection {
    uint32_t external;
    uint32_t first, beyond; /* its calls' slots: a range, which the client fills one by one */
    uint16_t used;
    uint8_t octets[512];
};

static struct connection *connections; /* by descriptor */
static uint32_t slot_of_id[65536];     /* slot + 1; 0 is free */
static uint16_t id_of_slot[SLOTS];     /* 0: no call */
static struct call *calls;
static uint32_t own_address;
static uint16_t last_id;
static int gre;
static unsigned long answered, echoes, gre_packets, wrong, unsent;

static unsigned fresh_id(void)
{
    do
        last_id++;
    while (!last_id || slot_of_id[last_id]);
    return last_id;
}

static void release(unsigned slot)
{
    slot_of_id[id_of_slot[slot]] = 0;
    id_of_slot[slot] = 0;
}

static void release_all(const struct connection *c)
{
    for (unsigned slot = c->first; slot < c->beyond; slot++)
        release(slot);
}

static void answer(int fd, struct connection *c, const uint8_t *m, unsigned type)
{
    uint8_t out[256];
    unsigned length = 0;

    if (type == SCCRQ) {
        length = start_message(out, SCCRP);
    } else if (type == ECHO_REQUEST) {
        length = begin_message(out, ECHO_REPLY);
        memcpy(out + 12, m + 12, 4);
        out[16] = 1;
        echoes++;
    } else if (type == OCRQ) {
        char number[65] = {0};
        memcpy(number, m + PHONE, 64);
        unsigned slot = (unsigned)strtoul(number, NULL, 10) % SLOTS;
        if (c->first == c->beyond)
            c->first = slot;
        c->beyond = slot + 1;
        release(slot);
        id_of_slot[slot] = (uint16_t)fresh_id();
        slot_of_id[id_of_slot[slot]] = slot + 1;
        struct call *call = &calls[slot];
        call->external = c->external;
        call->server = own_address;
        call->mapped_id = (uint16_t)get16(m + 12);
        call->server_id = id_of_slot[slot];
        call->flags |= HAVE_SERVER;
        length = begin_message(out, OCRP);
        put16(out + 12, call->server_id);
        put16(out + 14, call->mapped_id);
        out[16] = 1;
        put32(out + 20, 10000000);
        put16(out + 24, 64);
        answered++;
    } else if (type == CCRQ) {
        unsigned slot = c->first;
        while (slot < c->beyond && calls[slot].mapped_id != get16(m + 12))
            slot++;
        if (slot < c->beyond) {
            length = begin_message(out, CDN);
            put16(out + 12, id_of_slot[slot]);
            out[14] = 4;
            release(slot);
        }
    }
    if (length && send(fd, out, length, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)length)
        unsent++;
}

static int serve(int fd)
{
    struct connection *c = &connections[fd];
    for (;;) {
        ssize_t n = recv(fd, c->octets + c->used, sizeof c->octets - c->used, MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN)
            return 1;
        if (n <= 0)
            return 0;
        c->used = (uint16_t)(c->used + n);
        unsigned at = 0;
        while (c->used - at >= 12) {
            unsigned length = get16(c->octets + at), type = get16(c->octets + at + 8);
            if (length < 12 || length > sizeof c->octets)
                return 0;
            if (c->used - at < length)
                break;
            answer(fd, c, c->octets + at, type);
            at += length;
        }
        memmove(c->octets, c->octets + at, c->used - at);
        c->used = (uint16_t)(c->used - at);
    }
}

static void serve_gre(void)
{
    uint8_t in[2048], out[HELLO_LENGTH];
    ssize_t n;
    while ((n = recv(gre, in, sizeof in, MSG_DONTWAIT)) > 0) {
        if (n < HELLO_LENGTH)
            continue;
        uint32_t entry = slot_of_id[get16(in + GRE_AT + 6)];
        unsigned slot = get32(in + GRE_PAYLOAD_AT + 10);
        gre_packets++;
        if (!entry || slot != entry - 1 || memcmp(in + 12, &calls[slot].external, 4)) {
            wrong++;
            continue;
        }
        gre_hello(out, own_address, calls[slot].external, calls[slot].mapped_id, slot);
        if (!gre_send(gre, out, sizeof out))
            unsent++;
    }
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    calls = map_calls(argv[1]);
    own_address = address(argv[2]);
    raise_descriptor_limit();
    connections = calloc(65536, sizeof *connections);

    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = own_address};
    gre = gre_socket();
    if (bind(gre, (struct sockaddr *)&here, sizeof here))
        die("bind the GRE socket");
    here.sin_port = htons(1723);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 4096))
        die("listen on port 1723");

    int ep = epoll_create1(0);
    int always[] = {0, listener, gre};
    for (unsigned i = 0; i < 3; i++) {
        struct epoll_event e = {.events = EPOLLIN, .data.fd = always[i]};
        epoll_ctl(ep, EPOLL_CTL_ADD, always[i], &e);
    }
    puts("ready");
    fflush(stdout);

    for (;;) {
        struct epoll_event events[256];
        int n = epoll_wait(ep, events, 256, -1);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == 0) {
                char line[64];
                if (!fgets(line, sizeof line, stdin))
                    return 0;
                printf("{\"answered\": %lu, \"echoes\": %lu, \"gre\": %lu, \"wrong\": %lu,"
                       " \"unsent\": %lu}\n", answered, echoes, gre_packets, wrong, unsent);
                fflush(stdout);
            } else if (fd == gre) {
                serve_gre();
            } else if (fd == listener) {
                struct sockaddr_in from;
                socklen_t size = sizeof from;
                int peer;
                while ((peer = accept4(listener, (struct sockaddr *)&from, &size, SOCK_NONBLOCK)) >= 0) {
                    struct epoll_event e = {.events = EPOLLIN, .data.fd = peer};
                    connections[peer].external = from.sin_addr.s_addr;
                    connections[peer].used = 0;
                    connections[peer].first = connections[peer].beyond = 0;
                    epoll_ctl(ep, EPOLL_CTL_ADD, peer, &e);
                    size = sizeof from;
                }
            } else if (!serve(fd)) {
                release_all(&connections[fd]);
                close(fd);
            }
        }
    }
}
