"""Millions of mutated inputs: ``python -m tests.fuzz.storm [MILLIONS [SEED]]``.

No search, only speed: seeds are taken, spoiled in some places, and read.  What
a reader may raise stands beside it; anything else ends the storm and prints the
input.  The properties of ``tests/fuzz`` look for other things: at fewer inputs,
and harder.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pptp_nat import api, config
from pptp_nat.analysis.capture import CaptureReader
from pptp_nat.control.subscription import Subscription
from pptp_nat.core.messages import LAYOUTS, MessageType, pack
from pptp_nat.core.packet import enhanced_gre, pack_enhanced_gre
from pptp_nat.core.snapshot import without_positions
from pptp_nat.core.translator import Translator
from pptp_nat.core.tuples import Placement, Seat
from pptp_nat.errors import ConfigError, ExhaustedError, UsageError, WireError
from pptp_nat.linux.datapath import LegOrder
from pptp_nat.linux.queue_path import QueuePath
from pptp_nat.state import records, statefile
from pptp_nat.state.contents import Contents
from pptp_nat.tables.table import Filter
from tests.core.wire import tcp_packet

CLIENT = bytes((192, 168, 7, 9))
ROUTER, SERVER = bytes((198, 18, 7, 1)), bytes((198, 18, 7, 2))
ROOT = Path(__file__).parents[2]
_INTERESTING = (b"\0", b"\xff", b"\x7f", b"\x80", b"\0\0", b"\xff\xff", b"\0\x0b", b"\x1a\x2b")

Lots = random.Random


class Target(NamedTuple):
    """What is fired at."""

    name: str
    share: float  #: of all inputs
    seeds: Callable[[], list[bytes]]
    read: Callable[[bytes], None]


def spoiled(octets: bytes, lots: Lots, others: list[bytes]) -> bytes:
    """Return *octets* with some of them wrong, missing, twice, or another's."""
    out = bytearray(octets)
    for _ in range(lots.choice((1, 1, 1, 2, 3, 8))):
        place = lots.randrange(len(out) + 1)
        match lots.randrange(6):
            case 0 if out:
                out[place % len(out)] ^= 1 << lots.randrange(8)
            case 1 if out:
                out[place % len(out)] = lots.randrange(256)
            case 2:
                some = lots.choice(_INTERESTING)
                out[place : place + len(some)] = some
            case 3:
                del out[place : place + lots.randrange(1, 9)]
            case 4:
                out[place:place] = out[place : place + lots.randrange(1, 33)]
            case _:
                other = lots.choice(others)
                cut = lots.randrange(len(other) + 1)
                out[place:] = other[cut : cut + 400]
    return bytes(out)


# Control segments: one translator for thousands of them, as a peer would have it.


def messages() -> list[bytes]:
    """Return one of each message, and some together."""
    found = []
    for kind in MessageType:
        names = LAYOUTS[kind].names
        fields = {"call_id": 7, "peer_call_id": 8, "result": 1}
        found.append(pack(kind, **{n: v for n, v in fields.items() if n in names}))
    return [*found, b"".join(found), found[6] + found[7], found[0] + found[6]]


class Router:
    """A translator under fire; another one after a while, since what is wrong adds up."""

    def __init__(self) -> None:
        self.shots = 0
        self.fresh()

    def fresh(self) -> None:
        """Begin anew."""
        self.translator = Translator(
            lambda f: Placement(
                f if f.destination_port == 1723 else f.reversed(),
                Seat(CLIENT, ROUTER), Seat(SERVER, SERVER), 0,
            ),
            lambda: 4660,
        )  # fmt: skip
        self.at = [1, 1]

    def __call__(self, octets: bytes) -> None:
        self.shots += 1
        if self.shots % 500 == 0:
            self.fresh()
        sender = self.shots & 1
        hosts = (CLIENT, 4711, SERVER, 1723)
        packet = tcp_packet(
            *(hosts[2:] + hosts[:2] if sender else hosts), sequence=self.at[sender],
            acknowledgement=self.at[1 - sender], flags=0x18, payload=octets,
        )  # fmt: skip
        if self.shots % 7:
            self.at[sender] = self.at[sender] + len(octets) & 0xFFFFFFFF
        self.translator.handle(packet, self.shots / 100, packet_id=self.shots)
        if self.shots % 50 == 0:
            self.translator.tick(self.shots / 100)


# GRE through the queue.


class Judged:
    """What a queue offers to its judge, and nothing behind it."""

    mark = 0
    hook = 0
    octets = b""

    def let_pass(self, packet: object, octets: bytes | None = None) -> None:
        """Take note that it passes: as long as it came."""
        assert octets is None or len(octets) == len(self.octets)

    def repeat(self, packet: object, octets: bytes) -> None:
        """Take note that it comes again."""

    def accept(self, packet: object) -> None:
        """Take note that it is none of ours."""

    drop = accept


