"""GRE of calls rewritten where it lies: in the message by which the kernel handed it over.

A verdict's headers take no more room than the attributes that stand ahead of
the packet in the kernel's message, an interface at least.  So they are written
over those, the packet's few new octets into the packet, and what is sent back
is that piece of the memory that it came in.  Up to `ROOMS` messages come in one
system call and are answered in another; a packet costs two readings and three
writings of `struct`, one look-up and one sum.

What has not the usual form (IP options, the second stage of a hairpin, a
complaint of the kernel's) is judged by itself, in its turn.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import Final

from pptp_nat.linux.batch import PIECE_SIZE, ROOM, ROOMS, Batch
from pptp_nat.linux.leg_table import PLACE, ROW, TALLY
from pptp_nat.linux.nfqueue import (
    ACCEPT,
    COPIED,
    DROP,
    PACKET,
    REPEAT,
    Queue,
    mark_attribute,
)  # fmt: skip
from pptp_nat.linux.queue_path import OF_CALLS, QueuePath

try:  # it is there where the package was compiled
    from pptp_nat.linux import gre_rewriting
except ImportError:
    gre_rewriting = None  # type: ignore[assignment]

_PLAIN_IP: Final = 0x45  # version 4, no options
_SHORTEST: Final = 4 + 28  # octets: NFQA_PAYLOAD's header, IP without options, GRE with its key
_CUT: Final = 4 + COPIED  # it may be the beginning of a longer one
_MARK, _PAYLOAD = 3, 10  # linux/netfilter/nfnetlink_queue.h
_ATTRIBUTE: Final = struct.Struct("=HH")
_ATTRIBUTES: Final = 32  #: offset in a packet's message, behind NFQA_PACKET_HDR
#: nlmsg_len, nlmsg_type, and of nfqnl_msg_packet_hdr the packet's id and the hook
_HEAD: Final = struct.Struct("=IH18x4s2xB")
#: NFQA_PAYLOAD's header and of its packet: the first octet, checksum, addresses, the first word
#: of GRE, the payload length that it claims, the key
_BODY: Final = struct.Struct("=HHB9xH8s4s2s2s")
#: From nlmsg_len to NFQA_MARK.  NFQA_PAYLOAD's header, which follows, is the kernel's own.
_VERDICT: Final = struct.Struct("=I24s4s8s")
_VERDICT_SIZE: Final = _VERDICT.size
_BEGINS: Final = _VERDICT_SIZE + 4  # the nearest to a message's start that a packet can begin
_CHECKSUM_AT: Final = _BEGINS + 10  #: in what is sent back
_NEW: Final = struct.Struct("=H8s4s2s2s")  #: from the checksum to the key
_SEND: Final = 1 << 16  #: octets of verdicts in one send


class GreQueue(Queue):
    """The queue of GRE, judged by *path*, read and answered in batches; else as `Queue`.

    Args:
        ahead: is called when a batch has been received and before it is judged.  A peer's
            answer that opens a call waits in another queue, and its first data behind it.
    """

    def __init__(
        self,
        number: int,
        path: QueuePath,
        fault: Callable[[BaseException], None],
        *,
        length: int,
        buffer: int,
        repeat_mark: int,
        inherited: int | None = None,
        ahead: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(
            number, path.judge, fault, length=length, buffer=buffer, repeat_mark=repeat_mark,
            batch=32, inherited=inherited,
        )  # fmt: skip
        self._ahead = ahead
        self._received = Batch(self.fileno())
        self._judge_in_place = self._make_judge(path)
        self._judge_run = self._make_run(path)

    def serve(self, budget: int) -> None:
        """Judge up to *budget* waiting packets."""
        self.flush()  # what could not be sent the last time
        while budget > 0:
            wanted = min(budget, ROOMS)
            try:
                count = self._received.receive(wanted)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.overruns += 1
                budget -= 1
                continue
            try:
                self._ahead()
            except Exception as error:  # noqa: BLE001 - this batch waits for its verdicts
                self._tell(error)
            self._carry(count)
            if count < wanted:
                break
            budget -= count
        self.flush()

    def _send(self, ends: list[int]) -> None:
        """Send the verdicts in the pieces, each datagram up to one of *ends*, the next from there.

        What cannot be sent is kept.
        """
        first = 0
        for end in ends:
            try:
                self.flush()  # of packets that were judged by themselves, and came first
                self._received.send(first, end - first)
            except OSError as error:
                self.keep(self._received.copied(first, end - first), end - first)
                self._tell(error)
            first = end

    def _by_itself(self, n: int) -> None:
        """Judge message *n*, whatever it is."""
        self._take(self.buffer, self._received.copy(n, self.buffer))

    def _place(self, start: int, size: int) -> tuple[int, int]:
        """Return where in the message at *start* the packet begins, and its mark; 0: nowhere."""
        octets = self._received.octets
        at, mark_at = _ATTRIBUTES, 0
        while at < size:
            length, kind = _ATTRIBUTE.unpack_from(octets, start + at)
            if kind == _PAYLOAD:
                return at + 4, mark_at
            if kind == _MARK:
                mark_at = at + 4
            at += length + 3 & ~3 or size
        return 0, 0

    def _carry(self, count: int) -> None:
        """Judge a batch of *count* messages."""
        n = 0
        while n < count:
            n, ends = self._judge_run(n, count)
            if ends:
                self._send(ends)
            if n < count:
                self._by_itself(n)
                n += 1

    def _make_run(self, path: QueuePath) -> Callable[[int, int], tuple[int, list[int]]]:
        """Return what judges messages from one on, up to so many, as `_run_in_place`."""
        if gre_rewriting is None:
            return self._run_in_place
        batch, between = self._received, self.between
        notes, rows, seconds = path.notes, path.legs.rows, path.seconds
        rewrite, must_drop, repeat_mark = gre_rewriting.rewrite, path.must_drop, self.repeat_mark

        def run(first: int, count: int) -> tuple[int, list[int]]:
            return rewrite(
                batch.octets, ROOM, batch.pieces, first, count, notes, rows, seconds, must_drop,
                between, repeat_mark, COPIED,
            )  # fmt: skip

        return run

    def _run_in_place(self, first: int, count: int) -> tuple[int, list[int]]:
        """Judge messages from *first* on, of *count*, until one is for `_by_itself`.

        Return the number of that one, or *count*, and where among the pieces each datagram ends.
        """
        judge = self._judge_in_place
        given = ready = 0
        ends: list[int] = []
        n = first
        while n < count:
            start = n * ROOM
            try:
                size = judge(start, given)
            except Exception as error:  # noqa: BLE001 - a packet without a verdict blocks the queue
                self._tell(error)
                size = self._drop_in_place(start, given)
            if not size:
                break
            if ready and ready + size > _SEND:
                ends.append(given)
                ready = 0
            given += 1
            ready += size
            n += 1
        if given:
            ends.append(given)
        return n, ends

    def _drop_in_place(self, start: int, given: int) -> int:
        batch, name = self._received, _HEAD.unpack_from(self._received.octets, start)[2]
        _VERDICT.pack_into(
            batch.octets, start, _VERDICT_SIZE, self.between + DROP, name, mark_attribute(0)
        )
        batch.piece(batch.pieces, given * PIECE_SIZE, batch.address + start, _VERDICT_SIZE)
        return _VERDICT_SIZE

    def _make_judge(self, path: QueuePath) -> Callable[[int, int], int]:
        """Return what judges a packet in place: a function of local variables, for its speed.

        It takes where the message begins and how many pieces there are ahead of
        its own.  It returns the octets of that, or 0: this packet is for
        `_by_itself`.
        """
        batch, place, must_drop = self._received, self._place, path.must_drop
        octets, pieces, address, piece = batch.octets, batch.pieces, batch.address, batch.piece
        find, rows, seconds = path.notes.get, path.legs.rows, path.seconds
        head, body, row = _HEAD.unpack_from, _BODY.unpack_from, ROW.unpack_from
        write_verdict, write_new, count_up = _VERDICT.pack_into, _NEW.pack_into, TALLY.pack_into
        drop, accept, repeat = (self.between + each for each in (DROP, ACCEPT, REPEAT))
        repeat_mark = self.repeat_mark
        marked = mark_attribute(repeat_mark)
        places = [(_BEGINS, 0)] * 8  # by hook: where the last packet began, and its mark

        def judge(start: int, given: int) -> int:
            size: int
            size, kind, name, hook = head(octets, start)
            if kind != PACKET:
                return 0
            at, mark_at = places[hook & 7]
            length, attribute, first, check, match, gre, claim, key = body(octets, start + at - 4)
            if attribute != _PAYLOAD or at + length - 4 != size:
                at, mark_at = place(start, size)
                if not at:
                    return 0
                places[hook & 7] = at, mark_at
                length, _, first, check, match, gre, claim, key = body(octets, start + at - 4)
            match += key
            leg = find(match, 0) & PLACE
            if first != _PLAIN_IP or not _SHORTEST <= length < _CUT or gre not in OF_CALLS:
                return 0
            mark = 0
            if mark_at:
                mark = int.from_bytes(octets[start + mark_at : start + mark_at + 4], "big")
            begin = start + at - _BEGINS
            if not leg:
                if match in seconds:
                    return 0
                size = _VERDICT_SIZE
                verdict = drop if must_drop(hook) else accept
                write_verdict(octets, begin, size, verdict, name, mark_attribute(mark))
            else:
                packets, total, delta, key, addresses, own_mark, again = row(rows, leg)
                count_up(rows, leg, packets + 1, total + length - 4)
                check = 0xFFFF - check + delta
                if check > 0xFFFF:
                    check -= 0xFFFF
                write_new(octets, begin + _CHECKSUM_AT, 0xFFFF - check, addresses, gre, claim, key)
                marking = marked
                if mark or own_mark or again:
                    mark = own_mark or mark
                    marking = mark_attribute(mark if again else mark | repeat_mark)
                size = _VERDICT_SIZE + length
                write_verdict(octets, begin, size, repeat, name, marking)
            size = size + 3 & ~3
            piece(pieces, given * PIECE_SIZE, address + begin, size)
            return size

        return judge
