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
#include "live_frames.h"

#define MOST_BURSTS 1000
#define BURST_NS 20e6
#define PILOT 128 /* packets that show how many make a burst of a reasonable length */

static uint64_t first_at, last_at; /* of the packets of a burst */

static void seen_packet(const uint8_t *frame, uint64_t at)
{
    (void)frame;
    last_at = at;
    if (!first_at)
        first_at = at;
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
    if (!ready_count || size + 14 < SNAP || size > 1500 || largest < PILOT || largest > RING_FRAMES / 2 ||
        wanted > MOST_BURSTS) {
        fprintf(stderr, "%u calls are up in both tables; octets %u, burst %u\n", ready_count, size,
                largest);
        return 1;
    }
    run_on(cpu);

    int in;
    enter(argv[5]);
    uint8_t *ring = receiving_ring(argv[6], &in);
    receive_like_a_card(argv[6]); /* what a router sends without its stack */
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
        uint64_t before = received;
        first_at = last_at = 0;
        uint64_t deferred = ran_ns(ksoftirqd), spent = now_ns(CLOCK_THREAD_CPUTIME_ID);
        if (send_burst(program, frame, size + 14, burst))
            die("send a burst of live XDP frames");
        spent = now_ns(CLOCK_THREAD_CPUTIME_ID) - spent;
        await(ring, &next, before + burst);
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
        if (last_at > first_at)
            rates[rated++] = (double)(received - before - 1) * 1e9 / (double)(last_at - first_at);
    }
    double median = middle(costs, bursts); /* and sorts */
    printf("{\"up\": %u, \"bursts\": %u, \"burst\": %u, \"sent\": %llu, \"received\": %llu,"
           " \"wrong\": %llu, \"ring_drops\": %u, \"ns\": %.1f, \"median_ns\": %.1f, \"mean_ns\": %.1f,"
           " \"deferred_ns\": %.1f, \"wall_pps\": %.0f}\n", ready_count, bursts, burst,
           (unsigned long long)sent, (unsigned long long)received, (unsigned long long)wrong,
           ring_drops(in), costs[0], median,
           (double)(spent_total + deferred_total) / (double)(sent ? sent : 1),
           (double)deferred_total / (double)(sent ? sent : 1), middle(rates, rated));
    return 0;
}
