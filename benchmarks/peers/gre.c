/* Sends GRE of random calls into a router, takes what comes out, and checks every packet.
 *
 *     gre SEND-NETNS SEND-IF PEER-NETNS PEER-IF RECEIVE-NETNS RECEIVE-IF SOURCE-MAC
 *         DESTINATION-MAC DIRECTION SIZE BURSTS BURST CPU KSOFTIRQD TABLE:CALLS...
 *
 * PEER is the other end of the sender's veth, the router's device.  DIRECTION is in or out; SIZE
 * counts the octets of the IP packet.  KSOFTIRQD is the process ID of that CPU's ksoftirqd, or 0.
 *
 * Packets go in BURSTS bursts of at most BURST and of some 20 ms, each of which has arrived before
 * the next one starts: a queue that holds a burst loses nothing, and what is missing was lost by
 * the thing measured.  The cost is the cheapest burst's: disturbance only ever adds.
 *
 * A burst is one system call, in whose CPU time the packets cross the router, up to the receiving
 * socket's ring or up to a queue; that CPU time is the cost of the whole path, whatever else the
 * machine does meanwhile.  The rate comes from the kernel's time stamps of the first and the last
 * packet of a burst, so neither the set-up of a burst nor this program's naps count.
 */
#define _GNU_SOURCE
#include "calls.h"
#include "live_frames.h"
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <sched.h>

#define TOS 0x20            /* marks our packets: the receivers' ingress drops them after the tap */
#define MAGIC 0x50505450
#define RING_FRAMES 16384
#define RING_FRAME 256      /* octets; holds the start of a packet */
#define PATIENCE_NS 500000000u
#define MOST_BURSTS 1000
#define BURST_NS 20e6
#define PILOT 128 /* packets that show how many make a burst of a reasonable length */

/* What one packet starts with: Ethernet, IP, GRE, then magic, table and slot. */
#define HEAD (14 + GRE_PAYLOAD_AT + 12)
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
        BPF_STMT(BPF_RET | BPF_K, HEAD),
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
    if (length < HEAD || get32(payload) != MAGIC || (table = get32(payload + 4)) >= 16 ||
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

/* Check what has arrived; note when the first and the last of a burst did. */
static void drain(uint8_t *ring, unsigned *next, uint64_t *first, uint64_t *last)
{
    for (;;) {
        struct tpacket2_hdr *h = (struct tpacket2_hdr *)(ring + (size_t)*next * RING_FRAME);
        if (!(__atomic_load_n(&h->tp_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER))
            return;
        *last = (uint64_t)h->tp_sec * 1000000000u + h->tp_nsec;
        if (!*first)
            *first = *last;
        check((const uint8_t *)h + h->tp_mac, h->tp_snaplen);
        __atomic_store_n(&h->tp_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
        *next = (*next + 1) % RING_FRAMES;
    }
}

static uint64_t ran_ns(int pid)
{
    char path[64];
    unsigned long long ns = 0;
    snprintf(path, sizeof path, "/proc/%d/schedstat", pid);
    FILE *f = pid ? fopen(path, "r") : NULL;
    if (f && fscanf(f, "%llu", &ns) != 1)
        ns = 0;
    if (f)
        fclose(f);
    return ns;
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

int main(int argc, char **argv)
{
    uint8_t source[6], destination[6];
    if (argc < 16 || !read_mac(argv[7], source) || !read_mac(argv[8], destination))
        return 2;
    inbound = !strcmp(argv[9], "in");
    unsigned size = (unsigned)atoi(argv[10]), largest = (unsigned)atoi(argv[12]);
    unsigned wanted = (unsigned)atoi(argv[11]);
    int cpu = atoi(argv[13]), ksoftirqd = atoi(argv[14]);
    load_tables(argc - 15, argv + 15);
    if (!ready_count || size < HEAD || size > 1500 || largest < PILOT || largest > RING_FRAMES / 2 ||
        wanted > MOST_BURSTS) {
        fprintf(stderr, "%u calls are up in both tables; octets %u, burst %u\n", ready_count, size,
                largest);
        return 1;
    }
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof set, &set);

    int in;
    enter(argv[5]);
    uint8_t *ring = receiving_ring(argv[6], &in);
    enter(argv[3]);
    receive_like_a_card(argv[4]);
    enter(argv[1]);
    struct head *heads = heads_of_calls(source, destination, size);
    int program = random_call_program(map_of(heads, ready_count), ready_count,
                                      (int)if_nametoindex(argv[2]));
    static uint8_t frame[14 + 1500];
    memcpy(frame, heads[0].octets, HEAD);

    static double costs[MOST_BURSTS], rates[MOST_BURSTS];
    unsigned next = 0, bursts = 0, rated = 0, burst = PILOT;
    uint64_t sent = 0, spent_total = 0, deferred_total = 0;
    for (int pilot = 1; bursts < wanted; pilot = 0) {
        uint64_t first = 0, last = 0, want = received + burst, before = received;
        uint64_t deferred = ran_ns(ksoftirqd), spent = now_ns(CLOCK_THREAD_CPUTIME_ID);
        if (send_burst(program, frame, size + 14, burst))
            die("send a burst of live XDP frames");
        spent = now_ns(CLOCK_THREAD_CPUTIME_ID) - spent;
        uint64_t progress = now_ns(CLOCK_MONOTONIC), seen = received;
        for (;;) {
            drain(ring, &next, &first, &last);
            uint64_t now = now_ns(CLOCK_MONOTONIC);
            if (received >= want || now - progress > PATIENCE_NS)
                break;
            if (received != seen)
                progress = now;
            seen = received;
            struct timespec nap = {.tv_nsec = 100000};
            nanosleep(&nap, NULL);
        }
        deferred = ran_ns(ksoftirqd) - deferred;
        if (pilot) {
            double fits = BURST_NS * burst / (double)(spent + 1);
            burst = fits > largest ? largest : fits < BATCH ? BATCH : (unsigned)fits / BATCH * BATCH;
            received = wrong = 0;
            continue;
        }
        sent += burst;
        spent_total += spent;
        deferred_total += deferred;
        costs[bursts++] = (double)(spent + deferred) / burst;
        if (last > first)
            rates[rated++] = (double)(received - before - 1) * 1e9 / (double)(last - first);
    }
    struct tpacket_stats stats = {0};
    socklen_t stats_size = sizeof stats;
    getsockopt(in, SOL_PACKET, PACKET_STATISTICS, &stats, &stats_size);
    double median = middle(costs, bursts); /* and sorts */
    printf("{\"up\": %u, \"bursts\": %u, \"burst\": %u, \"sent\": %llu, \"received\": %llu,"
           " \"wrong\": %llu, \"ring_drops\": %u, \"ns\": %.1f, \"median_ns\": %.1f, \"mean_ns\": %.1f,"
           " \"deferred_ns\": %.1f, \"wall_pps\": %.0f}\n", ready_count, bursts, burst,
           (unsigned long long)sent, (unsigned long long)received, (unsigned long long)wrong,
           stats.tp_drops, costs[0], median,
           (double)(spent_total + deferred_total) / (double)(sent ? sent : 1),
           (double)deferred_total / (double)(sent ? sent : 1), middle(rates, rated));
    return 0;
}