def gre_packets() -> list[bytes]:
    """Return GRE of a call and not, in IP packets with and without options."""
    found = []
    for options in (b"", b"\x01" * 8):
        for gre in (
            pack_enhanced_gre(7, b"ppp", sequence=1),
            pack_enhanced_gre(7, b"", acknowledgement=3),
            pack_enhanced_gre(9, b"x" * 40, sequence=1, acknowledgement=2),
            b"\0\0\x08\0" + bytes(30),
        ):
            size = 20 + len(options)
            head = bytes((0x45 + len(options) // 4, 0)) + (size + len(gre)).to_bytes(2, "big")
            rest = bytes(4) + bytes((64, 47, 0, 0)) + SERVER + ROUTER + options
            found.append(head + rest + gre)
    return found


def gre_reader() -> Callable[[bytes], None]:
    """Return a reader of GRE packets."""
    path = QueuePath()
    gre = gre_packets()[0]
    from pptp_nat.core.tuples import Leg

    path.install([LegOrder(Leg(SERVER, ROUTER, 7, SERVER, CLIENT, 1234), 0)])
    queue = Judged()
    assert len(gre) > 28

    def read(octets: bytes) -> None:
        if len(octets) < 20:
            return  # the kernel queues no less than an IP header
        queue.octets = octets
        path.judge(queue, queue)  # type: ignore[arg-type]
        with contextlib.suppress(WireError):
            enhanced_gre(octets, 20)

    return read


# Requests, configurations, captures, records.


def requests() -> list[bytes]:
    """Return what clients of the socket ask."""
    asked: list[dict[str, object]] = [
        {"do": "status"}, {"do": "list", "state": "up", "client": "10.0.0.1", "call_id": 7},
        {"do": "connections"}, {"do": "clear", "server": "198.18.7.2"},
        {"do": "subscribe", "types": ["new", "destroy"]},
    ]  # fmt: skip
    return [json.dumps({"v": 1, "id": 3, **each}).encode() for each in asked]


def read_request(octets: bytes) -> None:
    """Read a request as the daemon does."""
    with contextlib.suppress(api.GarbageError, api.RefusedRequest, UsageError):
        request = api.parse(octets, 0)
        if request.do == api.SUBSCRIBE:
            Subscription.of(request.id, request.arguments, 1.0)
        else:
            Filter.of(request.arguments)


def configurations() -> list[bytes]:
    """Return the configuration that has every key."""
    text = (ROOT / "deploy" / "pptp-nat.toml").read_bytes()
    lines = [line for line in text.splitlines() if line and not line.startswith(b"#")]
    return [b"\n".join(lines), *(b"\n".join(lines[at : at + 6]) for at in range(0, 40, 6))]


def config_reader(directory: Path) -> Callable[[bytes], None]:
    """Return a reader of configuration files."""
    path = directory / "pptp-nat.toml"

    def read(octets: bytes) -> None:
        path.write_bytes(octets)
        with contextlib.suppress(ConfigError):
            config.load(path)

    return read


def captures() -> list[bytes]:
    """Return the captures of the repository, those that are small."""
    found = [path.read_bytes() for path in sorted((ROOT / "tests" / "captures").glob("*.pcap*"))]
    return [octets[:6000] for octets in found]


def capture_reader(directory: Path) -> Callable[[bytes], None]:
    """Return a reader of capture files."""
    path = directory / "capture.pcap"

    def read(octets: bytes) -> None:
        path.write_bytes(octets)
        with contextlib.suppress(UsageError):
            for _ in CaptureReader(path).windows():
                pass

    return read


def journals() -> list[bytes]:
    """Return a journal and the beginnings of it."""
    router = Router()
    for octets in messages()[:9] * 2:
        router(octets)
    whole = b"".join(records.whole(router.translator.snapshot()))
    return [whole, whole[: len(whole) // 2], *(whole[at : at + 200] for at in (0, 100, 300))]


def read_journal(octets: bytes) -> None:
    """Go on from records that may be wrong, their sums right or not."""
    contents = Contents()
    records.read(octets, contents)
    for kind in records._READERS:
        records.read(records.record(kind, octets[:120]), contents)
    taken = without_positions(contents.snapshot(0.0))
    translator = Translator(lambda _: None, lambda: 1)
    with contextlib.suppress(ExhaustedError):
        translator.restore(taken, 1.0)
    with contextlib.suppress(statefile.DamagedError):
        statefile.read_header(octets)


def targets(directory: Path) -> Iterator[Target]:
    """Yield all of them."""
    yield Target("control segments", 0.25, messages, Router())
    yield Target("GRE packets", 0.48, gre_packets, gre_reader())
    yield Target("socket requests", 0.25, requests, read_request)
    yield Target("records of state", 0.014, journals, read_journal)
    yield Target("configuration files", 0.004, configurations, config_reader(directory))
    yield Target("capture files", 0.002, captures, capture_reader(directory))


def storm(inputs: int, seed: int = 1) -> dict[str, int]:
    """Fire *inputs* in all; return how many at each target.

    Raises:
        AssertionError: one was read wrongly; says which, and with what.
    """
    lots, fired = Lots(seed), {}
    with tempfile.TemporaryDirectory() as directory:
        for target in targets(Path(directory)):
            seeds = target.seeds()
            for octets in seeds:
                target.read(octets)
            count = max(int(inputs * target.share), 1)
            for _ in range(count):
                octets = spoiled(lots.choice(seeds), lots, seeds)
                try:
                    target.read(octets)
                except Exception as error:
                    raise AssertionError(f"{target.name}: {octets!r}") from error
            fired[target.name] = count
    return fired


if __name__ == "__main__":
    millions = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    began = time.monotonic()
    done = storm(int(millions * 1_000_000), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    for name, count in done.items():
        sys.stdout.write(f"{count:>10,}  {name}\n")
    took = time.monotonic() - began
    sys.stdout.write(f"{sum(done.values()):>10,}  in all, no crash, {took:.0f} s\n")
