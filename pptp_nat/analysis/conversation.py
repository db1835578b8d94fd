"""One control connection of a capture: from segments to the story of both parties.

The octets go through the core's `pptp_nat.core.stream.Stream`, which changes nothing here:
every call ID stays what it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pptp_nat.analysis.calls import CallBook, Keeper
from pptp_nat.analysis.model import ControlEnd, Introduction, LadderEntry, Outcome, Step
from pptp_nat.analysis.tcp import Direction, Segment, ahead
from pptp_nat.core.messages import LAYOUTS, Frame, MessageType, says_yes, text, unpack
from pptp_nat.core.packet import ACK, FIN, RST, SYN
from pptp_nat.core.states import Answer, ControlState, End, TcpEnd, control_after
from pptp_nat.core.stream import FirstOctet
from pptp_nat.core.tuples import Party

if TYPE_CHECKING:
    from pptp_nat.analysis.model import ControlConnection
    from pptp_nat.analysis.packets import Evidence

_M = MessageType
_LADDER: Final = 400  #: entries of one connection
_ROUND_TRIPS: Final = 256  #: of each party's echoes
_ODDITIES: Final = 64  #: slugs of one connection
_STARTS: Final = (_M.START_CONTROL_CONNECTION_REQUEST, _M.START_CONTROL_CONNECTION_REPLY)

#: Fields that a ladder shows, where they are not zero or empty.
_SHOWN: Final = (
    "call_id", "peer_call_id", "result", "error", "cause", "reason", "serial", "window",
    "speed", "phone", "dialed", "dialing", "identifier", "host", "vendor", "send_accm",
    "receive_accm", "crc_errors", "framing_errors", "hardware_overruns", "buffer_overruns",
    "time_outs", "alignment_errors", "statistics",
)  # fmt: skip
#: Fields in which zero means something.
_EVEN_ZERO: Final = frozenset(("call_id", "peer_call_id", "result", "reason", "identifier"))


class Listener:
    """What the stream of one party is read with (a `pptp_nat.core.stream.Reader`)."""

    def __init__(self, conversation: Conversation, sender: Party) -> None:
        self._conversation, self._sender = conversation, sender

    def number(self, _kind: MessageType, value: int, *, own: bool, sent: int | None) -> int:  # noqa: ARG002
        """Leave a call ID as it is."""
        return value

    def result(self, value: int) -> int:
        """Leave the codes of a reply as they are."""
        return value

    def first_octet(self, _kind: MessageType, high: int, *, own: bool) -> FirstOctet:  # noqa: ARG002
        """Leave the first octet of a call ID as it is."""
        return FirstOctet(high, certain=True)

    def message(self, head: Frame, octets: bytes) -> None:
        """Pass on a whole message."""
        self._conversation.message(self._sender, head, octets)

    def release(self, octet: int) -> None:
        """Nothing is ever held."""

    def abandon(self) -> None:
        """Nothing was promised."""

    def oddity(self, slug: str) -> None:
        """Pass on a departure from the RFC or from TCP's order."""
        self._conversation.oddity(self._sender, slug)


