"""What iptables cannot match by itself, as classic BPF programs for ``-m bpf``.

A program sees the packet from its IPv4 header on (xt_bpf.c) and answers with 0
for no match.  A load past the end of the packet answers 0 as well.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from pptp_nat.core.parts import MULTIPLIER, SHIFT

# Specification: linux/bpf_common.h and linux/filter.h.
# fmt: off
LOAD_HALF: Final      = 0x28  # A = 2 octets at k
LOAD_WORD: Final      = 0x20  # A = 4 octets at k
LOAD_WORD_AT_X: Final = 0x40  # A = 4 octets at X + k
LOAD_OCTET_AT_X: Final = 0x50  # A = 1 octet at X + k
LOAD_HEADER: Final    = 0xB1  # X = 4 * (low half of the octet at k)
AND: Final            = 0x54  # A &= k
MULTIPLY: Final       = 0x24  # A *= k, the lower 32 bits of it
REMAINDER: Final      = 0x94  # A %= k
EXCLUSIVE_OR: Final   = 0xAC  # A ^= X
SHIFT_RIGHT: Final    = 0x74  # A >>= k
ADD_X: Final          = 0x0C  # A += X
TO_X: Final           = 0x07  # X = A
IF_EQUAL: Final       = 0x15  # A == k
IF_EQUAL_X: Final     = 0x1D  # A == X
IF_ANY_BIT: Final     = 0x45  # A & k
ANSWER: Final         = 0x06  # k
# fmt: on


class Step(NamedTuple):
    """One instruction; jumps count the instructions that are left out."""

    code: int
    jump_true: int
    jump_false: int
    k: int
    says: str


Program = tuple[Step, ...]

# Flags: FIN 0x01, SYN 0x02, RST 0x04, ACK 0x10.
# fmt: off
def _without_payload(keep: int, kept: str, flags: int, other: str) -> Program:
    return (
        Step(LOAD_HALF,       0,  0, 6,      "A = flags and fragment offset"),
        Step(IF_ANY_BIT,      12, 0, 0x1FFF, "a later fragment: no"),
        Step(LOAD_HEADER,     0,  0, 0,      "X = octets of the IP header"),
        Step(LOAD_OCTET_AT_X, 0,  0, 13,     "A = TCP flags"),
        Step(AND,             0,  0, keep,   kept),
        Step(IF_EQUAL,        0,  8, flags,  other),
        Step(LOAD_OCTET_AT_X, 0,  0, 12,     "A = TCP data offset in the high half, in words"),
        Step(SHIFT_RIGHT,     0,  0, 2,      "in octets, with some other bits below"),
        Step(AND,             0,  0, 0x3C,   "A = octets of the TCP header"),
        Step(ADD_X,           0,  0, 0,      "A = octets of both headers"),
        Step(TO_X,            0,  0, 0,      "X = octets of both headers"),
        Step(LOAD_HALF,       0,  0, 2,      "A = octets of the packet"),
        Step(IF_EQUAL_X,      0,  1, 0,      "a payload: no"),
        Step(ANSWER,          0,  0, 65535,  "yes"),
        Step(ANSWER,          0,  0, 0,      "no"),
    )


#: A SYN with ACK is one of these too: neither it nor a bare acknowledgement carries anything
#: that we read.
PURE_ACKNOWLEDGEMENT: Final = _without_payload(
    0x15, "keep ACK, RST and FIN", 0x10, "not ACK alone: no")
#: A SYN that carries a message (TCP Fast Open, RFC 7413) is none of these.
EMPTY_SYN: Final = _without_payload(
    0x17, "keep ACK, RST, SYN and FIN", 0x02, "not SYN alone: no")

# RFC 2637 section 4.1: version 1, protocol 0x880B.
ENHANCED_GRE: Final[Program] = (
    Step(LOAD_HALF,       0,  0, 6,          "A = flags and fragment offset"),
    Step(IF_ANY_BIT,      5,  0, 0x1FFF,     "a later fragment: no"),
    Step(LOAD_HEADER,     0,  0, 0,          "X = octets of the IP header"),
    Step(LOAD_WORD_AT_X,  0,  0, 0,          "A = GRE flags, version and protocol"),
    Step(AND,             0,  0, 0x7FFFF,    "keep version and protocol"),
    Step(IF_EQUAL,        0,  1, 0x1880B,    "not version 1 with protocol 0x880B: no"),
    Step(ANSWER,          0,  0, 65535,      "yes"),
    Step(ANSWER,          0,  0, 0,          "no"),
)
# fmt: on

#: The same as `ENHANCED_GRE` in the words of ``-m u32``: the octets 4 to 7 hold the fragment
#: offset; then go on behind the IP header.
ENHANCED_GRE_U32: Final = "0x4&0x1fff=0x0&&0x0>>0x16&0x3c@0x0&0x7ffff=0x1880b"

_AT_SOURCE: Final = 12  # RFC 791, octets into the header
_AT_DESTINATION: Final = 16


def share(index: int, count: int) -> Program:
    """Return a program that matches packets between hosts that are worker *index*'s of *count*.

    It is `pptp_nat.core.parts.worker_of` in the kernel's words.
    """
    return (
        Step(LOAD_WORD, 0, 0, _AT_SOURCE, "A = source address"),
        Step(TO_X, 0, 0, 0, "X = source address"),
        Step(LOAD_WORD, 0, 0, _AT_DESTINATION, "A = destination address"),
        Step(EXCLUSIVE_OR, 0, 0, 0, "A = the same for both directions"),
        Step(MULTIPLY, 0, 0, MULTIPLIER, "spread what differs a little"),
        Step(SHIFT_RIGHT, 0, 0, SHIFT, "keep the bits that depend on all others"),
        Step(REMAINDER, 0, 0, count, "A = the worker of these two hosts"),
        Step(IF_EQUAL, 0, 1, index, "another one: no"),
        Step(ANSWER, 0, 0, 65535, "yes"),
        Step(ANSWER, 0, 0, 0, "no"),
    )


def bytecode(program: Program) -> str:
    """Return *program* as ``--bytecode`` takes it."""
    steps = (f"{s.code} {s.jump_true} {s.jump_false} {s.k}" for s in program)
    return f"{len(program)}," + ",".join(steps)


def explained(program: Program) -> list[str]:
    """Return one line per instruction of *program*: the instruction and what it means."""
    return [
        f"{f'{s.code} {s.jump_true} {s.jump_false} {s.k}':<16} {s.says}"
        for s in program
    ]
