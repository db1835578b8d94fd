"""One end of a control connection, and its calls."""

from __future__ import annotations

import errno
import selectors
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Final, Literal

from pptp_nat.lab import wire
from pptp_nat.lab.wire import Gre, Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from pptp_nat.lab.peers import Station

Role = Literal["PNS", "PAC"]
_MSG_EOR: Final = socket.MSG_EOR  # the kernel adds nothing to a segment that ends so


def swapped(number: int) -> int:
    """Return *number* with its two octets the wrong way round."""
    return number >> 8 | (number & 0xFF) << 8


class Call:
    """One end of one call."""

    def __init__(self, connection: Connection, role: Role, own_id: int, label: str) -> None:
        self.connection = connection
        self.role: Role = role
        self.own_id = own_id
        self.peer_id: int | None = None  #: as the other end's messages give it
        self.label = label
        self.state: Literal["requested", "up", "refused", "gone"] = "requested"
        self.heard: list[Message] = []  #: Set-Link-Info and WAN-Error-Notify for this call
        self.sent = 0
        self.right = 0  #: packets from our peer that were for us
        self.wrong: list[bytes] = []  #: payloads that were for somebody else
        self.late = 0  #: packets of `right` that came behind a later one
        self._heard: set[int] = set()
        self._last: int | None = None

    @property
    def up(self) -> bool:
        """Whether GRE may flow."""
        return self.state == "up"

    def _payload(self, sender: str, receiver: str, number: int) -> bytes:
        return f"{sender}>{receiver} call={self.label} n={number}".encode("ascii")

    def say(self, count: int = 1, *, padding: int = 0) -> None:
        """Send *count* GRE packets to the other end."""
        assert self.peer_id is not None, "the other end's call ID is not known yet"
        station = self.connection.station
        for _ in range(count):
            text = self._payload(station.name, self.connection.peer_name, self.sent)
            packet = Gre(self.peer_id, text + b"." * padding, self.sent, self._last)
            station.send_gre(self.connection.remote, wire.encode_gre(packet))
            self.sent += 1

    def hear(self, packet: Gre) -> None:
        """Judge a GRE packet that carried our call ID."""
        if packet.sequence is None and not packet.payload:
            return  # an acknowledgement says nothing
        number = packet.sequence or 0
        self.late += self._last is not None and number < self._last
        self._last = packet.sequence if packet.sequence is not None else self._last
        wanted = self._payload(self.connection.peer_name, self.connection.station.name, number)
        if packet.payload.rstrip(b".") == wanted and number not in self._heard:
            self._heard.add(number)
            self.right += 1
        else:
            self.wrong.append(packet.payload)