class Conversation:
    """Follows one control connection."""

    def __init__(self, connection: ControlConnection, keeper: Keeper) -> None:
        self.connection = connection
        self.calls = CallBook(connection, keeper)
        self._directions = tuple(Direction(trouble) for trouble in connection.trouble)
        self._listeners = tuple(Listener(self, party) for party in Party)
        self._evidence = connection.first
        self._whole = 0  # messages that were complete with the segment at hand
        self._pending: dict[tuple[Party, int], Evidence] = {}  # echo requests

    def take(self, sender: Party, segment: Segment, evidence: Evidence) -> bool:
        """Read a segment; return False if the capture has it already and nothing was done."""
        connection, direction = self.connection, self._directions[sender]
        if direction.is_copy(segment, evidence.time):
            direction.trouble.repeated += 1
            return False
        connection.last = self._evidence = evidence
        if segment.flags & SYN:
            self._synchronise(sender, segment)
        elif segment.flags & ACK:
            self._acknowledge(sender, segment)
        if segment.payload and not segment.flags & RST:
            self._read(sender, segment)
        if segment.flags & (FIN | RST):
            self._finish(sender, segment)
        return True

    def is_begun_anew_by(self, segment: Segment) -> bool:
        """Whether *segment*, a SYN, begins another connection between the same ends."""
        direction = self._directions[Party.ORIGINATOR]
        known = direction.syn is not None or direction.stream.next is not None
        return known and direction.syn != segment.sequence

    def end(self, evidence: Evidence) -> None:
        """Take note that another connection has taken this one's place."""
        self._over(Party.ORIGINATOR, "replaced", evidence)
        self.connection.state = ControlState.CLOSED

    def finish(self) -> None:
        """Take note that nothing more comes."""
        for direction, listener in zip(self._directions, self._listeners, strict=True):
            direction.finish(listener)

    # TCP.

    def _synchronise(self, sender: Party, segment: Segment) -> None:
        connection, direction = self.connection, self._directions[sender]
        if direction.syn == segment.sequence:
            direction.trouble.retransmissions += 1
            self._note(sender, Step.TCP, "SYN", notes=("retransmitted",))
            return
        direction.syn = segment.sequence
        connection.initial[sender] = segment.sequence
        direction.stream.start(segment.sequence + 1)
        if sender is Party.ORIGINATOR:
            connection.syn = self._evidence
            self._note(sender, Step.TCP, "SYN")
        else:
            connection.syn_ack = connection.syn_ack or self._evidence
            self._note(sender, Step.TCP, "SYN, ACK")

    def _acknowledge(self, sender: Party, segment: Segment) -> None:
        connection, direction = self.connection, self._directions[sender]
        other = self._directions[sender.other]
        if (
            connection.established is None
            and connection.syn_ack is not None
            and sender is Party.ORIGINATOR
        ):
            connection.established = self._evidence
        direction.trouble.zero_windows += segment.window == 0 and not segment.flags & RST
        known = direction.acknowledged
        if known is None or ahead(known, segment.acknowledgement) > 0:
            direction.acknowledged = segment.acknowledgement
            if direction.unanswered is not None:
                silence = self._evidence.time - direction.unanswered
                trouble = direction.trouble
                trouble.longest_silence = max(trouble.longest_silence, silence)
                direction.unanswered = None
        other.acknowledge(
            segment.acknowledgement, self._listeners[sender.other], self._evidence.time
        )

    def _read(self, sender: Party, segment: Segment) -> None:
        direction, other = self._directions[sender], self._directions[sender.other]
        self._whole = 0
        direction.push(segment, self._evidence, self._listeners[sender])
        self._tell_of_split(direction)
        following = direction.stream.next
        assert following is not None
        if other.unanswered is None and (
            other.acknowledged is None or ahead(other.acknowledged, following) > 0
        ):
            other.unanswered = self._evidence.time

    def _tell_of_split(self, direction: Direction) -> None:
        direction.trouble.joined += self._whole > 1 or (
            self._whole == 1 and bool(direction.stream.head)
        )

    def _finish(self, sender: Party, segment: Segment) -> None:
        direction = self._directions[sender]
        if segment.flags & RST:
            direction.trouble.resets += 1
            self._note(sender, Step.TCP, "RST")
            self._over(sender, "RST", self._evidence)
            return
        at = segment.sequence + len(segment.payload)
        if direction.fin == at:
            direction.trouble.retransmissions += 1
            self._note(sender, Step.TCP, "FIN", notes=("retransmitted",))
            return
        direction.fin = at
        self._note(sender, Step.TCP, "FIN")
        self._over(sender, "FIN", self._evidence)

    def _over(self, by: Party, how: str, evidence: Evidence) -> None:
        connection = self.connection
        connection.ends_seen.append(ControlEnd(evidence, by, how))
        del connection.ends_seen[8:]
        self._move(TcpEnd.CLOSE)
        self.calls.over(End.REPLACED if how == "replaced" else End.CLOSED, evidence)

    def _move(self, event: MessageType | TcpEnd, answer: Answer = Answer.YES) -> None:
        state = control_after(self.connection.state, event, answer)
        if state is not None:
            self.connection.state = state

    # Messages.

    def message(self, sender: Party, head: Frame, octets: bytes) -> None:
        """Take note of a whole message."""
        connection, direction = self.connection, self._directions[sender]
        self._whole += 1
        packets = tuple(direction.carriers) if len(direction.carriers) > 1 else ()
        direction.carriers = direction.carriers[-1:]  # the next message begins in the same
        direction.trouble.split += bool(packets)
        connection.messages[sender, head.type] += 1
        notes = [f"split over {len(packets)} segments"] if packets else []
        if head.oddity is not None:
            self.oddity(sender, head.oddity)
            notes.append(head.oddity)
        kind = head.type
        if kind is None:
            self._note(sender, Step.MESSAGE, "unknown message", packets=packets, notes=notes)
            return
        if any(octets[place].strip(b"\0") for place in LAYOUTS[kind].reserved):
            self.oddity(sender, "reserved_not_zero")
            notes.append("reserved_not_zero")
        _, fields = unpack(octets)
        self._move(kind, Answer.YES if says_yes(kind, octets) else Answer.NO)
        if kind in _STARTS:
            self._introduce(sender, kind, fields)
        elif kind in (_M.ECHO_REQUEST, _M.ECHO_REPLY):
            self._echo(sender, kind, fields)
        elif kind is _M.STOP_CONTROL_CONNECTION_REQUEST:
            connection.ends_seen.append(ControlEnd(self._evidence, sender, kind.title))
            self.calls.over(End.STOPPED, self._evidence)
        else:
            self._about_call(sender, kind, fields, notes)
        shown = {
            name: text(value) if isinstance(value, bytes) else value
            for name in _SHOWN
            if (value := fields.get(name)) is not None
        }
        shown = {name: value for name, value in shown.items() if value or name in _EVEN_ZERO}
        self._note(sender, Step.MESSAGE, kind.title, kind, shown, packets, notes)

    def _about_call(
        self, sender: Party, kind: MessageType, fields: dict[str, int | bytes], notes: list[str]
    ) -> None:
        effect = self.calls.effects.get(kind)
        if effect is None:
            return
        call = effect(kind, sender, fields, self._evidence)
        if call is None:
            self.oddity(sender, "message_for_no_call")
            notes.append("message_for_no_call")
        else:
            call.last = max(call.last, self._evidence, key=_time)

    def oddity(self, sender: Party, slug: str) -> None:
        """Count a departure from the RFC or from TCP's order."""
        oddities = self.connection.oddities
        if slug == "conflicting_overlap":
            self._directions[sender].trouble.conflicts += 1
        count, first = oddities.get((sender, slug), (0, self._evidence))
        if count or len(oddities) < _ODDITIES:
            oddities[sender, slug] = count + 1, first

    def _introduce(self, sender: Party, kind: MessageType, fields: dict[str, int | bytes]) -> None:
        connection = self.connection
        numbers = {name: value for name, value in fields.items() if isinstance(value, int)}
        connection.introductions[sender] = Introduction(
            text(fields["host"]), text(fields["vendor"]), numbers["version"],
            numbers["firmware"], numbers["framing"], numbers["bearer"],
            numbers["maximum_channels"],
        )  # fmt: skip
        if kind is _M.START_CONTROL_CONNECTION_REPLY:
            connection.start = Outcome(kind, numbers["result"], numbers["error"])

    def _echo(self, sender: Party, kind: MessageType, fields: dict[str, int | bytes]) -> None:
        identifier = fields["identifier"]
        assert isinstance(identifier, int)
        if kind is _M.ECHO_REQUEST:
            echoes = self.connection.echoes[sender]
            echoes.requests += 1
            echoes.last_request = echoes.pending = self._evidence
            self._pending.setdefault((sender, identifier), self._evidence)
            if len(self._pending) > _ROUND_TRIPS:
                del self._pending[next(iter(self._pending))]
            return
        echoes = self.connection.echoes[sender.other]
        echoes.replies += 1
        echoes.last_reply, echoes.pending = self._evidence, None
        asked = self._pending.pop((sender.other, identifier), None)
        if asked is not None:
            echoes.round_trips.append(self._evidence.time - asked.time)
            del echoes.round_trips[:-_ROUND_TRIPS]

    def _note(
        self, sender: Party, step: Step, title: str, kind: MessageType | None = None,
        fields: dict[str, int | str] | None = None, packets: tuple[int, ...] = (),
        notes: list[str] | tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        connection = self.connection
        if len(connection.ladder) >= _LADDER:
            connection.ladder_left_out += 1
            return
        connection.ladder.append(LadderEntry(
            self._evidence, sender, step, title, kind, fields or {}, packets, tuple(notes)
        ))  # fmt: skip


def _time(evidence: Evidence) -> float:
    return evidence.time
