/* What the two generators share: the calls that are up, the heads of their packets, the ring in
 * which they arrive, and the check of every one.
 *
 * A program that includes this has `seen_packet` called for each packet that arrives.
 */
#ifndef PACKETS_H
#define PACKETS_H

#include "calls.h"
#include <linux/ethtool.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>

#define TOS 0x20            /* marks our packets: the receivers' ingress drops them after the tap */
#define MAGIC 0x50505450
#define RING_FRAMES 16384
#define RING_FRAME 256      /* octets; holds the start of a packet */
#define PATIENCE_NS 500000000u
#define HEAD_ROOM 64        /* octets of a frame that differ from call to call, at most */

/* What one packet starts with: Ethernet, IP, GRE, then magic, table and slot.  Behind that there
 * may be a time, in nanoseconds. */
#define HEAD (14 + GRE_PAYLOAD_AT + 12)
#define SNAP (HEAD + 8)
_Static_assert(HEAD <= HEAD_ROOM, "the head fits the map");
struct head {
    uint8_t octets[HEAD_ROOM];
};

struct ready_call {
    struct call call;
    uint32_t table, slot;
};

static struct call *tables[16];
static struct ready_call *ready;
static unsigned ready_count;
static int inbound;
static uint64_t received, wrong;

static void enter(const char *netns)
{
    int fd = open(netns, O_RDONLY);
    if (fd < 0 || setns(fd, CLONE_NEWNET))
        die(netns);
    close(fd);
}

static void load_tables(int count, char **specs)
{
    for (int t = 0; t < count; t++) {
        char *colon = strrchr(specs[t], ':');
        if (!colon)
            exit(2);
        *colon = 0;
        unsigned wanted = (unsigned)strtoul(colon + 1, NULL, 10);
        tables[t] = map_calls(specs[t]);
        ready = realloc(ready, (ready_count + wanted) * sizeof *ready);
        for (unsigned s = 0; s < SLOTS && wanted; s++)
            if ((tables[t][s].flags & 3) == 3) {
                ready[ready_count++] = (struct ready_call){tables[t][s], (uint32_t)t, s};
                wanted--;
            }
    }
}

static uint8_t *receiving_ring(const char *interface, int *fd)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 12),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0x08004500 | TOS, 0, 3),
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 23),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IPPROTO_GRE, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SNAP),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    struct sock_fprog program = {.len = 6, .filter = code};
    struct tpacket_req ring = {
        .tp_block_size = 1 << 18,
        .tp_block_nr = RING_FRAMES * RING_FRAME >> 18,
        .tp_frame_size = RING_FRAME,
        .tp_frame_nr = RING_FRAMES,
    };
    int version = TPACKET_V2, on = 1;
    struct sockaddr_ll from = {
        .sll_family = AF_PACKET,
        .sll_protocol = htons(ETH_P_ALL), /* taps come before the ingress hook that drops */
        .sll_ifindex = (int)if_nametoindex(interface),
    };
    *fd = socket(AF_PACKET, SOCK_RAW, 0);
    if (*fd < 0 || !from.sll_ifindex ||
        setsockopt(*fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) ||
        setsockopt(*fd, SOL_PACKET, PACKET_VERSION, &version, sizeof version) ||
        setsockopt(*fd, SOL_PACKET, PACKET_RX_RING, &ring, sizeof ring))
        die(interface);
    setsockopt(*fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof on);
    uint8_t *at = mmap(NULL, RING_FRAMES * RING_FRAME, PROT_READ | PROT_WRITE,
                       MAP_SHARED | MAP_POPULATE, *fd, 0);
    if (at == MAP_FAILED || bind(*fd, (struct sockaddr *)&from, sizeof from))
        die("map the receiving ring");
    return at;
}

