"""The command monitor: what passes by, as it passes by."""

from __future__ import annotations

import json
import select
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pptp_nat.analysis.evidence_file import EvidenceFile, cooked
from pptp_nat.analysis.live import LiveSession
from pptp_nat.analysis.report import clean, text
from pptp_nat.core.messages import PORT
from pptp_nat.linux.packet_socket import PacketSocket, drop_privileges

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable

    from pptp_nat.analysis.live import News
    from pptp_nat.linux.packet_socket import Seen

TURN: Final = 0.25  #: seconds between two looks at what the packets mean, at least
BURST: Final = 2000  #: packets of one socket that are read in one go
RESTS: Final = 5  #: times as long as a look takes, until the next
VLAN: Final = 0x8100
MEBI: Final = 1 << 20


def monitor(options: Namespace) -> int:
    """Show calls, PPP and diagnoses as they appear, until the time is over or Ctrl-C."""
    ports = frozenset(options.port or (PORT,))
    sockets = [PacketSocket(name, ports) for name in options.interface or (None,)]
    kept = None
    if options.write is not None:
        kept = EvidenceFile(Path(options.write), options.limit * MEBI)
    drop_privileges(options.user)
    _Monitor(sockets, kept, LiveSession(ports), as_json=options.output == "json").run(
        options.seconds
    )
    return 0


class _Monitor:
    """Sockets in, lines out."""

    def __init__(
        self, sockets: list[PacketSocket], kept: EvidenceFile | None, session: LiveSession,
        *, as_json: bool,
    ) -> None:  # fmt: skip
        self._sockets = sockets
        self._kept = kept
        self._session = session
        self._as_json = as_json
        self._dropped = 0

    def run(self, seconds: float | None) -> None:
        """Go on for *seconds*, or until Ctrl-C; then sum up."""
        begun = due = time.monotonic()
        try:
            while seconds is None or time.monotonic() - begun < seconds:
                select.select(self._sockets, (), (), TURN)
                for each in self._sockets:
                    for seen in each.read(BURST):
                        self._take(seen)
                if time.monotonic() >= due:
                    looked = time.monotonic()
                    self._tell(self._session.turn(time.time()))
                    due = time.monotonic() + max(TURN, RESTS * (time.monotonic() - looked))
        except KeyboardInterrupt:
            pass
        finally:
            self._tell(self._session.turn(time.time(), last=True))
            if self._kept is not None:
                self._kept.close()
            for each in self._sockets:
                each.close()
        if not self._as_json:
            sys.stdout.writelines(f"{line}\n" for line in text(self._session.analysis, whole=False))

    def _take(self, seen: Seen) -> None:
        octets = seen.octets
        if self._kept is not None:
            frame = cooked(
                octets, seen.interface, seen.protocol, seen.direction, seen.hardware, seen.address
            )
            try:
                self._kept.write(seen.time, frame, len(frame) - len(octets) + seen.length)
            except OSError as error:
                self._kept = None
                sys.stderr.write(f"pptp-nat: evidence is kept no longer: {error.strerror}\n")
        if seen.protocol == VLAN:
            octets = octets[4:]
        # both directions of the loopback interface are one packet each
        place = seen.interface << 3 | seen.direction & 7
        self._session.take(seen.time, place, octets, seen.length)

    def _tell(self, news: Iterable[News]) -> None:
        for each in news:
            if self._as_json:
                line = json.dumps(each.item(self._session.analysis))
            else:
                line = f"{_clock(each.time)} {clean(each.text)}"
            sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
        if self._kept is not None:
            self._kept.flush()
        lost = sum(each.dropped() for each in self._sockets)
        if lost:
            self._dropped += lost
            sys.stderr.write(
                f"pptp-nat: {lost} packets came faster than they could be read, "
                f"{self._dropped} in all: what is said of losses is not to be trusted\n"
            )


def _clock(moment: float) -> str:
    local = time.localtime(moment)
    return f"{time.strftime('%H:%M:%S', local)}.{int(moment % 1 * 1000):03}"
