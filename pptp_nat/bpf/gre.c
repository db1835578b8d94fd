/*
 * GRE of PPTP calls, rewritten between the device and the stack (tc, direct action), and what
 * is easy sent on before there is a stack (XDP).
 *
 * What a packet becomes stands in the map `legs`, by what arrives: source, destination,
 * key.  A destination is written where the packet arrives, before routing; a source where
 * it leaves, since routing drops what claims to come from this router.  Who arrives and
 * is known gets the repeat mark: the firewall's rules let such packets pass untracked.
 * Everything else goes to the stack as it is.
 *
 * Kernel 5.11 or later.  Build with `make bpf`; the object is shipped.
 */
#include <linux/bpf.h>

#define SECTION(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define TYPED(name, value) int (*name)[value]

/* linux/bpf.h numbers its helpers. */
static void *(*const map_find)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*const map_put)(void *map, const void *key, const void *value, __u64 flags) =
	(void *)BPF_FUNC_map_update_elem;
static long (*const map_take)(void *map, const void *key) = (void *)BPF_FUNC_map_delete_elem;
static long (*const pull)(struct __sk_buff *skb, __u32 octets) = (void *)BPF_FUNC_skb_pull_data;
static long (*const load)(const void *skb, __u32 at, void *to, __u32 octets) =
	(void *)BPF_FUNC_skb_load_bytes;
static long (*const store)(struct __sk_buff *skb, __u32 at, const void *from, __u32 octets,
	__u64 flags) = (void *)BPF_FUNC_skb_store_bytes;
static long (*const patch_ip)(struct __sk_buff *skb, __u32 at, __u64 old, __u64 new,
	__u64 octets) = (void *)BPF_FUNC_l3_csum_replace;
static long (*const patch_icmp)(struct __sk_buff *skb, __u32 at, __u64 old, __u64 new,
	__u64 octets) = (void *)BPF_FUNC_l4_csum_replace;
static __s64 (*const adjust_sum)(struct __sk_buff *skb, __u32 sum) = (void *)BPF_FUNC_csum_update;
static long (*const find_route)(void *ctx, struct bpf_fib_lookup *route, int octets, __u32 flags) =
	(void *)BPF_FUNC_fib_lookup;
static long (*const redirect)(__u32 device, __u64 flags) = (void *)BPF_FUNC_redirect;
static long (*const redirect_to)(void *devices, __u64 device, __u64 otherwise) =
	(void *)BPF_FUNC_redirect_map;
static __u64 (*const octets_of)(struct xdp_md *xdp) = (void *)BPF_FUNC_xdp_get_buff_len;
static __u64 (*const now)(void) = (void *)BPF_FUNC_ktime_get_coarse_ns;

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define NET16(x) __builtin_bswap16(x)
#define NET32(x) __builtin_bswap32(x)
#else
#define NET16(x) (x)
#define NET32(x) (x)
#endif

/* Specification: RFC 791, RFC 792, RFC 2637 section 4.1; linux/if_ether.h, linux/pkt_cls.h. */
enum {
	TO_THE_STACK = -1, /* TC_ACT_UNSPEC: the next program's turn */
	DROPPED = 2, /* TC_ACT_SHOT */
	REDIRECT = 5,
	IPV4 = 0x0800,
	INET = 2, /* AF_INET */
	TO_THIS_HOST = 0, /* PACKET_HOST */
	ETHERNET_OCTETS = 14,
	IP_OCTETS = 20,
	ICMP_OCTETS = 8,
	GRE_OCTETS = 8, /* with the key; what an ICMP error quotes at least */
	ICMP = 1,
	GRE = 47,
	MORE_FRAGMENTS = 0x2000,
	FRAGMENT_OFFSET = 0x1FFF,
	ORDINARY_OCTETS = 1500, /* of a packet that certainly lies in one buffer */
};

struct ethernet {
	__u16 destination[3], source[3], protocol;
};

struct ip {
	__u8 version_and_words, service;
	__u16 octets, id, fragment;
	__u8 ttl, protocol;
	__u16 check;
	__u32 source, destination;
};

struct gre {
	__u8 flags, version;
	__u16 protocol, payload, key;
	__u32 sequence; /* with S alone */
};

/* The layouts below are those of pptp_nat/linux/bpf_maps.py.  Network order where the wire has it. */
struct match {
	__u32 source, destination;
	__u16 key;
	__u16 stage; /* 1: a hairpin's packet that has its new destination */
};

enum where { UNCHANGED, ARRIVING, LEAVING };