class Connection:
    """One end of a control connection."""

    def __init__(
        self,
        station: Station,
        sock: socket.socket,
        remote: str,
        *,
        cut: int | None = None,
        nodelay: bool = True,
    ) -> None:
        self.station = station
        self.remote = remote  #: dotted; the other end's address as seen here
        self.peer_name = ""  #: from its Start-Control-Connection message
        self.received: list[Message] = []
        self.unknown: list[Message] = []  #: messages about calls that we do not have
        self.calls: dict[int, Call] = {}  #: by our own number
        self.established = False
        self.closed = False
        self.error = ""  #: why it ended, if it was not in good order
        self._sock = sock
        self._cut = cut
        self._nodelay = nodelay
        self._connecting = False
        self._out: deque[bytes] = deque()
        self._in = b""
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(nodelay))

    # -- sending ---------------------------------------------------------------

    def connect(self, port: int) -> None:
        """Open the TCP connection and start the control connection on it."""
        result = self._sock.connect_ex((self.remote, port))
        assert result in {0, errno.EINPROGRESS}, errno.errorcode[result]
        self._connecting = True
        self.send("SCCRQ", version=0x0100, framing=3, bearer=3, host=self.station.octets)

    def send(self, name: str, **fields: int | bytes) -> None:
        """Send the control message *name*."""
        self.send_raw(wire.encode(name, **fields))

    def send_raw(self, octets: bytes) -> None:
        """Send any octets, in as many segments as this connection cuts them into."""
        size = self._cut or len(octets)
        self._out.extend(octets[at : at + size] for at in range(0, len(octets), size))
        self._flush()

    def _flush(self) -> None:
        """Write what the socket takes.

        With Nagle's algorithm off every piece is a segment of its own; with it on the
        first is, and the rest comes together once that one has been acknowledged.
        """
        flags = _MSG_EOR if self._cut and self._nodelay else 0
        while self._out and not (self._connecting or self.closed):
            piece = self._out[0]
            try:
                written = self._sock.send(piece, flags)
            except BlockingIOError:
                break
            except OSError as error:
                self._lost(error)
                return
            self._out.popleft()
            if written < len(piece):
                self._out.appendleft(piece[written:])
        if not self.closed:
            writing = bool(self._out) or self._connecting
            self.station.loop.watch(self._sock, self.ready, writing=writing)

    def call(self, call_id: int | None = None, *, label: str | None = None) -> Call:
        """Place an outgoing call: we are its PNS."""
        call = self._new_call("PNS", call_id, label)
        phone = call.label.encode("ascii")
        self.send(
            "OCRQ",
            call=call.own_id,
            serial=len(self.calls),
            slowest=2400,
            fastest=10_000_000,
            bearer=3,
            framing=3,
            window=64,
            length=len(phone),
            phone=phone,
        )
        return call

    def offer(self, call_id: int | None = None, *, label: str | None = None) -> Call:
        """Offer an incoming call: we are its PAC."""
        call = self._new_call("PAC", call_id, label)
        phone = call.label.encode("ascii")
        self.send(
            "ICRQ",
            call=call.own_id,
            serial=len(self.calls),
            bearer=3,
            dialing_length=len(phone),
            dialing=phone,
        )
        return call

    def _new_call(self, role: Role, call_id: int | None, label: str | None) -> Call:
        own_id = self.station.next_id() if call_id is None else call_id
        call = Call(self, role, own_id, label or self.station.next_label())
        self.calls[own_id] = call
        self.station.remember(call)
        return call

    def clear(self, call: Call) -> None:
        """End *call*: as PNS by asking for it, as PAC by saying so."""
        if call.role == "PNS":
            self.send("CCRQ", call=call.own_id)
        else:
            self._disconnect(call, result=3)

    def _disconnect(self, call: Call, *, result: int) -> None:
        number = call.own_id
        if self.station.quirk != "own":
            number = call.peer_id or 0
        if self.station.quirk == "peers-swapped":
            number = swapped(number)
        self.send("CDN", call=number, result=result)
        self.station.end(call)

    def stop(self) -> None:
        """Ask the other end to end the control connection and its calls."""
        self.send("StopCCRQ", reason=1)

    def close(self) -> None:
        """Close the TCP connection in good order (FIN); its calls are over."""
        if self.closed:
            return
        self.closed = True
        self.station.loop.forget(self._sock)
        self._sock.close()
        for call in self.calls.values():
            self.station.end(call)

    def reset(self) -> None:
        """Close the TCP connection with a RST, as a host that crashed would."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    # -- receiving ---------------------------------------------------------------

    def ready(self, events: int) -> None:
        """Do what the socket is ready for."""
        if events & selectors.EVENT_WRITE:
            if self._connecting:
                problem = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if problem:
                    self._lost(OSError(problem, errno.errorcode[problem]))
                    return
                self._connecting = False
            self._flush()
        if events & selectors.EVENT_READ and not (self.closed or self._connecting):
            self._read()

    def _read(self) -> None:
        try:
            octets = self._sock.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(error)
            return
        if not octets:
            self.close()
            return
        # Acknowledge at once: a sender with Nagle's algorithm waits for it.
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        self._in += octets
        try:
            while not self.closed and (found := wire.decode(self._in)):
                message, self._in = found
                self.received.append(message)
                _REACTIONS.get(message.name, _nothing)(self, message)
        except ValueError as error:
            self._lost(error)

    def _lost(self, why: Exception) -> None:
        self.error = str(why)
        self.close()

    def _own(self, message: Message) -> Call | None:
        """Return the call whose number the message gives as ours."""
        call = self.calls.get(message.number("peer"))
        if call is None:
            self.unknown.append(message)
        return call

    def _theirs(self, message: Message) -> Call | None:
        """Return the call whose number the message gives as the sender's."""
        number = message.number("call")
        for call in self.calls.values():
            if call.peer_id == number and call.state == "up":
                return call
        self.unknown.append(message)
        return None

    def on_start(self, message: Message) -> None:
        """Answer a Start-Control-Connection-Request."""
        self.peer_name = message.text("host")
        self.established = True
        self.send("SCCRP", version=0x0100, result=1, framing=3, bearer=3, host=self.station.octets)

    def on_started(self, message: Message) -> None:
        """Take note that the control connection is established."""
        self.peer_name = message.text("host")
        self.established = message.number("result") == 1

    def on_stop(self, _message: Message) -> None:
        """Answer a Stop-Control-Connection-Request and close."""
        self.send("StopCCRP", result=1)
        self.close()

    def on_stopped(self, _message: Message) -> None:
        """Close, as the other end has agreed to."""
        self.close()

    def on_echo(self, message: Message) -> None:
        """Answer an Echo-Request."""
        self.send("EchoRP", identifier=message.number("identifier"), result=1)

    def on_outgoing(self, message: Message) -> None:
        """Answer a call that the other end places: we are its PAC."""
        if self.station.refuses:
            self.send("OCRP", peer=message.number("call"), result=4)  # busy
            return
        call = self._new_call("PAC", None, message.text("phone"))
        call.peer_id = message.number("call")
        call.state = "up"
        self.send("OCRP", call=call.own_id, peer=call.peer_id, result=1, speed=64000, window=64)

    def on_outgoing_answered(self, message: Message) -> None:
        """Take note of the answer to a call that we placed."""
        if call := self._own(message):
            call.peer_id = message.number("call")
            call.state = "up" if message.number("result") == 1 else "refused"

    def on_incoming(self, message: Message) -> None:
        """Answer a call that the other end offers: we are its PNS."""
        call = self._new_call("PNS", None, message.text("dialing"))
        call.peer_id = message.number("call")
        result = 2 if self.station.refuses else 1
        call.state = "refused" if self.station.refuses else "requested"
        self.send("ICRP", call=call.own_id, peer=call.peer_id, result=result, window=64)

    def on_incoming_answered(self, message: Message) -> None:
        """Connect a call that we offered."""
        if call := self._own(message):
            call.peer_id = message.number("call")
            if message.number("result") == 1:
                call.state = "up"
                self.send("ICCN", peer=call.peer_id, speed=64000, window=64, framing=1)
            else:
                call.state = "refused"

    def on_incoming_connected(self, message: Message) -> None:
        """Take note that a call offered to us is up."""
        if call := self._own(message):
            call.state = "up"

    def on_clear(self, message: Message) -> None:
        """End the call that the other end asks us to end."""
        if call := self._theirs(message):
            self._disconnect(call, result=4)

    def on_disconnected(self, message: Message) -> None:
        """Take note that a call has ended, whichever number it is called by."""
        number = message.number("call")
        up = [call for call in self.calls.values() if call.up]
        for named in (
            lambda call: call.peer_id == number,  # the sender's own, as the RFC has it
            lambda call: call.own_id == number,
            lambda call: call.own_id == swapped(number),
        ):
            for call in filter(named, up):
                self.station.end(call)
                return
        self.unknown.append(message)

    def on_link(self, message: Message) -> None:
        """Keep what was said about a call's link."""
        if call := self._own(message):
            call.heard.append(message)


def _nothing(_connection: Connection, _message: Message) -> None:
    """Leave the message in `Connection.received`."""


# fmt: off
_REACTIONS: Final[dict[str, Callable[[Connection, Message], None]]] = {
    "SCCRQ": Connection.on_start,
    "SCCRP": Connection.on_started,
    "StopCCRQ": Connection.on_stop,
    "StopCCRP": Connection.on_stopped,
    "EchoRQ": Connection.on_echo,
    "OCRQ": Connection.on_outgoing,
    "OCRP": Connection.on_outgoing_answered,
    "ICRQ": Connection.on_incoming,
    "ICRP": Connection.on_incoming_answered,
    "ICCN": Connection.on_incoming_connected,
    "CCRQ": Connection.on_clear,
    "CDN": Connection.on_disconnected,
    "WEN": Connection.on_link,
    "SLI": Connection.on_link,
}
# fmt: on
