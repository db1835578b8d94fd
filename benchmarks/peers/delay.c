/* How long GRE takes through a router that is busy, but not too busy.
 *
 *     delay SEND-NETNS SEND-IF PEER-NETNS PEER-IF RECEIVE-NETNS RECEIVE-IF SOURCE-MAC
 *         DESTINATION-MAC DIRECTION SIZE MILLISECONDS PERCENT CPU TABLE:CALLS...
 *
 * First the capacity: bursts of packets as fast as they can be sent, and the rate at which they
 * arrive.  Then PERCENT of it for MILLISECONDS, at times drawn beforehand (exponential gaps): each
 * packet carries the time at which it was due, and its delay is counted from then, whether it could
 * leave in time or not.  So a path that holds the sender up does not hide it, and neither does a
 * queue.  The time of arrival is the kernel's, at the receiver's device.
 */
#define _GNU_SOURCE
#include "packets.h"
#include <math.h>

#define CAPACITY_BURST 2048
#define CAPACITY_BURSTS 7
#define MOST 1000000

static double *delays_us;
static unsigned delayed, early;
static uint64_t first_at, last_at;

static void seen_packet(const uint8_t *frame, uint64_t at)
{
    uint64_t due = (uint64_t)get32(frame + HEAD) << 32 | get32(frame + HEAD + 4);
    last_at = at;
    if (!first_at)
        first_at = at;
    if (!due || delayed == MOST)
        return;
    if (at < due) {
        early++; /* the clock was set */
        return;
    }
    delays_us[delayed++] = (double)(at - due) / 1e3;
}

static double uniform(void)
{
    static uint64_t state = 0x9E3779B97F4A7C15u;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return ((double)(state >> 11) + 0.5) / 9007199254740992.0;
}

static int sending_socket(const char *interface)
{
    int fd = socket(AF_PACKET, SOCK_RAW, 0), on = 1, room = 8 << 20;
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_ifindex = (int)if_nametoindex(interface)};
    if (fd < 0 || !to.sll_ifindex || bind(fd, (struct sockaddr *)&to, sizeof to) ||
        setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &on, sizeof on))
        die(interface);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room);
    return fd;
}

/* One packet of a random call, due at `due` (0: whenever). */
static int send_one(int fd, const struct head *heads, uint8_t *frame, unsigned length, uint64_t due)
{
    memcpy(frame, heads[(unsigned)(uniform() * ready_count)].octets, HEAD);
    put32(frame + HEAD, (uint32_t)(due >> 32));
    put32(frame + HEAD + 4, (uint32_t)due);
    return send(fd, frame, length, 0) == (ssize_t)length;
}

int main(int argc, char **argv)
{
    uint8_t source[6], destination[6];
    static uint8_t frame[14 + 1500];
    if (argc < 15 || !read_mac(argv[7], source) || !read_mac(argv[8], destination))
        return 2;
    inbound = !strcmp(argv[9], "in");
    unsigned size = (unsigned)atoi(argv[10]), milliseconds = (unsigned)atoi(argv[11]);
    unsigned percent = (unsigned)atoi(argv[12]);
    load_tables(argc - 14, argv + 14);
    if (!ready_count || size + 14 < SNAP || size > 1500 || !percent || percent > 100) {
        fprintf(stderr, "%u calls are up in both tables; %u octets, %u %%\n", ready_count, size,
                percent);
        return 1;
    }
    run_on(atoi(argv[13]));
    delays_us = calloc(MOST, sizeof *delays_us);
    int in;
    enter(argv[5]);
    uint8_t *ring = receiving_ring(argv[6], &in);
    enter(argv[3]);
    receive_like_a_card(argv[4]);
    enter(argv[1]);
    int out = sending_socket(argv[2]);
    struct head *heads = heads_of_calls(source, destination, size);
    unsigned next = 0, unsent = 0;

    double rates[CAPACITY_BURSTS];
    unsigned rated = 0;
    for (unsigned burst = 0; burst < CAPACITY_BURSTS; burst++) {
        uint64_t before = received;
        first_at = last_at = 0;
        for (unsigned n = 0; n < CAPACITY_BURST; n++)
            unsent += !send_one(out, heads, frame, size + 14, 0);
        await(ring, &next, before + CAPACITY_BURST);
        if (last_at > first_at)
            rates[rated++] = (double)(received - before - 1) * 1e9 / (double)(last_at - first_at);
    }
    double capacity = middle(rates, rated), per_second = capacity * percent / 100;
    if (!rated || per_second * milliseconds / 1e3 > MOST) {
        fprintf(stderr, "no capacity to be seen: %llu packets arrived\n",
                (unsigned long long)received);
        return 1;
    }
    uint64_t sent = 0, already = received, start = now_ns(CLOCK_REALTIME) + 1000000;
    double due = 0, end = milliseconds * 1e6;
    while ((due += -log(uniform()) * 1e9 / per_second) < end) {
        uint64_t at = start + (uint64_t)due;
        while (now_ns(CLOCK_REALTIME) < at)
            drain(ring, &next);
        if (send_one(out, heads, frame, size + 14, at))
            sent++;
        else
            unsent++;
        if (sent % 64 == 0)
            drain(ring, &next); /* also when behind: the ring must not fill up */
    }
    await(ring, &next, already + sent);
    qsort(delays_us, delayed, sizeof *delays_us, by_size);
#define QUANTILE(q) (delayed ? delays_us[(unsigned)((q) * (delayed - 1) + 0.5)] : 0)
    printf("{\"up\": %u, \"capacity\": %.0f, \"per_second\": %.0f, \"sent\": %llu,"
           " \"received\": %llu, \"wrong\": %llu, \"unsent\": %u, \"early\": %u, \"ring_drops\": %u,"
           " \"p50_us\": %.2f, \"p99_us\": %.2f, \"p999_us\": %.2f, \"max_us\": %.2f}\n",
           ready_count, capacity, per_second, (unsigned long long)sent,
           (unsigned long long)(received - already), (unsigned long long)wrong, unsent, early,
           ring_drops(in), QUANTILE(.5), QUANTILE(.99), QUANTILE(.999), QUANTILE(1));
    return 0;
}