struct leg {
	__u32 source, destination;
	__u16 key;
	__u8 where; /* its addresses are written */
	__u8 again; /* its source is written where it leaves */
	__u32 mark; /* of its control connection */
	__u32 slot; /* of `counts` */
	__u32 delta; /* what the addresses add to the complement of the IP checksum */
};

struct count {
	__u64 packets, octets;
	__u64 last; /* nanoseconds of CLOCK_MONOTONIC, of the last tick */
	__u64 missing; /* sequence numbers that were skipped */
	__u64 late; /* that came after a higher one */
	__u32 next; /* sequence number */
	__u32 sequenced;
	__u64 unused[2]; /* a cache line each */
};

/* What left, and what it was when it arrived: ICMP errors quote packets as they were sent. */
struct origin {
	__u32 source, destination;
	__u16 key;
	__u8 where;
	__u8 unused;
};

struct fragment {
	__u32 source, destination;
	__u16 id;
	__u16 leaving;
};

struct {
	TYPED(type, BPF_MAP_TYPE_HASH);
	TYPED(max_entries, 1024);
	TYPED(map_flags, BPF_F_NO_PREALLOC);
	struct match *key;
	struct leg *value;
} legs SECTION(".maps");

struct {
	TYPED(type, BPF_MAP_TYPE_HASH);
	TYPED(max_entries, 1024);
	TYPED(map_flags, BPF_F_NO_PREALLOC);
	struct match *key;
	struct origin *value;
} origins SECTION(".maps");

struct {
	TYPED(type, BPF_MAP_TYPE_LRU_HASH);
	TYPED(max_entries, 1024);
	struct fragment *key;
	struct match *value;
} fragments SECTION(".maps");

struct {
	TYPED(type, BPF_MAP_TYPE_ARRAY);
	TYPED(max_entries, 1024);
	TYPED(map_flags, BPF_F_MMAPABLE);
	__u32 *key;
	struct count *value;
} counts SECTION(".maps");

enum told {
	FRAGMENT_UNKNOWN, ERROR_UNKNOWN, ERROR_TRANSLATED, SEQUENCE_MISSING, SEQUENCE_LATE, TOLD
};

struct {
	TYPED(type, BPF_MAP_TYPE_ARRAY);
	TYPED(max_entries, TOLD);
	TYPED(map_flags, BPF_F_MMAPABLE);
	__u32 *key;
	__u64 *value;
} tellings SECTION(".maps");

/* For XDP alone: the devices that run it, and those that take frames from another (by index). */
struct port {
	__u16 address[3]; /* its MAC address */
	__u16 unused;
};

struct {
	TYPED(type, BPF_MAP_TYPE_HASH);
	TYPED(max_entries, 1024);
	TYPED(map_flags, BPF_F_NO_PREALLOC);
	__u32 *key;
	struct port *value;
} ports SECTION(".maps");

struct {
	TYPED(type, BPF_MAP_TYPE_DEVMAP_HASH);
	TYPED(max_entries, 1024);
	__u32 *key;
	__u32 *value;
} exits SECTION(".maps");

/* Set before loading. */
const volatile __u32 repeat_mark = 0x40000000;
const volatile __u32 redirects = 0; /* what is easy goes past the stack */

/* Set at any time: a rule of routing's asks for marks, and what they will be we cannot know. */
volatile __u32 routed_by_mark = 0;

/* skb->tc_index goes from where a packet arrives to where it leaves, and no further. */
enum { WHOLE = 0x5050, HALF = 0x5051 };

INLINE void tell(__u32 what, __u64 times)
{
	__u64 *number = map_find(&tellings, &what);

	if (number)
		__sync_fetch_and_add(number, times);
}

INLINE void count(const struct leg *leg, const struct ip *ip, const struct gre *gre)
{
	__u32 slot = leg->slot;
	struct count *count = map_find(&counts, &slot);

	if (!count)
		return;
	__sync_fetch_and_add(&count->octets, NET16(ip->octets));
	count->last = now();
	if (!gre)
		return; /* of a packet in fragments the first one counts */
	__sync_fetch_and_add(&count->packets, 1);
	if (gre->flags & 0x10) {
		__u32 sequence = NET32(gre->sequence);
		__s32 ahead = sequence - count->next;

		/* Further away it is another beginning, not a gap. */
		if (count->sequenced && ahead > 0 && ahead < 4096) {
			__sync_fetch_and_add(&count->missing, ahead);
			tell(SEQUENCE_MISSING, ahead);
		}
		if (count->sequenced && ahead < 0 && ahead > -4096) {
			__sync_fetch_and_add(&count->late, 1);
			tell(SEQUENCE_LATE, 1);
		} else {
			count->next = sequence + 1;
			count->sequenced = 1;
		}
	}
}

