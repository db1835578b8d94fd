"""Two PPTP hosts that talk about calls, and what each must understand of the other.

A conversation names calls by their place in it, never by number: each host
chooses its own numbers and learns the other's from the octets that reach it.
So a host's view is the oracle: whatever a translator does in between, every
Peer's Call ID that a host reads must be the number that it chose itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hypothesis import strategies as st

from pptp_nat.core.messages import HEADER, LAYOUTS, MAGIC_OCTETS, MessageType, pack, unpack
from pptp_nat.core.tuples import Party

M = MessageType
INTRODUCTIONS = (M.OUTGOING_CALL_REQUEST, M.OUTGOING_CALL_REPLY,
                 M.INCOMING_CALL_REQUEST, M.INCOMING_CALL_REPLY)  # fmt: skip
FRAMEWORK = (M.START_CONTROL_CONNECTION_REQUEST, M.START_CONTROL_CONNECTION_REPLY,
             M.ECHO_REQUEST, M.ECHO_REPLY)  # fmt: skip
STRANGE = ("reserved", "long", "unknown type", "management")


def swapped(number: int) -> int:
    """Return the number as a host with the other byte order would write it."""
    return int.from_bytes(number.to_bytes(2, "big"), "little")


class Op(NamedTuple):
    """One message that a host is to send."""

    kind: MessageType
    call: int | None = None  #: None: about no call that anybody knows
    number: int = 0  #: introduced, or unknown to everybody
    agrees: bool = True
    quirk: str = ""


class Round(NamedTuple):
    """What the two hosts say at the same time, by party."""

    by_originator: Sequence[Op]
    by_responder: Sequence[Op]


@dataclass
class Host:
    """One party: its own numbers and those that it has learned."""

    own: dict[int, int] = field(default_factory=dict)
    learned: dict[int, int] = field(default_factory=dict)
    quirky: set[int] = field(default_factory=set)  #: calls that it ended by the other's number

    def write(self, op: Op) -> bytes:
        """Return the message *op* in this host's numbers."""
        names = LAYOUTS[op.kind].names
        fields: dict[str, int | bytes] = {}
        if op.call is None:
            number = self._unknown(op.number)
            values = {"call_id": number, "peer_call_id": self._unknown(number + 1)}
        else:
            if op.kind in INTRODUCTIONS:
                self.own.setdefault(op.call, op.number)
            values = {"call_id": self.own.get(op.call, 0),
                      "peer_call_id": self.learned.get(op.call, 0)}  # fmt: skip
            if op.kind is M.CALL_DISCONNECT_NOTIFY and self._quirk(op):
                pns = self.learned[op.call]
                values["call_id"] = swapped(pns) if op.quirk == "swapped" else pns
                self.quirky.add(op.call)
        fields = {name: value for name, value in values.items() if name in names}
        if "result" in names:
            fields["result"] = 1 if op.agrees else 2
        for name in ("vendor", "phone", "statistics"):
            if name in names:
                fields[name] = b"vpn" + MAGIC_OCTETS + bytes((0, 7))
        return _made_strange(pack(op.kind, **fields), op.quirk)

    def _unknown(self, number: int) -> int:
        known = {*self.own.values(), *self.learned.values()}
        known |= {swapped(each) for each in known}
        while number & 0xFFFF in known:
            number += 1
        return number & 0xFFFF

    def _quirk(self, op: Op) -> bool:
        """Whether the quirk is not by chance what another call's number looks like."""
        if op.quirk not in ("pns", "swapped"):
            return False
        assert op.call is not None
        pns = self.learned[op.call]
        value = swapped(pns) if op.quirk == "swapped" else pns
        others = [number for call, number in self.learned.items() if call != op.call]
        taken = {*self.own.values(), *others, *map(swapped, others)}
        return value not in taken and (op.quirk == "pns" or value != pns)

    def read(self, op: Op, octets: bytes, sender: Host, *, doubtful: bool) -> None:
        """Understand *octets*, which *sender* meant as *op*; *doubtful*: but for quirks."""
        if op.call is None or op.quirk in ("unknown type", "management"):
            return
        kind, fields = unpack(octets)
        assert op.kind is kind
        if "peer_call_id" in fields:
            assert self.own[op.call] == fields["peer_call_id"], op
        if "call_id" not in fields:
            return
        number = int(fields["call_id"])
        if op.kind in INTRODUCTIONS:
            if op.agrees:
                assert number == self.learned.setdefault(op.call, number), op
        elif op.call in sender.quirky:
            meant = swapped(number) if op.quirk == "swapped" else number
            assert doubtful or self.own[op.call] == meant, op
        else:
            assert self.learned[op.call] == number, op


