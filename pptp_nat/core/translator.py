"""The translator: one TCP packet in, its verdict and its octets out.

Life of a control packet
------------------------
1. `pptp_nat.core.packet.segment` checks its bounds.  Whatever is not a TCP
   segment passes untouched and is counted.
2. The connection is found by addresses and ports.  The first octets of an
   unknown one make `locate` ask conntrack who is inside.
3. Its stream (`pptp_nat.core.stream`) orders the octets and finds the messages.
4. The dialogue (`pptp_nat.core.dialogue`) gives numbers and moves calls.
5. The edits go into the packet; the checksum is patched.

Nothing here waits, reads a clock or draws a number by itself: `now` is
monotonic seconds from the caller, `locate` and `draw` are the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Final

from pptp_nat.core.beginnings import WINDOW, Beginnings
from pptp_nat.core.bindings import Bindings, Pair
from pptp_nat.core.book import Book, Settings
from pptp_nat.core.calls import Call, Connection
from pptp_nat.core.dialogue import Dialogue
from pptp_nat.core.events import LegMarked, Outcome, Verdict
from pptp_nat.core.held import Held
from pptp_nat.core.packet import (
    ACK,
    FIN,
    RST,
    SEQUENCE_MASK,
    SYN,
    Segment,
    edited,
    segment,
)  # fmt: skip
from pptp_nat.core.parts import WHOLE, Elsewhere, Part
from pptp_nat.core.snapshot import CallRecord, Snapshot, restore, snapshot
from pptp_nat.core.states import CallState, ControlState, End, TcpEnd
from pptp_nat.core.stream import Progress
from pptp_nat.core.tuples import Address, Flow, Party, Placement, Seat, flow_key, reverse_key
from pptp_nat.errors import AdapterError, ExhaustedError

_LOOKED_AT: Final = 64  #: connections, to find one that carries no call
_SWEEP_SECONDS: Final = 60.0
_SWEPT: Final = 1024  #: looked at in one go: less than a millisecond
_QUIET_SECONDS: Final = 120.0  #: after which no retransmission is to be expected

Locate = Callable[[Flow], Placement | None]


class Translator:
    """Follows control connections and translates their call IDs.

    Args:
        locate: tells who is inside of the control connection to which a packet
            with this flow belongs; None if conntrack does not know it.
        draw: returns a random int below 65,536.
        settings: limits and times.
        preserve: keep inside hosts' own call IDs where they are free.
        part: what of all control connections and numbers is this one's.
        elsewhere: what other workers hold.
    """

    def __init__(
        self,
        locate: Locate,
        draw: Callable[[], int],
        settings: Settings | None = None,
        *,
        preserve: bool = False,
        part: Part = WHOLE,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        settings = settings or Settings()
        bindings = Bindings(
            draw, preserve=preserve, quarantine=settings.quarantine, part=part,
            elsewhere=elsewhere,
        )  # fmt: skip
        self.book = Book(bindings, settings, part)
        self._locate = locate
        self._dialogue = Dialogue(self.book)
        self._beginnings = Beginnings(self.book)
        self._holds = self._dialogue.holds
        self._next_sweep: float | None = None
        self._unswept: Iterator[Connection | Call] | None = None  # of the sweep under way

    @property
    def settings(self) -> Settings:
        """Limits and times in force."""
        return self.book.settings

    def configure(self, settings: Settings, *, preserve: bool) -> None:
        """Apply other limits and times from here on; times under way keep their end."""
        self.book.settings = settings
        self.book.bindings.preserve = preserve
        self.book.bindings.quarantine = settings.quarantine

    def observe(self, *, wanted: bool) -> None:
        """Switch `MessageSeen` events on or off."""
        self._dialogue.observed = wanted

    def handle(
        self, packet: bytes, now: float, *, packet_id: int, is_local: bool = False
    ) -> Outcome:
        """Decide one IPv4 packet of TCP port 1723.

        Args:
            packet: from the first octet of the IP header.
            now: monotonic seconds.
            packet_id: names the packet if it is held and released later.
            is_local: one end is this router itself (seen in INPUT or OUTPUT).
        """
        outcome = Outcome()
        view = segment(packet)
        book = self.book
        if view is None:
            book.counts["not_a_segment"] += 1
            return outcome
        book.events = outcome.events
        self._dialogue.released = outcome.released
        if self._next_sweep is None:
            self._next_sweep = now + _SWEEP_SECONDS
        flags, at = view.flags, view.tcp_at
        key = packet[12:20] + packet[at : at + 4]
        if flags & SYN:
            self._beginnings.syn(key, view, *self._find(key))
            return outcome
        connection, sender = book.connections.get(key), Party.ORIGINATOR
        if connection is None:
            connection, sender = book.connections.get(reverse_key(key)), Party.RESPONDER
        has_octets = view.payload_at < view.end
        old, octets = None, b""
        if has_octets:
            octets = packet[view.payload_at : view.end]
            is_new = self._beginnings.are_new(key, connection, sender, octets, view.sequence)
            if is_new is None:
                outcome.verdict = Verdict.DROP
                return outcome
            if is_new:
                old, connection = connection, None
        if connection is None:
            if not has_octets:
                return outcome
            connection = self._open(key, octets, view, now, is_local=is_local)
            if connection is None:
                outcome.verdict = Verdict.DROP
                return outcome
            sender = Party.ORIGINATOR if connection.key == key else Party.RESPONDER
            if old is not None:
                book.move_connection(old, TcpEnd.REPLACED, now, end=End.REPLACED)
        outcome.connection = connection
        if connection.passive is not None:
            book.counts[connection.passive] += 1
        else:
            self._translate(connection, sender, key, packet, view, octets, now, packet_id, outcome)
        if flags & (FIN | RST) and outcome.verdict is not Verdict.DROP:
            self._close(connection, sender, view, now)
        return outcome

    def _find(self, key: bytes) -> tuple[Connection | None, Party]:
        connection = self.book.connections.get(key)
        if connection is not None:
            return connection, Party.ORIGINATOR
        return self.book.connections.get(reverse_key(key)), Party.RESPONDER

    def _open(
        self, key: bytes, octets: bytes, view: Segment, now: float, *, is_local: bool
    ) -> Connection | None:
        """Begin to follow a connection at its first octets; None: no room, TCP will try again."""
        book = self.book
        if len(book.connections) >= self.settings.connections and not self._evict(now):
            book.counts["connections_limit"] += 1
            return None
        flow = Flow(view.source, view.source_port, view.destination, view.destination_port)
        placement = self._locate(flow)
        if placement is None:  # untracked, so nobody translates its addresses either
            opener = flow.reversed() if reverse_key(key) in self._beginnings.half_open else flow
            placement = Placement(
                opener, Seat(opener.source, opener.source),
                Seat(opener.destination, opener.destination), 0,
            )  # fmt: skip
        connection = Connection.placed(book.next_id(), placement, now, is_local=is_local)
        book.open_connection(connection)
        self._beginnings.begin(connection, key, view, octets)
        return connection

    def _evict(self, now: float) -> bool:
        """Make room by forgetting the oldest connection that carries no call."""
        connections = self.book.connections
        for key in list(islice(connections, _LOOKED_AT)):
            connection = connections[key]
            if not connection.calls:
                self._forget(connection, now)
                self.book.counts["connections_evicted"] += 1
                return True
            # It stays; a flood must not have us look at it again for every packet.
            connections[key] = connections.pop(key)
        return False

    def _forget(self, connection: Connection, now: float) -> None:
        self.book.move_connection(connection, TcpEnd.REPLACED, now)

    def _translate(
        self, connection: Connection, sender: Party, key: bytes, packet: bytes, view: Segment,
        octets: bytes, now: float, packet_id: int, outcome: Outcome,
    ) -> None:  # fmt: skip
        if connection.is_asleep:
            self.book.wake(connection, now)
        talk = connection.talk
        stream, others = talk.originators, talk.responders
        if sender is Party.RESPONDER:
            stream, others = others, stream
        if view.flags & ACK:
            others.acknowledge(view.acknowledgement)
        if octets:
            dialogue = self._dialogue
            if stream.next is None:
                if not self._beginnings.is_clear(key, octets, view.sequence):
                    outcome.verdict = Verdict.DROP
                    return
                stream.meet(view.sequence, synced=False)
            elif stream.floor is not None:
                octets = self._beginnings.earlier(connection, stream, view.sequence, octets)
            dialogue.attend(connection, sender, now)
            try:
                progress, edits = stream.push(
                    view.sequence, octets, dialogue, limit=self.book.history
                )
            except ExhaustedError as refusal:
                self.book.refuse(connection, sender, refusal.reason)
                outcome.verdict = Verdict.DROP
                return
            if dialogue.echoed:
                dialogue.echoed = False
                outcome.echoed = True
            if edits:
                outcome.packet = edited(packet, view, edits)
                self.book.counts["rewritten"] += 1
            if progress is Progress.DROP:
                outcome.verdict = Verdict.DROP
            elif progress is Progress.HOLD:
                held = Held(connection, sender, packet_id, outcome.packet or packet, view)
                stream.held = held
                self._holds[held] = now + self.settings.hold
                outcome.verdict = Verdict.HOLD

    def _close(self, connection: Connection, sender: Party, view: Segment, now: float) -> None:
        """FIN or RST: grace for late messages, then the end."""
        expected = connection.streams[sender].next
        if expected is not None:
            distance = (view.sequence - expected + WINDOW) & SEQUENCE_MASK
            if distance > 2 * WINDOW:
                self.book.counts["end_out_of_window"] += 1
                return
        self.book.move_connection(connection, TcpEnd.CLOSE, now)

    # What ends calls and connections from outside the packets.

    def connection_lost(self, flow: Flow, now: float) -> Outcome:
        """Take note that a connection's conntrack entry is gone; *flow* is either direction."""
        outcome = self._outcome()
        connection, _ = self._find(flow_key(flow))
        if connection is not None:
            self.book.move_connection(connection, TcpEnd.LOST, now)
        return outcome

    def address_gone(self, address: Address, now: float) -> Outcome:
        """End the calls behind an external address that is no longer this router's."""
        connections = self.book.connections.values()
        return self.moved([c for c in connections if address in c.seen_as], now)

    def moved(self, connections: Iterable[Connection], now: float) -> Outcome:
        """End connections whose inside party is no longer seen as it was, and their calls."""
        outcome = self._outcome()
        for connection in connections:
            self.book.move_connection(connection, TcpEnd.REPLACED, now, end=End.ADDRESS)
        return outcome

    def ended(self, calls: Iterable[Call], now: float) -> Outcome:
        """End *calls* that are known to have ended while nobody looked."""
        outcome = self._outcome()
        for call in calls:
            self.book.finish(call, End.CLOSED, now)
        return outcome

    def look_at_mark(self, connection: Connection) -> Outcome:
        """Have the GRE of a connection's calls follow its connmark, at every echo."""
        outcome = self._outcome()
        try:
            placement = self._locate(connection.flow)
        except AdapterError:
            self.book.counts["mark_unknown"] += 1
            return outcome
        if placement is None or placement.mark == connection.mark:
            return outcome
        connection.mark = placement.mark
        for call in connection.calls:
            for party in Party:
                leg = call.leg(party)
                if leg is not None and call.state is not CallState.GONE:
                    outcome.events.append(LegMarked(call, leg, placement.mark))
        return outcome

    def claim(self, external: Address, remote: Address, number: int) -> bool:
        """Never give *number* to a call: GRE that we know nothing else of uses it."""
        return self.book.bindings.claim(Pair(external, remote), number)

    def unclaim(self, external: Address, remote: Address, number: int, now: float) -> None:
        """Give back what `claim` took, by way of quarantine."""
        self.book.bindings.release(Pair(external, remote), number, now)

    def heard(self, call: Call, packets: int, now: float) -> None:
        """Take note that *call* has carried so many GRE packets in all, both ways."""
        if packets != call.packets:
            call.packets = packets
            call.last_gre = now

    def clear(self, calls: list[Call], now: float) -> Outcome:
        """End *calls* because the operator says so.  Their control connections stay."""
        outcome = self._outcome()
        for call in calls:
            self.book.finish(call, End.OPERATOR, now)
        return outcome

    # What outlives this process.

    def snapshot(self) -> Snapshot:
        """Return all that is known, for `restore` in another process of this boot."""
        return snapshot(self.book, self._beginnings.half_open)

    def restore(self, taken: Snapshot, now: float, *, spent: bool = False) -> list[CallRecord]:
        """Go on where another translator was; this one has seen nothing yet.

        See `pptp_nat.core.snapshot.restore`.
        """
        self._beginnings.half_open.update(taken.half_open)
        self._next_sweep = now + _SWEEP_SECONDS
        return restore(self.book, taken, spent=spent)

    def _outcome(self) -> Outcome:
        outcome = Outcome()
        self.book.events = outcome.events
        self._dialogue.released = outcome.released
        return outcome

    # Time.

    def next_timer(self) -> float | None:
        """Return when `tick` has something to do, in monotonic seconds; None: no need."""
        times = [self.book.next_timer(), self._next_sweep, next(iter(self._holds.values()), None)]
        return min((time for time in times if time is not None), default=None)

    def tick(self, now: float) -> Outcome:
        """Do what has run out by *now*."""
        outcome = self._outcome()
        for held in [held for held, due in self._holds.items() if due <= now]:
            del self._holds[held]
            stream = held.connection.streams[held.sender]
            assert stream.held is held
            assert stream.cut is not None
            stream.held = None
            outcome.released.append(held.release(stream.cut))
        self.book.tick(now)
        self.book.let_rest(now)
        if self._next_sweep is not None and self._next_sweep <= now:
            self._sweep(now)
        return outcome

    def _sweep(self, now: float) -> None:
        """Look once a minute for what is quiet, connections and calls; some of them at a time."""
        book = self.book
        if self._unswept is None:
            self._unswept = chain(list(book.connections.values()), list(book.calls.values()))
        for each in (some := list(islice(self._unswept, _SWEPT))):
            if isinstance(each, Call):
                self._sweep_call(each, now)
            elif each.state is not ControlState.CLOSED:
                self._sweep_connection(each, now)
        if len(some) < _SWEPT:
            self._unswept, self._next_sweep = None, now + _SWEEP_SECONDS

    def _sweep_connection(self, connection: Connection, now: float) -> None:
        quiet = now - connection.last_message
        if quiet < _QUIET_SECONDS:
            return
        connection.settle()
        if quiet > self.settings.connection_idle and not connection.calls:
            self._forget(connection, now)

    def _sweep_call(self, call: Call, now: float) -> None:
        idle = self.settings.gre_idle
        if idle and call.state is CallState.UP:
            active = max(call.last_gre or 0.0, call.up_since or now)
            if now - active > idle:
                self.book.finish(call, End.IDLE, now)
