"""PPTP peers that people really use: pptp-linux against Debian's pptpd.

Both are whole programs; only PPP, which would need /dev/ppp, is ours.  At the
client, ``pptp --nolaunchpppd`` exchanges PPP frames with us over its standard
input.  At the server, pptpd's ``ppp`` option names `pptp_nat.lab.ppp_echo`
instead of pppd; it answers each frame with that frame and a name of its own.
So a client knows whether an answer is to its own words, and whether the same
server process gave all of them: a packet that reached another client, or came
from another one's, cannot pass for the right one.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from pptp_nat.errors import UsageError
from pptp_nat.lab import wire
from pptp_nat.lab.hdlc import Deframer, frame
from pptp_nat.lab.network import missing
from pptp_nat.lab.ppp_echo import GREETING

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence

    from pptp_nat.lab.loop import Loop
    from pptp_nat.lab.network import Host, Lab

RESEND: Final = 1.0  # seconds without an answer before a frame is sent again
SETTLE: Final = 0.2  # seconds between tries while the call may still be coming up
COMMANDS: Final = ("pptp", "pptpd")
_LISTENING: Final = "0A"  # TCP_LISTEN in /proc/net/tcp


def absent() -> str | None:
    """Return one line that says why real peers cannot run here, or None."""
    return missing(["iptables-restore", "unshare", *COMMANDS])


def start_server(lab: Lab, host: Host) -> subprocess.Popen[bytes]:
    """Start pptpd on *host*; it listens when this returns.

    Raises:
        UsageError: it does not.
    """
    home = lab.directory / f"pptpd-{host.name}"
    home.mkdir()
    program, options, config = home / "ppp", home / "options", home / "pptpd.conf"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -S -m {__package__}.ppp_echo\n", "ascii")
    program.chmod(0o755)
    options.write_text("")  # pptpd insists that it can be read
    config.write_text(
        f"ppp {program}\noption {options}\nconnections 100\n"
        "localip 10.99.0.1\nremoteip 10.99.1.1-100\n",
        "ascii",
    )
    command = ["pptpd", "--fg", "--conf", str(config), "--pidfile", str(home / "pid")]
    log = home / "log"
    process = lab.popen(host, command, mounts=_unheard(), log=log)
    deadline = time.monotonic() + RESEND * 10
    while not _listens(lab, host):
        if process.poll() is not None or time.monotonic() > deadline:
            raise UsageError(f"pptpd does not listen: {log.read_text() or 'no message'}")
        time.sleep(0.01)
    return process


def _unheard() -> dict[str, Path]:
    """Keep what the laboratory's programs say out of this machine's system log."""
    return {"/dev/log": Path("/dev/null")} if Path("/dev/log").exists() else {}


def _listens(lab: Lab, host: Host) -> bool:
    with lab.entered(host):
        table = Path("/proc/thread-self/net/tcp").read_text(encoding="ascii")
    port = f":{wire.PORT:04X}"
    rows = [row.split() for row in table.splitlines()[1:]]
    return any(row[1].endswith(port) and row[3] == _LISTENING for row in rows)


class Outcome(NamedTuple):
    """What became of one client."""

    client: str
    sent: int  #: frames, each counted once however often it had to be sent
    right: int  #: answers to its own words by its own server process
    wrong: int  #: answers to nobody's words, or by another server process
    foreign: int  #: answers to another client's words
    partner: str  #: the server process that answered, "" if none did
    dialled: int  #: how often it had to dial


class Report(NamedTuple):
    """What became of all of them, and how many answers each was to have by now."""

    outcomes: tuple[tuple[Outcome, int], ...]

    @property
    def good(self) -> bool:
        """Whether each client got exactly its own answers, from a server process of its own."""
        partners = [each.partner for each, _ in self.outcomes]
        return len(set(partners)) == len(partners) and all(
            (each.right, each.wrong, each.foreign) == (wanted, 0, 0)
            for each, wanted in self.outcomes
        )

    def __str__(self) -> str:
        lines = [
            f"{each.client}: {each.right} of {wanted} right, {each.wrong} wrong, "
            f"{each.foreign} another's, server process {each.partner or '-'}, "
            f"dialled {each.dialled} times"
            for each, wanted in self.outcomes
        ]
        return "\n".join(lines)


class Client:
    """pptp-linux on one host of the laboratory.

    Args:
        lab: the laboratory.
        host: where it runs.
        server: dotted address that it dials.
        loop: served while anything is awaited.
        call_id: what it is to use.  pptp draws the two octets of its call ID from
            /dev/random, so it is shown a file there; None shows it the real one.
            Not 0, which makes pptp draw again from elsewhere.
    """

    def __init__(
        self, lab: Lab, host: Host, server: str, loop: Loop, *, call_id: int | None = None
    ) -> None:
        self.name = host.name
        self.sent = self.right = self.wrong = self.foreign = self.dialled = 0
        self.partner = ""
        self._lab, self._host, self._server, self._loop = lab, host, server, loop
        self._home = lab.directory / f"pptp-{host.name}"
        self._mounts = {"/run": self._home / "run", **_unheard()}
        (self._home / "run").mkdir(parents=True, exist_ok=True)
        if call_id is not None:
            self._mounts["/dev/random"] = self._home / "random"
            (self._home / "random").write_bytes(call_id.to_bytes(2, sys.byteorder))
        self._nonce = os.urandom(6).hex()
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self._frames = Deframer()
        self._due = 0.0  # monotonic seconds of the next thing to do by the clock

    # -- the connection --------------------------------------------------------

    def dial(self) -> None:
        """Start pptp."""
        self.hang_up()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        command = ["pptp", self._server, "--nolaunchpppd", "--nohostroute", "--loglevel", "0"]
        with theirs:
            self._process = self._lab.popen(
                self._host,
                command,
                mounts=self._mounts,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                log=self._home / "log",
            )
        self._line = ours
        self._frames = Deframer()
        self.partner = ""  # each call has a server process of its own
        self.dialled += 1
        self._loop.watch(ours, self._ready)

    def hang_up(self) -> None:
        """End pptp and its call manager, which takes leave of the server by itself."""
        if self._process is None:
            return
        self._lab.end(self._process)
        self._process = None
        if self._line is not None:
            self._loop.forget(self._line)
            self._line.close()
            self._line = None
        self._loop.run_until(lambda: not self._lab.pids(self._host), RESEND, every=0.02)

    @property
    def log(self) -> str:
        """Return what pptp said so far."""
        return (self._home / "log").read_text(errors="replace")

    # -- the conversation --------------------------------------------------------

    def _text(self) -> bytes:
        return f"{self.name} {self._nonce} {self.sent}".encode("ascii")

    def attend(self, frames: int) -> bool:
        """Do what is due by now; True once *frames* have been answered."""
        if self.right >= frames:
            return True
        now = time.monotonic()
        if now < self._due:
            return False
        if self._process is None or self._process.poll() is not None:
            self.dial()
            self._due = now + SETTLE
        else:
            self._say(again=self.sent > self.right)
        return False

    def _say(self, *, again: bool) -> None:
        assert self._line is not None
        self.sent += 0 if again else 1
        self._due = time.monotonic() + (RESEND if self.partner else SETTLE)
        try:
            self._line.send(frame(self._text()))
        except OSError:  # pptp has ended, or does not read yet; the next round sees to it
            return

    def _ready(self, _events: int) -> None:
        assert self._line is not None
        try:
            octets = self._line.recv(65536)
        except OSError:
            octets = b""
        if not octets:
            self._loop.forget(self._line)
            return
        for body in self._frames.feed(octets):
            self._judge(body)

    def _judge(self, body: bytes) -> None:
        words, _, partner = body.decode("ascii", "replace").partition(" from ")
        if words == GREETING.decode("ascii") and self.partner in {"", partner}:
            self.partner = partner
            return
        if words == self._text().decode("ascii") and self.partner in {"", partner}:
            if self.sent > self.right:
                self.right += 1
                self.partner = partner
                self._due = 0.0
            return
        if words.startswith(f"{self.name} {self._nonce} ") and partner == self.partner:
            return  # an answer to words that were sent twice
        if words.startswith(self.name):
            self.wrong += 1
        else:
            self.foreign += 1

    @property
    def outcome(self) -> Outcome:
        """Return what became of this client so far."""
        return Outcome(
            self.name,
            self.sent,
            self.right,
            self.wrong,
            self.foreign,
            self.partner,
            self.dialled,
        )


def converse(
    loop: Loop, clients: Sequence[Client], *, frames: int = 5, seconds: float = 30.0
) -> Report:
    """Have all *clients* dial (unless they have) and get *frames* more answers, one by one."""
    wanted = {client: client.right + frames for client in clients}
    loop.run_until(
        lambda: all({client: client.attend(n) for client, n in wanted.items()}.values()),
        seconds,
        every=0.02,
    )
    return Report(tuple((client.outcome, n) for client, n in wanted.items()))