def _made_strange(message: bytes, quirk: str) -> bytes:
    if quirk == "reserved":
        return message[:10] + b"\xa1\x96" + message[12:]
    if quirk == "long":
        message += MAGIC_OCTETS * 5
        return len(message).to_bytes(2, "big") + message[2:]
    if quirk == "unknown type":
        return message[:8] + b"\xff\xff" + message[10:]
    if quirk == "management":
        return message[:2] + b"\x00\x02" + message[4:]
    return message


def split(octets: bytes) -> list[bytes]:
    """Cut a stream into messages by their Length fields."""
    messages = []
    while octets:
        (length, *_) = HEADER.unpack_from(octets)
        messages.append(octets[:length])
        octets = octets[length:]
    return messages


# Conversations as hypothesis draws them.

_NUMBERS = st.builds(
    lambda high, low: high << 8 | low,
    st.sampled_from((0x00, 0x12, 0x13, 0xFF)),
    st.sampled_from((0x00, 0x01, 0x34, 0xFF)),
)
_ABOUT = ("call",) * 12 + ("else", "request", "else", "many")


class _Call:
    """What both hosts know of a call between two rounds."""

    def __init__(self, requester: Party, pns: Party, number: int) -> None:
        self.requester = requester
        self.pns = pns
        self.state = "requested"
        self.numbers = {requester: number}
        self.agreed = False


