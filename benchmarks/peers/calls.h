/* What the peers share: the call table on disk, and the wire format they need.
 *
 * A "bank" is one client process, one server process and one call table.  A
 * call is a slot of its bank's table.  The client knows the slot by its own
 * address (one address per call), the server by the phone number of the
 * Outgoing-Call-Request, which no NAT touches; so each fills its half without
 * asking the other, and the generator reads both.
 */
#ifndef CALLS_H
#define CALLS_H

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SLOTS 65536
#define HAVE_CLIENT 1 /* the client's half is filled: its reply and its GRE packet came */
#define HAVE_SERVER 2

/* Addresses in network order, call IDs in host order. */
struct call {
    uint32_t client;
    uint32_t external; /* the client's address as the server sees it */
    uint32_t server;
    uint16_t client_id;
    uint16_t mapped_id; /* the client's call ID as the server sees it */
    uint16_t server_id;
    uint16_t flags;
};

static inline void die(const char *doing)
{
    fprintf(stderr, "%s: %s\n", doing, strerror(errno));
    exit(1);
}

static inline struct call *map_calls(const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    if (fd < 0 || ftruncate(fd, SLOTS * sizeof(struct call)))
        die(path);
    void *at = mmap(NULL, SLOTS * sizeof(struct call), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        die("map the call table");
    close(fd);
    return at;
}

static inline uint32_t address(const char *text)
{
    struct in_addr a;
    if (inet_pton(AF_INET, text, &a) != 1) {
        fprintf(stderr, "not an IPv4 address: %s\n", text);
        exit(2);
    }
    return a.s_addr;
}

static inline uint64_t now_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline void raise_descriptor_limit(void)
{
    struct rlimit r;
    getrlimit(RLIMIT_NOFILE, &r);
    r.rlim_cur = r.rlim_max;
    setrlimit(RLIMIT_NOFILE, &r);
}

static inline void put16(uint8_t *at, unsigned v)
{
    at[0] = (uint8_t)(v >> 8);
    at[1] = (uint8_t)v;
}

static inline void put32(uint8_t *at, uint32_t v)
{
    put16(at, v >> 16);
    put16(at + 2, v & 0xffff);
}

static inline unsigned get16(const uint8_t *at)
{
    return (unsigned)at[0] << 8 | at[1];
}

static inline uint32_t get32(const uint8_t *at)
{
    return (uint32_t)get16(at) << 16 | get16(at + 2);
}

/* Control message types and lengths of RFC 2637 section 2. */
enum { SCCRQ = 1, SCCRP = 2, ECHO_REQUEST = 5, ECHO_REPLY = 6, OCRQ = 7, OCRP = 8, CCRQ = 12, CDN = 13 };
static const uint8_t MESSAGE_LENGTH[] = {0, 156, 156, 16, 16, 16, 20, 168, 32, 220, 24, 28, 16, 148, 40, 24};
#define PHONE 40 /* octet of the Phone Number within an Outgoing-Call-Request */

static inline unsigned begin_message(uint8_t *m, unsigned type)
{
    unsigned length = MESSAGE_LENGTH[type];
    memset(m, 0, length);
    put16(m, length);
    put16(m + 2, 1);
    put32(m + 4, 0x1A2B3C4D);
    put16(m + 8, type);
    return length;
}

static inline unsigned start_message(uint8_t *m, unsigned type)
{
    unsigned length = begin_message(m, type);
    put16(m + 12, 0x0100);
    if (type == SCCRP)
        m[14] = 1;
    put32(m + 16, 3);
    put32(m + 20, 3);
    put16(m + 24, type == SCCRP ? 1 : 0);
    memcpy(m + 28, "bench", 5);
    memcpy(m + 92, "bench", 5);
    return length;
}

/* IPv4 and enhanced GRE headers (RFC 2637 section 4.1: K and S set, version 1). */
#define GRE_AT 20
#define GRE_HEADER 12
#define GRE_PAYLOAD_AT (GRE_AT + GRE_HEADER)

static inline uint16_t ip_checksum(const uint8_t *header)
{
    uint32_t sum = 0;
    for (int i = 0; i < 20; i += 2)
        sum += get16(header + i);
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

static inline void gre_headers(uint8_t *p, uint32_t source, uint32_t destination, unsigned key,
                               unsigned total, unsigned tos)
{
    memset(p, 0, GRE_PAYLOAD_AT);
    p[0] = 0x45;
    p[1] = (uint8_t)tos;
    put16(p + 2, total);
    put16(p + 6, 0x4000);
    p[8] = 64;
    p[9] = IPPROTO_GRE;
    memcpy(p + 12, &source, 4);
    memcpy(p + 16, &destination, 4);
    put16(p + 10, ip_checksum(p));
    put16(p + GRE_AT, 0x3001);
    put16(p + GRE_AT + 2, 0x880B);
    put16(p + GRE_AT + 4, total - GRE_PAYLOAD_AT);
    put16(p + GRE_AT + 6, key);
    put32(p + GRE_AT + 8, 1);
}

/* The set-up's GRE packet carries a PPP LCP Configure-Request and the slot. */
#define HELLO_LENGTH (GRE_PAYLOAD_AT + 16)

static inline void gre_hello(uint8_t *p, uint32_t source, uint32_t destination, unsigned key,
                             unsigned slot)
{
    static const uint8_t lcp[] = {0xff, 0x03, 0xc0, 0x21, 1, 1, 0, 10, 5, 6};
    gre_headers(p, source, destination, key, HELLO_LENGTH, 0);
    memset(p + GRE_PAYLOAD_AT, 0, 16);
    memcpy(p + GRE_PAYLOAD_AT, lcp, sizeof lcp);
    put32(p + GRE_PAYLOAD_AT + 10, slot);
}

/* A raw GRE socket that never blocks and has room for a burst. */
static inline int gre_socket(void)
{
    int fd = socket(AF_INET, SOCK_RAW | SOCK_NONBLOCK, IPPROTO_GRE);
    int on = 1, room = 8 << 20;
    if (fd < 0 || setsockopt(fd, IPPROTO_IP, IP_HDRINCL, &on, sizeof on))
        die("open a raw GRE socket");
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room);
    return fd;
}

static inline int gre_send(int fd, const uint8_t *packet, unsigned length)
{
    struct sockaddr_in to = {.sin_family = AF_INET};
    memcpy(&to.sin_addr, packet + 16, 4);
    return sendto(fd, packet, length, 0, (struct sockaddr *)&to, sizeof to) == (ssize_t)length;
}

#endif
