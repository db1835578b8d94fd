"""Captures as stories: who dials whom, what PPP says inside, what goes wrong.

A story reads like the ladders of `tests.scenario`, but what comes of it is packets::

    story = Story()
    call = story.dial(ALICE, PAC, call_id=1, answers=100)
    call.link().prove("u1").network()
    call.ping(3)
    story.analysis()

Times go on by a hundredth of a second with each packet, and by `Story.wait`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pptp_nat.core.messages import MessageType, Role, pack
from tests.core.wire import ACK, FIN, PSH, RST, SYN, ip_packet, tcp_packet

M = MessageType
PNS, PAC_ROLE = Role.PNS, Role.PAC
START = 1_700_000_000.0
STEP = 0.01
LCP, IPCP, CCP, IPV6CP, CHAP, PAP, EAP = 0xC021, 0x8021, 0x80FD, 0x8057, 0xC223, 0xC023, 0xC227
IP, SEALED = 0x0021, 0x00FD
REQUEST, ASK, ACKED, NAK, REJECT, TERMINATE, TERMINATED = 1, 1, 2, 3, 4, 5, 6
PROTOCOL_REJECT, ECHO, ECHO_REPLY, RESET = 8, 9, 10, 14
MS_CHAP_2 = b"\xc2\x23\x81"
CHAP_MD5 = b"\xc2\x23\x05"
PLAIN = b"\xc0\x23"
STATELESS_128 = b"\x01\x00\x00\x40"
SECRET = bytes.fromhex("bf5e9b69095b823f0e929fab7cb875eb")


class Host(NamedTuple):
    name: str
    address: bytes


ALICE = Host("Alice", bytes((192, 168, 77, 10)))
BOB = Host("Bob", bytes((192, 168, 77, 11)))
ROUTER = Host("the router", bytes((198, 18, 7, 1)))
SERVER = Host("the server", bytes((198, 18, 7, 2)))
OTHER_SERVER = Host("another server", bytes((198, 18, 7, 3)))


def option(kind: int, value: bytes = b"") -> bytes:
    return bytes((kind, len(value) + 2)) + value


def control(code: int, identifier: int, data: bytes = b"") -> bytes:
    return struct.pack("!BBH", code, identifier, 4 + len(data)) + data


def ppp(protocol: int, information: bytes) -> bytes:
    return b"\xff\x03" + struct.pack("!H", protocol) + information


def echo_request(size: int = 64, *, to: bytes = bytes((10, 9, 9, 1))) -> bytes:
    """Build an ICMP echo inside the tunnel."""
    return ip_packet(bytes((10, 9, 9, 2)), to, 1, b"\x08\0\0\0" + bytes(size - 24))


def still() -> float:
    """Tell that drawing conclusions takes no time, so that they are drawn at each turn."""
    return 0.0


class Story:
    """The wire at one place."""

    def __init__(self, start: float = START) -> None:
        self.now = start
        self.packets: list[tuple[float, bytes]] = []
        self.hidden: Callable[[bytes], bool] = lambda packet: False  #: what is lost before us
        self._port = 40000

    def wait(self, seconds: float) -> Story:
        self.now += seconds
        return self

    def put(self, packet: bytes) -> None:
        """Have an IPv4 packet pass."""
        self.now = round(self.now + STEP, 6)
        if not self.hidden(packet):
            self.packets.append((self.now, packet))

    def open(self, client: Host, server: Host, *, port: int = 1723) -> Tcp:
        """Open a TCP connection."""
        self._port += 1
        tcp = Tcp(self, client, server, self._port, port)
        tcp.segment(client, b"", SYN)
        tcp.segment(server, b"", SYN | ACK)
        tcp.segment(client, b"", ACK)
        return tcp

    def connect(self, client: Host, server: Host) -> Tcp:
        """Open a control connection as far as calls."""
        tcp = self.open(client, server)
        tcp.say(client, M.START_CONTROL_CONNECTION_REQUEST, version=0x100, host=b"client",
                vendor=b"a vendor")  # fmt: skip
        tcp.say(server, M.START_CONTROL_CONNECTION_REPLY, version=0x100, result=1, host=b"pac",
                vendor=b"another")  # fmt: skip
        return tcp

    def dial(
        self, client: Host, server: Host, *, call_id: int = 1, answers: int = 100,
        window: int = 64, over: Tcp | None = None, serial: int = 1,
    ) -> Call:  # fmt: skip
        """Have *client* place an outgoing call that *server* accepts."""
        tcp = over or self.connect(client, server)
        tcp.say(client, M.OUTGOING_CALL_REQUEST, call_id=call_id, serial=serial, window=window)
        tcp.say(server, M.OUTGOING_CALL_REPLY, call_id=answers, peer_call_id=call_id, result=1,
                window=window, speed=100_000_000)  # fmt: skip
        return Call(self, tcp, client, server, call_id, answers)

    def pcap(self, path: Path, *, wire: int = 0) -> Path:
        """Write what passed as a classic pcap of raw IP packets, each at least *wire* octets."""
        with path.open("wb") as file:
            file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101))
            for time, packet in self.packets:
                seconds = int(time)
                micros = round((time - seconds) * 1_000_000)
                size = max(len(packet), wire)
                file.write(struct.pack("<IIII", seconds, micros, len(packet), size))
                file.write(packet)
        return path


class Tcp:
    """A control connection."""

    def __init__(self, story: Story, client: Host, server: Host, sport: int, port: int) -> None:
        self.story, self.client, self.server = story, client, server
        self.ports = {client: sport, server: port}
        # Each connection has numbers of its own; the same one at another place has the same.
        self.sent = {client: 1_000 * sport, server: 900_000 + 2_000 * sport}

    def other(self, host: Host) -> Host:
        return self.server if host is self.client else self.client

    def segment(self, host: Host, octets: bytes, flags: int = PSH | ACK, *, back: int = 0) -> None:
        """Send a segment; with *back* it begins so many octets before what is next."""
        peer = self.other(host)
        self.story.put(tcp_packet(
            host.address, self.ports[host], peer.address, self.ports[peer],
            sequence=self.sent[host] - back, flags=flags, payload=octets,
            acknowledgement=self.sent[peer] if flags & ACK else 0,
        ))  # fmt: skip
        self.sent[host] += max(len(octets) + bool(flags & (SYN | FIN)) - back, 0)

    def say(self, host: Host, kind: MessageType, /, *cuts: int, **fields: int | bytes) -> None:
        """Say a message, in several segments if *cuts* say where; the other acknowledges."""
        octets = pack(kind, **fields)
        for begin, end in zip((0, *cuts), (*cuts, len(octets)), strict=True):
            self.segment(host, octets[begin:end])
        self.segment(self.other(host), b"", ACK)

    def echo(self, host: Host, *, answered: bool = True, identifier: int = 7) -> None:
        self.say(host, M.ECHO_REQUEST, identifier=identifier)
        if answered:
            self.say(self.other(host), M.ECHO_REPLY, identifier=identifier, result=1)

    def finish(self, host: Host) -> None:
        self.segment(host, b"", FIN | ACK)
        self.segment(self.other(host), b"", FIN | ACK)
        self.segment(host, b"", ACK)

    def reset(self, host: Host) -> None:
        self.segment(host, b"", RST | ACK)


class Call:
    """A call that is up, and the PPP in it."""

    def __init__(
        self, story: Story, tcp: Tcp, pns: Host, pac: Host, call_id: int, pac_call_id: int
    ) -> None:
        self.story, self.tcp = story, tcp
        self.hosts = {PNS: pns, PAC_ROLE: pac}
        self.ids = {PNS: call_id, PAC_ROLE: pac_call_id}
        self.sequences = {PNS: 0, PAC_ROLE: 0}
        self.identifiers = {PNS: 1, PAC_ROLE: 1}
        self.acknowledges = True
        self.coherency = {PNS: 0, PAC_ROLE: 0}

    def gre(
        self, sender: Role, payload: bytes, *, sequence: int | None = None,
        ack: int | None = None, key: int | None = None, flags: int | None = None,
        claims: int | None = None, cut: int | None = None, source: Host | None = None,
        destination: Host | None = None,
    ) -> Call:  # fmt: skip
        """Send one GRE packet, numbered on from the last and acknowledging what came."""
        other = sender.other
        if sequence is None and payload:
            sequence = self.sequences[sender]
        if sequence is not None:
            self.sequences[sender] = (sequence + 1) & 0xFFFFFFFF
        if ack is None and self.acknowledges and self.sequences[other]:
            ack = self.sequences[other] - 1 & 0xFFFFFFFF
        if flags is None:
            flags = (
                0x2001 | (0x1000 if sequence is not None else 0) | (0x80 if ack is not None else 0)
            )
        header = struct.pack(
            "!HHHH", flags, 0x880B, len(payload) if claims is None else claims,
            self.ids[other] if key is None else key,
        )  # fmt: skip
        numbers = b"".join(struct.pack("!I", each) for each in (sequence, ack) if each is not None)
        packet = ip_packet(
            (source or self.hosts[sender]).address, (destination or self.hosts[other]).address, 47,
            header + numbers + payload,
        )  # fmt: skip
        self.story.put(packet if cut is None else packet[:cut])
        return self

    def ack(self, sender: Role, number: int | None = None) -> Call:
        """Acknowledge without data."""
        return self.gre(sender, b"", ack=number)

    def ppp(
        self, sender: Role, protocol: int, code: int, data: bytes = b"", *,
        identifier: int | None = None,
    ) -> Call:  # fmt: skip
        """Send a control packet of PPP; a request counts its identifier on."""
        if identifier is None:
            identifier = self.identifiers[sender]
        return self.gre(sender, ppp(protocol, control(code, identifier, data)))

    def agree(self, protocol: int, options: dict[Role, bytes]) -> Call:
        """Have each side ask for its options and the other acknowledge them."""
        for sender, data in options.items():
            self.identifiers[sender] += 1
            self.ppp(sender, protocol, REQUEST, data)
            self.ppp(sender.other, protocol, ACKED, data, identifier=self.identifiers[sender])
        return self

    def link(self, authentication: bytes = MS_CHAP_2, *, mru: int = 1400) -> Call:
        """Let LCP agree; the PAC wants *authentication*, empty for none."""
        wants = option(3, authentication) if authentication else b""
        return self.agree(LCP, {
            PNS: option(1, struct.pack("!H", mru)) + option(5, b"\x11\x22\x33\x44") + option(7),
            PAC_ROLE: option(1, b"\x05\x78") + wants + option(5, b"\x55\x66\x77\x88"),
        })  # fmt: skip

    def prove(self, name: str = "u1", *, failure: str | None = None) -> Call:
        """Let the PNS prove with MS-CHAP v2 who it is, or fail with *failure*'s text."""
        self.ppp(PAC_ROLE, CHAP, 1, b"\x10" + SECRET + b"pptpd", identifier=9)
        self.ppp(PNS, CHAP, 2, b"\x31" + bytes(range(49)) + name.encode(), identifier=9)
        if failure is not None:
            return self.ppp(PAC_ROLE, CHAP, 4, failure.encode(), identifier=9)
        text = b"S=B2B54B1D8FAF56173DDAC77A29B7D8E14D4F9EAD M=Access granted"
        return self.ppp(PAC_ROLE, CHAP, 3, text, identifier=9)

    def mppe(self, bits: bytes = STATELESS_128) -> Call:
        """Let CCP agree on MPPE."""
        return self.agree(CCP, {PNS: option(18, bits), PAC_ROLE: option(18, bits)})

    def network(self, inner: bytes = bytes((10, 9, 9, 2))) -> Call:
        """Let IPCP give the PNS the address *inner*."""
        return self.agree(IPCP, {
            PNS: option(3, inner) + option(129, bytes((10, 9, 9, 53))),
            PAC_ROLE: option(3, bytes((10, 9, 9, 1))),
        })  # fmt: skip

    def seal(self, sender: Role, size: int = 80, **options: int) -> Call:
        """Send an encrypted datagram of *size* octets of payload."""
        count = self.coherency[sender]
        self.coherency[sender] = (count + 1) & 0xFFF
        body = b"\x00\xfd" + struct.pack("!H", 0x9000 | count) + bytes(size - 4)
        return self.gre(sender, body, **options)

    def chat(self, times: int = 3, size: int = 80, every: float = 0.0) -> Call:
        """Send encrypted datagrams to and fro."""
        for _ in range(times):
            self.seal(PNS, size)
            self.seal(PAC_ROLE, size)
            self.story.wait(every)
        return self

    def hang_up(self) -> Call:
        """Have the PNS end it in good order."""
        self.ppp(PNS, LCP, TERMINATE, b"User request")
        self.ppp(PAC_ROLE, LCP, TERMINATED)
        self.clear()
        self.tcp.finish(self.hosts[PNS])
        return self

    def clear(self) -> Call:
        """Have the PNS clear the call, and the PAC say that it is gone."""
        self.tcp.say(self.hosts[PNS], M.CALL_CLEAR_REQUEST, call_id=self.ids[PNS])
        self.tcp.say(self.hosts[PAC_ROLE], M.CALL_DISCONNECT_NOTIFY, call_id=self.ids[PAC_ROLE],
                     result=4)  # fmt: skip
        return self
