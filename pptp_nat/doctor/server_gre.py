"""GRE to and from the server that the doctor dials.

GRE is listened for where it arrives, ahead of this host's own firewall: what
matters is whether the server's packets come this far.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

from pptp_nat.core.packet import GRE, enhanced_gre, pack_enhanced_gre
from pptp_nat.doctor.model import Judgement, Outcome
from pptp_nat.doctor.server_control import ASK_THE_SERVER, Dialogue, Failed
from pptp_nat.errors import AdapterError, WireError
from pptp_nat.linux.netlink import Instruction, attach

LCP: Final = bytes.fromhex("ff03c021")  #: address, control and protocol of a PPP frame (RFC 1662)
LCP_NAMES: Final = {1: "Configure-Request", 2: "Configure-Ack", 3: "Configure-Nak",
                    4: "Configure-Reject", 5: "Terminate-Request", 6: "Terminate-Ack",
                    7: "Code-Reject", 8: "Protocol-Reject", 9: "Echo-Request",
                    10: "Echo-Reply"}  # fmt: skip
ETH_P_IP: Final = 0x0800
AGAIN_SECONDS: Final = 1.0  #: between two LCP Configure-Requests (RFC 1661 has 3)
MOST_PACKETS: Final = 1000  #: of other GRE that are looked at in one turn


class _Heard(NamedTuple):
    """GRE from the server."""

    key: int
    payload: bytes


def converse(dialled: Dialogue, address: str, timeout: float) -> Iterator[Judgement]:
    """Send LCP in GRE and wait for any from the server."""
    check = "server_gre"
    with contextlib.ExitStack() as stack:
        try:
            ear = stack.enter_context(_ear(address))
            mouth = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_RAW, GRE))
        except (OSError, AdapterError) as error:
            yield Judgement(check, Outcome.WARN, f"GRE was not tried: {error}",
                            "run the doctor as root: it needs CAP_NET_RAW")  # fmt: skip
            return
        yield _converse(dialled, address, timeout, ear, mouth)


def _converse(
    dialled: Dialogue, address: str, timeout: float, ear: socket.socket, mouth: socket.socket
) -> Judgement:
    check = "server_gre"
    began = time.monotonic()
    deadline, again = began + timeout, began
    sent = 0
    others: set[int] = set()
    problem = ""
    while (now := time.monotonic()) < deadline:
        if now >= again:
            problem = _say(mouth, address, dialled.peer_call_id, sent) or problem
            sent, again = sent + 1, now + AGAIN_SECONDS
        ready = select.select(
            [ear.fileno(), dialled.fileno()], [], [], max(0.0, min(again, deadline) - now)
        )[0]
        if ear.fileno() in ready:
            for heard in _listen(ear, address):
                if heard.key == dialled.call_id:
                    seconds = time.monotonic() - began
                    return Judgement(
                        check, Outcome.PASS,
                        f"GRE comes back after {seconds:.3f} s: {_described(heard.payload)}",
                    )  # fmt: skip
                others.add(heard.key)
        if dialled.fileno() in ready and (ended := dialled.lost_call()):
            raise Failed(check, ended, ASK_THE_SERVER)
    if others:
        keys = ", ".join(map(str, sorted(others)[:8]))
        raise Failed(
            check, f"GRE comes with call ID {keys}, which is not ours ({dialled.call_id})",
            "another call's, or a NAT in between translates the messages and not the GRE, or "
            "the other way round",
        )  # fmt: skip
    words = f"no GRE comes back within {timeout:g} s ({sent} packets sent)"
    raise Failed(
        check, f"{words}; sending says: {problem}" if problem else words,
        "IP protocol 47 is filtered between here and the server: by the provider, by the "
        "server's firewall, or by another NAT in front of this router, which needs PPTP "
        "passthrough too",
    )  # fmt: skip


def _ear(server: str) -> socket.socket:
    """Return a socket that hears GRE from *server* on every interface, before the firewall.

    A packet that came before the filter may still be in it.

    Raises:
        OSError, AdapterError: the kernel refuses.
    """
    number = int.from_bytes(socket.inet_aton(server), "big")
    program = [
        Instruction(0x30, 0, 0, 9),  # load the protocol
        Instruction(0x15, 0, 3, GRE),
        Instruction(0x20, 0, 0, 12),  # load the source
        Instruction(0x15, 0, 1, number),
        Instruction(0x06, 0, 0, 0xFFFF),  # all of it
        Instruction(0x06, 0, 0, 0),  # nothing
    ]
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP))
    try:
        attach(opened, program)
        opened.setblocking(False)
    except BaseException:
        opened.close()
        raise
    return opened


def _listen(ear: socket.socket, server: str) -> Iterator[_Heard]:
    source = socket.inet_aton(server)
    for _ in range(MOST_PACKETS):
        try:
            packet = ear.recv(2048)
        except OSError:
            return
        if packet[9:10] != bytes((GRE,)) or packet[12:16] != source:
            continue
        at = (packet[0] & 0x0F) * 4
        with contextlib.suppress(WireError):
            header = enhanced_gre(packet, at)
            if header is not None:
                start = at + header.size
                yield _Heard(header.key, packet[start : start + header.payload_length])


def _say(mouth: socket.socket, address: str, key: int, number: int) -> str:
    """Send an LCP Configure-Request (RFC 1661 section 5.1); return what the kernel says to it."""
    magic = b"\x05\x06" + os.urandom(4)
    request = struct.pack("!BBH", 1, 1 + number & 0xFF, 4 + len(magic)) + magic
    packet = pack_enhanced_gre(key, LCP + request, sequence=number)
    try:
        mouth.sendto(packet, (address, 0))
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _described(payload: bytes) -> str:
    """Say what a GRE packet carries."""
    if not payload:
        return "an acknowledgement"
    for header in (LCP, LCP[2:]):
        if payload.startswith(header) and len(payload) > len(header):
            code = payload[len(header)]
            return f"LCP {LCP_NAMES.get(code, f'code {code}')}"
    return f"{len(payload)} octets of PPP"