class _Talk:
    """Draws rounds that two sane hosts, and some less sane ones, could speak."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.calls: list[_Call] = []

    def round(self) -> Round:
        self.touched: set[int] = set()
        self.taken = {(p, call.numbers[p]) for call in self.calls if call.state != "gone"
                      for p in call.numbers}  # fmt: skip
        if self.calls and self.draw(st.integers(0, 19)) == 19:
            stop = self.draw(st.sampled_from(Party))
            for call in self.calls:
                call.state = "gone"
            ops = [Op(M.STOP_CONTROL_CONNECTION_REQUEST)]
            return Round(ops, ()) if stop is Party.ORIGINATOR else Round((), ops)
        first, second = self.ops(Party.ORIGINATOR), self.ops(Party.RESPONDER)
        spoken = Round(_without_doubt(first, second), _without_doubt(second, first))
        for party, ops in enumerate(spoken):
            for op in ops:
                self.happen(Party(party), op)
        return spoken

    def ops(self, party: Party) -> list[Op]:
        count = self.draw(st.sampled_from((1, 2, 0, 3)))
        return [op for _ in range(count) for op in self.some(party)]

    def some(self, party: Party) -> list[Op]:
        about = self.draw(st.sampled_from(_ABOUT))
        if about == "call" and (op := self.about_call(party)) is not None:
            return [op]
        room = sum(call.state != "gone" for call in self.calls) < 4
        if about == "many" and room:
            return [op for _ in range(6) for op in self.request(party)]
        if about != "else" and room:
            return self.request(party)
        kind = self.draw(st.sampled_from((*FRAMEWORK, *INTRODUCTIONS[1::2],
            M.CALL_CLEAR_REQUEST, M.CALL_DISCONNECT_NOTIFY, M.WAN_ERROR_NOTIFY, M.SET_LINK_INFO,
        )))  # fmt: skip
        quirk = self.draw(st.sampled_from(("", *STRANGE)))
        return [Op(kind, None, self.draw(_NUMBERS), quirk=quirk)]

    def request(self, party: Party) -> list[Op]:
        number = self.free(party)
        if number is None:
            return []
        outgoing = self.draw(st.booleans())
        kind = M.OUTGOING_CALL_REQUEST if outgoing else M.INCOMING_CALL_REQUEST
        self.calls.append(_Call(party, party if outgoing else party.other, number))
        self.touched.add(len(self.calls) - 1)
        return [Op(kind, len(self.calls) - 1, number)]

    def free(self, party: Party) -> int | None:
        number = self.draw(_NUMBERS)
        for tried in (number, *range(0x1240, 0x1340)):
            if (party, tried) not in self.taken:
                self.taken.add((party, tried))
                return tried
        return None

    def about_call(self, party: Party) -> Op | None:
        free = [at for at in range(len(self.calls)) if at not in self.touched]
        if not free:
            return None
        at = self.draw(st.sampled_from(free))
        self.touched.add(at)
        call, ops = self.calls[at], []
        outgoing = call.pns is call.requester
        reply = M.OUTGOING_CALL_REPLY if outgoing else M.INCOMING_CALL_REPLY
        if call.state != "gone" and call.requester is not party and party not in call.numbers:
            number = self.free(party)
            if number is not None:
                ops = [Op(reply, at, number), Op(reply, at, number, agrees=False)]
        elif call.state == "requested":
            kind = M.OUTGOING_CALL_REQUEST if outgoing else M.INCOMING_CALL_REQUEST
            ops = [Op(kind, at, call.numbers[party])]
        elif call.state == "answered" and call.requester is party:
            ops = [Op(M.INCOMING_CALL_CONNECTED, at)]
        elif call.state in ("up", "clearing", "gone") and call.agreed:
            ops = [Op(M.SET_LINK_INFO, at), Op(M.SET_LINK_INFO, at, quirk="reserved")]
            if party is not call.pns:
                ops += [Op(M.WAN_ERROR_NOTIFY, at), Op(M.WAN_ERROR_NOTIFY, at, quirk="long")]
            if party is not call.requester and call.state != "gone":
                ops.append(Op(reply, at, call.numbers[party]))
        if call.state != "gone" and party in call.numbers:
            if party is call.pns and call.state != "clearing":
                ops += [Op(M.CALL_CLEAR_REQUEST, at), Op(M.CALL_CLEAR_REQUEST, at, quirk="long")]
            elif party is not call.pns:
                ops.append(Op(M.CALL_DISCONNECT_NOTIFY, at))
                if call.agreed:
                    ops += [Op(M.CALL_DISCONNECT_NOTIFY, at, quirk="pns"),
                            Op(M.CALL_DISCONNECT_NOTIFY, at, quirk="swapped")]  # fmt: skip
        return self.draw(st.sampled_from(ops)) if ops else None

    def happen(self, party: Party, op: Op) -> None:
        if op.call is None:
            return
        call = self.calls[op.call]
        if op.kind in (M.OUTGOING_CALL_REPLY, M.INCOMING_CALL_REPLY):
            call.numbers[party] = op.number
            call.agreed |= op.agrees
            if not op.agrees:
                call.state = "gone"
            elif call.state == "requested":
                call.state = "up" if op.kind is M.OUTGOING_CALL_REPLY else "answered"
        elif op.kind is M.INCOMING_CALL_CONNECTED:
            call.state = "up"
        elif op.kind is M.CALL_CLEAR_REQUEST and call.state != "gone":
            call.state = "clearing"
        elif op.kind is M.CALL_DISCONNECT_NOTIFY:
            call.state = "gone"


def _without_doubt(ops: list[Op], others: list[Op]) -> list[Op]:
    """Leave out numbers that nobody knows where the other side is about to introduce one."""
    if not any(op.kind in INTRODUCTIONS for op in others):
        return ops
    return [op for op in ops if op.call is not None or op.kind in FRAMEWORK]


@st.composite
def conversations(draw: st.DrawFn, rounds: int = 10) -> list[Round]:
    """Draw what two hosts say to each other, opener first."""
    talk = _Talk(draw)
    opening = [Round([Op(M.START_CONTROL_CONNECTION_REQUEST)], ()),
               Round((), [Op(M.START_CONTROL_CONNECTION_REPLY)])]  # fmt: skip
    return opening + [talk.round() for _ in range(draw(st.integers(min(4, rounds), rounds)))]