/* RFC 1624 section 3, equation 3. */
INLINE void rewrite_addresses(struct ip *ip, const struct leg *leg)
{
	__u32 sum = (~ip->check & 0xFFFF) + leg->delta;

	sum = (sum & 0xFFFF) + (sum >> 16);
	ip->check = ~((sum & 0xFFFF) + (sum >> 16));
	ip->source = leg->source;
	ip->destination = leg->destination;
}

INLINE int is_easy(const struct ip *ip)
{
	return ip->version_and_words == 0x45 && ip->ttl > 1 &&
		!(ip->fragment & NET16(MORE_FRAGMENTS | FRAGMENT_OFFSET));
}

/*
 * Find the way of a packet that is easy: an Ethernet frame to this host, no IP options, no
 * fragment, TTL to spare, no longer than its way takes, a neighbour that is known.  Routing by
 * policy sees what the stack would see, but for marks: these are set between here and there,
 * in PREROUTING, so where routing asks for them the way is the stack's to find.  So is all else.
 */
INLINE int has_way(void *context, __u32 ingress, const struct ip *ip, const struct leg *leg,
	struct bpf_fib_lookup *route)
{
	if (routed_by_mark)
		return 0;
	route->family = INET;
	route->l4_protocol = GRE;
	route->tos = ip->service;
	route->tot_len = NET16(ip->octets);
	route->ipv4_src = ip->source;
	route->ipv4_dst = leg->where == LEAVING ? ip->destination : leg->destination;
	route->ifindex = ingress;
	return find_route(context, route, sizeof(*route), 0) == BPF_FIB_LKUP_RET_SUCCESS;
}

/* What the stack does to a packet that it sends on: new MAC addresses, one hop less.  RFC 1624. */
INLINE void forward(struct ip *ip, struct ethernet *frame, const struct bpf_fib_lookup *route)
{
	__u32 sum = ip->check + NET16(0x0100);

	ip->check = sum + (sum >= 0xFFFF);
	ip->ttl--;
	__builtin_memcpy(frame->destination, route->dmac, 6);
	__builtin_memcpy(frame->source, route->smac, 6);
}

INLINE int is_of_calls(const struct gre *gre)
{
	return (gre->flags & ~0x10) == 0x20 && (gre->version & ~0x80) == 0x01 &&
		gre->protocol == NET16(0x880B);
}

/* Judge GRE whose IP header begins `l3` octets into the frame and is there. */
INLINE int judge_gre(struct __sk_buff *skb, __u32 l3, int leaving)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ip *ip = data + l3;
	struct gre gre = {};
	struct match match = {}, *known;
	struct leg *leg;
	__u32 octets;
	__u16 part, key;
	int in_reach = 0;

	if ((void *)(ip + 1) > end)
		return TO_THE_STACK;
	octets = (ip->version_and_words & 0x0F) * 4;
	if (ip->version_and_words >> 4 != 4 || octets < IP_OCTETS)
		return TO_THE_STACK;
	part = NET16(ip->fragment);
	struct fragment fragment = {ip->source, ip->destination, ip->id, leaving};
	if (part & FRAGMENT_OFFSET) {
		known = map_find(&fragments, &fragment);
		if (!known) {
			if (!leaving)
				tell(FRAGMENT_UNKNOWN, 1);
			return TO_THE_STACK;
		}
		match = *known;
	} else {
		/* Without CAP_PERFMON the verifier takes no pointer but to a fixed place. */
		if (octets == IP_OCTETS && data + l3 + IP_OCTETS + sizeof(gre) <= end) {
			gre = *(struct gre *)(data + l3 + IP_OCTETS);
			in_reach = 1;
		} else {
			if (load(skb, l3 + octets, &gre, GRE_OCTETS))
				return TO_THE_STACK;
			if (gre.flags & 0x10 &&
			    load(skb, l3 + octets + GRE_OCTETS, &gre.sequence, 4))
				gre.sequence = 0;
		}
		match.source = ip->source;
		match.destination = ip->destination;
		match.key = gre.key;
		match.stage = leaving && skb->tc_index == HALF;
		if (!is_of_calls(&gre)) {
			if (part & MORE_FRAGMENTS)
				map_take(&fragments, &fragment);
			return TO_THE_STACK;
		}
	}
	leg = map_find(&legs, &match);
	if (part & MORE_FRAGMENTS && !(part & FRAGMENT_OFFSET)) {
		if (leg)
			map_put(&fragments, &fragment, &match, BPF_ANY);
		else
			map_take(&fragments, &fragment);
	}
	if (!leg)
		return TO_THE_STACK;
	struct bpf_fib_lookup route = {};
	int easy = 0;

	if (!leaving) {
		skb->mark = (leg->mark ? leg->mark : skb->mark) | repeat_mark;
		easy = redirects && l3 && in_reach && !leg->again &&
			skb->pkt_type == TO_THIS_HOST && is_easy(ip) &&
			l3 + NET16(ip->octets) <= skb->len &&
			has_way(skb, skb->ingress_ifindex, ip, leg, &route);
	}
	if ((leg->where == LEAVING) != leaving && !easy)
		return TO_THE_STACK;
	if (!leaving)
		skb->tc_index = leg->again ? HALF : WHOLE;
	count(leg, ip, part & FRAGMENT_OFFSET ? 0 : &gre);
	key = leg->key;
	if (leg->where != UNCHANGED)
		rewrite_addresses(ip, leg);
	if (easy) {
		((struct gre *)(data + l3 + IP_OCTETS))->key = key;
		forward(ip, data, &route);
		return redirect(route.ifindex, 0);
	}
	if (part & FRAGMENT_OFFSET || key == gre.key)
		return TO_THE_STACK;
	/* No checksum covers the key but that of a device over the whole packet. */
	adjust_sum(skb, (~gre.key & 0xFFFF) + key);
	if (in_reach)
		((struct gre *)(data + l3 + IP_OCTETS))->key = key;
	else
		store(skb, l3 + octets + 6, &key, 2, 0);
	return TO_THE_STACK;
}