static void check(const uint8_t *frame, unsigned length)
{
    const uint8_t *ip = frame + 14, *payload = ip + GRE_PAYLOAD_AT;
    uint32_t source, destination, want_source, want_destination;
    unsigned want_key, table, slot;

    received++;
    if (length < SNAP || get32(payload) != MAGIC || (table = get32(payload + 4)) >= 16 ||
        !tables[table] || (slot = get32(payload + 8)) >= SLOTS) {
        wrong++;
        return;
    }
    const struct call *c = &tables[table][slot];
    if (inbound) {
        want_source = c->server;
        want_destination = c->client;
        want_key = c->client_id;
    } else {
        want_source = c->external;
        want_destination = c->server;
        want_key = c->server_id;
    }
    memcpy(&source, ip + 12, 4);
    memcpy(&destination, ip + 16, 4);
    if (source != want_source || destination != want_destination ||
        get16(ip + GRE_AT + 6) != want_key || ip_checksum(ip))
        wrong++;
}

/* Check what has arrived; have each packet seen, with the kernel's time of it (CLOCK_REALTIME). */
static void seen_packet(const uint8_t *frame, uint64_t at);

static void drain(uint8_t *ring, unsigned *next)
{
    for (;;) {
        struct tpacket2_hdr *h = (struct tpacket2_hdr *)(ring + (size_t)*next * RING_FRAME);
        if (!(__atomic_load_n(&h->tp_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER))
            return;
        const uint8_t *frame = (const uint8_t *)h + h->tp_mac;
        check(frame, h->tp_snaplen);
        seen_packet(frame, (uint64_t)h->tp_sec * 1000000000u + h->tp_nsec);
        __atomic_store_n(&h->tp_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
        *next = (*next + 1) % RING_FRAMES;
    }
}

/* Take what arrives until `want` packets have, or until none has for PATIENCE_NS. */
static void await(uint8_t *ring, unsigned *next, uint64_t want)
{
    uint64_t progress = now_ns(CLOCK_MONOTONIC), seen = received;
    for (;;) {
        drain(ring, next);
        uint64_t now = now_ns(CLOCK_MONOTONIC);
        if (received >= want || now - progress > PATIENCE_NS)
            return;
        if (received != seen)
            progress = now;
        seen = received;
        struct timespec nap = {.tv_nsec = 100000};
        nanosleep(&nap, NULL);
    }
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double middle(double *values, unsigned count)
{
    qsort(values, count, sizeof *values, by_size);
    return count ? values[count / 2] : 0;
}

static int read_mac(const char *text, uint8_t *mac)
{
    return sscanf(text, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", mac, mac + 1, mac + 2, mac + 3, mac + 4,
                  mac + 5) == 6;
}

static struct head *heads_of_calls(const uint8_t *source, const uint8_t *destination, unsigned size)
{
    struct head *heads = calloc(ready_count, sizeof *heads);
    for (unsigned i = 0; i < ready_count; i++) {
        const struct call *c = &ready[i].call;
        uint8_t *p = heads[i].octets;
        memcpy(p, destination, 6);
        memcpy(p + 6, source, 6);
        put16(p + 12, ETH_P_IP);
        if (inbound)
            gre_headers(p + 14, c->server, c->external, c->mapped_id, size, TOS);
        else
            gre_headers(p + 14, c->client, c->server, c->server_id, size, TOS);
        put32(p + 14 + GRE_PAYLOAD_AT, MAGIC);
        put32(p + 18 + GRE_PAYLOAD_AT, ready[i].table);
        put32(p + 22 + GRE_PAYLOAD_AT, ready[i].slot);
    }
    return heads;
}

/* In NAPI, with GRO: a veth takes redirected frames only while its receiving end polls. */
static void receive_like_a_card(const char *interface)
{
    struct ethtool_value on = {.cmd = ETHTOOL_SGRO, .data = 1};
    struct ifreq request = {.ifr_data = (char *)&on};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    strncpy(request.ifr_name, interface, IFNAMSIZ - 1);
    if (ioctl(fd, SIOCETHTOOL, &request))
        die("switch generic receive offload on");
    close(fd);
}

static void run_on(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof set, &set);
}

static unsigned ring_drops(int fd)
{
    struct tpacket_stats stats = {0};
    socklen_t size = sizeof stats;
    getsockopt(fd, SOL_PACKET, PACKET_STATISTICS, &stats, &size);
    return stats.tp_drops;
}

#endif
