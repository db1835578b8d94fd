/* A packet generator inside the kernel: XDP test runs with live frames (Linux 5.18).
 *
 * A program of a few instructions copies the head of a random call out of a map over the start of
 * a frame and redirects the frame out of the sender's device.  The device at the other end takes
 * it as from a network card: in NAPI, with generic receive offload.
 */
#ifndef LIVE_FRAMES_H
#define LIVE_FRAMES_H

#include "packets.h"
#include <linux/bpf.h>
#include <stddef.h>
#include <sys/syscall.h>

#define BATCH 32     /* frames that enter the device together */

static int bpf(enum bpf_cmd command, union bpf_attr *attr)
{
    return (int)syscall(SYS_bpf, command, attr, sizeof *attr);
}

static int map_of(const void *heads, unsigned count)
{
    union bpf_attr attr = {
        .map_type = BPF_MAP_TYPE_ARRAY,
        .key_size = 4,
        .value_size = HEAD_ROOM,
        .max_entries = count,
    };
    int fd = bpf(BPF_MAP_CREATE, &attr);
    if (fd < 0)
        die("make a BPF map");
    for (unsigned i = 0; i < count; i++) {
        union bpf_attr entry = {
            .map_fd = (unsigned)fd,
            .key = (uintptr_t)&i,
            .value = (uintptr_t)heads + i * HEAD_ROOM,
        };
        if (bpf(BPF_MAP_UPDATE_ELEM, &entry))
            die("fill a BPF map");
    }
    return fd;
}

/* Instructions, as in the kernel's samples/bpf/bpf_insn.h. */
#define INSN(c, d, s, o, i) ((struct bpf_insn){.code = (c), .dst_reg = (d), .src_reg = (s), .off = (o), .imm = (i)})
#define MOV(d, s) INSN(BPF_ALU64 | BPF_MOV | BPF_X, d, s, 0, 0)
#define SET(d, i) INSN(BPF_ALU64 | BPF_MOV | BPF_K, d, 0, 0, i)
#define ADD(d, i) INSN(BPF_ALU64 | BPF_ADD | BPF_K, d, 0, 0, i)
#define CALL(f) INSN(BPF_JMP | BPF_CALL, 0, 0, 0, f)
#define LOAD(size, d, s, o) INSN(BPF_LDX | BPF_MEM | (size), d, s, o, 0)
#define STORE(size, d, s, o) INSN(BPF_STX | BPF_MEM | (size), d, s, o, 0)

/* Take the head of a random call; redirect the frame out of device `ifindex`. */
static int random_call_program(int map, unsigned count, int ifindex)
{
    struct bpf_insn code[64], *c = code;
    *c++ = MOV(6, 1);
    *c++ = CALL(BPF_FUNC_get_prandom_u32);
    *c++ = INSN(BPF_ALU64 | BPF_MUL | BPF_K, 0, 0, 0, (int)count);
    *c++ = INSN(BPF_ALU64 | BPF_RSH | BPF_K, 0, 0, 0, 32);
    *c++ = STORE(BPF_W, 10, 0, -4);
    *c++ = INSN(BPF_LD | BPF_DW | BPF_IMM, 1, BPF_PSEUDO_MAP_FD, 0, map);
    *c++ = INSN(0, 0, 0, 0, 0);
    *c++ = MOV(2, 10);
    *c++ = ADD(2, -4);
    *c++ = CALL(BPF_FUNC_map_lookup_elem);
    struct bpf_insn *no_entry = c;
    *c++ = INSN(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 0, 0);
    *c++ = LOAD(BPF_W, 2, 6, offsetof(struct xdp_md, data));
    *c++ = LOAD(BPF_W, 3, 6, offsetof(struct xdp_md, data_end));
    *c++ = MOV(1, 2);
    *c++ = ADD(1, HEAD_ROOM);
    struct bpf_insn *too_short = c;
    *c++ = INSN(BPF_JMP | BPF_JGT | BPF_X, 1, 3, 0, 0);
    for (unsigned at = 0; at < HEAD_ROOM; at += 8) {
        *c++ = LOAD(BPF_DW, 4, 0, (short)at);
        *c++ = STORE(BPF_DW, 2, 4, (short)at);
    }
    *c++ = SET(1, ifindex);
    *c++ = SET(2, 0);
    *c++ = CALL(BPF_FUNC_redirect);
    *c++ = INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
    no_entry->off = (short)(c - no_entry - 1);
    too_short->off = (short)(c - too_short - 1);
    *c++ = SET(0, XDP_DROP);
    *c++ = INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0);

    static char complaint[4096];
    union bpf_attr attr = {
        .prog_type = BPF_PROG_TYPE_XDP,
        .insns = (uintptr_t)code,
        .insn_cnt = (unsigned)(c - code),
        .license = (uintptr_t)"GPL",
        .log_buf = (uintptr_t)complaint,
        .log_size = sizeof complaint,
        .log_level = 1,
    };
    int fd = bpf(BPF_PROG_LOAD, &attr);
    if (fd < 0) {
        fprintf(stderr, "%s\n", complaint);
        die("load the XDP program");
    }
    return fd;
}

/* Send `packets` of `length` octets as frames whose start the program fills in. */
static int send_burst(int program, const uint8_t *frame, unsigned length, unsigned packets)
{
    union bpf_attr attr = {
        .test = {
            .prog_fd = (unsigned)program,
            .data_in = (uintptr_t)frame,
            .data_size_in = length,
            .repeat = packets,
            .batch_size = BATCH,
            .flags = BPF_F_TEST_XDP_LIVE_FRAMES,
        },
    };
    return bpf(BPF_PROG_TEST_RUN, &attr);
}

#endif