/* An ICMP error about GRE of a call: who sent that must hear of it, in its own words. */
INLINE int judge_icmp(struct __sk_buff *skb, __u32 l3, int leaving)
{
	struct ip ip, inner;
	struct gre gre = {};
	struct match left = {};
	struct origin *origin;
	__u32 at, in, gre_at;
	__u8 type;

	if (load(skb, l3, &ip, sizeof(ip)) || ip.version_and_words >> 4 != 4 ||
	    ip.fragment & NET16(MORE_FRAGMENTS | FRAGMENT_OFFSET))
		return TO_THE_STACK;
	at = l3 + (ip.version_and_words & 0x0F) * 4;
	/* Destination unreachable, source quench, redirect, time exceeded, parameter problem. */
	if (load(skb, at, &type, 1) ||
	    (type != 3 && type != 4 && type != REDIRECT && type != 11 && type != 12))
		return TO_THE_STACK;
	in = at + ICMP_OCTETS;
	if (load(skb, in, &inner, sizeof(inner)) || inner.protocol != GRE ||
	    inner.version_and_words >> 4 != 4 || inner.fragment & NET16(FRAGMENT_OFFSET))
		return TO_THE_STACK;
	gre_at = in + (inner.version_and_words & 0x0F) * 4;
	if (load(skb, gre_at, &gre, GRE_OCTETS) || !is_of_calls(&gre))
		return TO_THE_STACK;
	left.source = inner.source;
	left.destination = inner.destination;
	left.key = gre.key;
	origin = map_find(&origins, &left);
	if (!origin) {
		if (!leaving)
			tell(ERROR_UNKNOWN, 1);
		return TO_THE_STACK;
	}
	/* It would have two hosts meet past the translation, as nf_nat_proto.c says. */
	if (type == REDIRECT)
		return DROPPED;
	if (!leaving) {
		skb->mark |= repeat_mark;
		if (origin->where != LEAVING)
			return TO_THE_STACK; /* about inbound GRE: written where it leaves */
		skb->tc_index = WHOLE;
	} else if (origin->where != ARRIVING) {
		return TO_THE_STACK;
	}
	/* The verifier wants the values that a helper's call could change. */
	struct origin was = *origin;
	__u32 old = leaving ? inner.destination : inner.source;
	__u32 new = leaving ? was.destination : was.source;
	__u32 old_outer = leaving ? ip.source : ip.destination;

	/* The sum over the quoted IP header stays what it was; that over the key does not. */
	if (patch_ip(skb, in + 10, old, new, 4) ||
	    store(skb, in + (leaving ? 16 : 12), &new, 4, 0))
		return TO_THE_STACK;
	if (was.key != gre.key) {
		patch_icmp(skb, at + 2, gre.key, was.key, 2);
		store(skb, gre_at + 6, &was.key, 2, 0);
	}
	/* This router's own errors have its own source. */
	if (!leaving || skb->ingress_ifindex) {
		patch_ip(skb, l3 + 10, old_outer, new, 4);
		store(skb, l3 + (leaving ? 12 : 16), &new, 4, 0);
	}
	tell(ERROR_TRANSLATED, 1);
	return TO_THE_STACK;
}

INLINE int judge(struct __sk_buff *skb, __u32 l3, int leaving)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ip *ip = data + l3;
	__u8 protocol;

	if (skb->protocol != NET16(IPV4))
		return TO_THE_STACK;
	if ((void *)(ip + 1) > end) {
		if (pull(skb, l3 + IP_OCTETS))
			return TO_THE_STACK;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		ip = data + l3;
		if ((void *)(ip + 1) > end)
			return TO_THE_STACK;
	}
	protocol = ip->protocol;
	if (protocol != GRE && protocol != ICMP)
		return TO_THE_STACK;
	if (leaving) {
		if (skb->mark & repeat_mark)
			skb->mark &= ~repeat_mark;
		if (skb->tc_index == WHOLE)
			return TO_THE_STACK;
	} else {
		int was_judged = skb->tc_index == WHOLE || skb->tc_index == HALF;

		/* At the port of this bridge.  In another namespace it loses the mark alone. */
		if (was_judged && skb->mark & repeat_mark)
			return TO_THE_STACK;
		if (was_judged)
			skb->tc_index = 0;
		if (skb->mark & repeat_mark)
			skb->mark &= ~repeat_mark;
	}
	return protocol == GRE ? judge_gre(skb, l3, leaving) : judge_icmp(skb, l3, leaving);
}

SECTION("tc")
int ether_arriving(struct __sk_buff *skb)
{
	return judge(skb, ETHERNET_OCTETS, 0);
}

SECTION("tc")
int ether_leaving(struct __sk_buff *skb)
{
	return judge(skb, ETHERNET_OCTETS, 1);
}

/* Devices without a link header: ppp, tun, tunnels. */
SECTION("tc")
int bare_arriving(struct __sk_buff *skb)
{
	return judge(skb, 0, 0);
}

SECTION("tc")
int bare_leaving(struct __sk_buff *skb)
{
	return judge(skb, 0, 1);
}

/*
 * Before the stack: what is easy goes from device to device as a bare frame.  No queueing
 * discipline sees it, so a call with a mark, which may be for one, is left to those above, and
 * so is all that is not easy.
 */
SECTION("xdp.frags")
int before_the_stack(struct xdp_md *xdp)
{
	void *data = (void *)(long)xdp->data, *end = (void *)(long)xdp->data_end;
	struct ethernet *frame = data;
	struct ip *ip = data + ETHERNET_OCTETS;
	struct gre *gre = data + ETHERNET_OCTETS + IP_OCTETS;
	struct bpf_fib_lookup route = {};
	struct match match = {};
	struct port *port;
	struct leg *leg;
	__u32 ingress = xdp->ingress_ifindex;
	int verdict;

	if ((void *)(gre + 1) > end || frame->protocol != NET16(IPV4) || ip->protocol != GRE ||
	    !is_easy(ip) || !is_of_calls(gre) || NET16(ip->octets) > ORDINARY_OCTETS ||
	    ETHERNET_OCTETS + NET16(ip->octets) > octets_of(xdp))
		return XDP_PASS;
	match.source = ip->source;
	match.destination = ip->destination;
	match.key = gre->key;
	leg = map_find(&legs, &match);
	if (!leg || leg->again || leg->mark)
		return XDP_PASS;
	port = map_find(&ports, &ingress);
	if (!port || port->address[0] != frame->destination[0] ||
	    port->address[1] != frame->destination[1] || port->address[2] != frame->destination[2])
		return XDP_PASS;
	if (!has_way(xdp, ingress, ip, leg, &route))
		return XDP_PASS;
	verdict = redirect_to(&exits, route.ifindex, XDP_PASS);
	if (verdict != XDP_REDIRECT)
		return XDP_PASS;
	count(leg, ip, gre);
	gre->key = leg->key;
	if (leg->where != UNCHANGED)
		rewrite_addresses(ip, leg);
	forward(ip, frame, &route);
	return XDP_REDIRECT;
}

char terms[] SECTION("license") = "Dual MIT/GPL";
