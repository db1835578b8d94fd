"""The control connection that the doctor opens: start, call, farewell."""

from __future__ import annotations

import contextlib
import errno
import secrets
import select
import socket
import time
from collections.abc import Iterator
from typing import Final

from pptp_nat.core.messages import (
    GENERAL_ERRORS,
    HEADER,
    RESULTS,
    MessageType,
    frame,
    pack,
    text,
    unpack,
)  # fmt: skip
from pptp_nat.doctor.model import Judgement, Outcome
from pptp_nat.errors import WireError

_M = MessageType
Fields = dict[str, int | bytes]

FAREWELL_SECONDS: Final = 2.0  #: at most, for each of the two messages that end it politely
MOST_OCTETS: Final = 1 << 16  #: that a server may send before it is taken for none
ASK_THE_SERVER: Final = "look at the server's log, or ask its operator: these are its own words"


class Failed(Exception):
    """A step that the server did not pass."""

    def __init__(self, check: str, text: str, mend: str) -> None:
        super().__init__(text)
        self.judgement = Judgement(check, Outcome.FAIL, text, mend)


class Dialogue:
    """A control connection of ours, and at most one call."""

    def __init__(self, opened: socket.socket, timeout: float) -> None:
        self._socket = opened
        self._timeout = timeout
        self._octets = b""
        self._received = 0
        self._started = False
        self.call_id = 0  #: ours; 0 while there is no call
        self.peer_call_id = 0

    def close(self) -> None:
        """Close the TCP connection."""
        self._socket.close()

    def start(self) -> Judgement:
        """Start the control connection."""
        check = "server_start"
        self._send(check, pack(
            _M.START_CONTROL_CONNECTION_REQUEST, version=0x0100, framing=3, bearer=3,
            host=b"pptp-nat doctor", vendor=b"pptp-nat",
        ))  # fmt: skip
        reply = self._answer(check, _M.START_CONTROL_CONNECTION_REPLY)
        self._agreed(check, _M.START_CONTROL_CONNECTION_REPLY, reply)
        self._started = True
        host, vendor = text(reply["host"]), text(reply["vendor"])
        return Judgement(
            check, Outcome.PASS, f"the server calls itself {host!r}, by {vendor!r}"
        )

    def call(self) -> Judgement:
        """Place a call."""
        check = "server_call"
        self.call_id = 1 + secrets.randbelow(0xFFFF)
        self._send(check, pack(
            _M.OUTGOING_CALL_REQUEST, call_id=self.call_id, serial=1, minimum_bps=2400,
            maximum_bps=10_000_000, bearer=3, framing=3, window=64,
        ))  # fmt: skip
        reply = self._answer(check, _M.OUTGOING_CALL_REPLY)
        if reply["peer_call_id"] != self.call_id:
            raise Failed(
                check, f"the reply is for call ID {reply['peer_call_id']!r}, not {self.call_id}",
                "something between here and the server rewrites call IDs in one direction only: "
                "a helper that follows half of the messages",
            )  # fmt: skip
        try:
            self._agreed(check, _M.OUTGOING_CALL_REPLY, reply)
        except Failed:
            self.call_id = 0
            raise
        peer = reply["call_id"]
        assert isinstance(peer, int)
        self.peer_call_id = peer
        return Judgement(
            check, Outcome.PASS, f"the call is accepted: our call ID {self.call_id}, its {peer}"
        )

    def farewell(self) -> Judgement:
        """Clear the call and stop the connection, as far as there are any."""
        done = []
        with contextlib.suppress(Failed):
            if self.call_id:
                self._send("", pack(_M.CALL_CLEAR_REQUEST, call_id=self.call_id))
                self._answer("", _M.CALL_DISCONNECT_NOTIFY, FAREWELL_SECONDS)
                done.append("the call is cleared")
        with contextlib.suppress(Failed):
            if self._started:
                self._send("", pack(_M.STOP_CONTROL_CONNECTION_REQUEST, reason=1))
                self._answer("", _M.STOP_CONTROL_CONNECTION_REPLY, FAREWELL_SECONDS)
                done.append("the control connection is stopped")
        words = " and ".join(done) or "the TCP connection is closed"
        return Judgement("server_end", Outcome.PASS, words)

    def fileno(self) -> int:
        """Return the descriptor of the TCP connection."""
        return self._socket.fileno()

    def lost_call(self) -> str | None:
        """Read what has come, without waiting; say how the server ended the call, if it did."""
        try:
            for kind, fields in self._read("server_gre"):
                if kind is _M.CALL_DISCONNECT_NOTIFY:
                    self.call_id = 0
                    return f"the server ends the call: {_words(kind, fields)}"
        except Failed as failed:
            self.call_id, self._started = 0, False
            return failed.judgement.text
        return None

    def _agreed(self, check: str, kind: MessageType, fields: Fields) -> None:
        if fields["result"] != 1:
            raise Failed(
                check, f"the server refuses: {kind.title} says {_words(kind, fields)}",
                ASK_THE_SERVER,
            )  # fmt: skip

    def _send(self, check: str, octets: bytes) -> None:
        self._socket.settimeout(self._timeout)
        try:
            self._socket.sendall(octets)
        except OSError as error:
            raise _lost(check, error) from error

    def _answer(
        self, check: str, wanted: MessageType, seconds: float | None = None
    ) -> Fields:
        """Return the fields of the next message *wanted*; all others are passed over."""
        deadline = time.monotonic() + min(self._timeout, seconds or self._timeout)
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._socket], [], [], left)[0]:
                raise Failed(
                    check, f"no {wanted.title} within {self._timeout:g} s",
                    "the port is open but no PPTP server answers: look at the server's log, or "
                    "for something in between that cuts long segments (MTU)",
                )  # fmt: skip
            for kind, fields in self._read(check):
                if kind is wanted:
                    return fields
                if kind is _M.STOP_CONTROL_CONNECTION_REQUEST:
                    raise Failed(check, f"the server stops: {_words(kind, fields)}", ASK_THE_SERVER)

    def _read(self, check: str) -> list[tuple[MessageType, Fields]]:
        """Return the messages that have come; echoes are answered."""
        messages: list[tuple[MessageType, Fields]] = []
        while select.select([self._socket], [], [], 0)[0]:
            try:
                octets = self._socket.recv(4096)
            except OSError as error:
                raise _lost(check, error) from error
            self._received += len(octets)
            if not octets or self._received > MOST_OCTETS:
                if messages:
                    break
                raise _lost(check, None)
            self._octets += octets
            messages += self._messages(check)
        return messages

    def _messages(self, check: str) -> Iterator[tuple[MessageType, Fields]]:
        while len(self._octets) >= HEADER.size:
            try:
                head = frame(self._octets)
                if len(self._octets) < head.length:
                    return
                octets, self._octets = self._octets[: head.length], self._octets[head.length :]
                if head.type is None:
                    continue
                kind, fields = unpack(octets)
            except WireError as error:
                shown = self._octets[:16].hex(" ")
                raise Failed(
                    check, f"what answers does not speak PPTP ({error.reason}): {shown}",
                    "another service listens there: check the address and the port",
                ) from error  # fmt: skip
            if kind is _M.ECHO_REQUEST:
                identifier = fields["identifier"]
                self._send(check, pack(_M.ECHO_REPLY, identifier=identifier, result=1))
            else:
                yield kind, fields


def _lost(check: str, error: OSError | None) -> Failed:
    if error is None:
        what = "the server closes the connection"
    elif error.errno in (errno.ECONNRESET, errno.EPIPE):
        what = "the connection is reset"
    else:
        what = f"the connection is lost: {error.strerror or error}"
    return Failed(
        check, what,
        "the server does not want this client (its log says why), or a device in between that "
        "inspects PPTP has cut the connection",
    )  # fmt: skip


def _words(kind: MessageType, fields: Fields) -> str:
    """Return result, error and cause of a message in words (RFC 2637 sections 2.2 to 2.16)."""
    result, error, cause = (fields.get(name, 0) for name in ("result", "error", "cause"))
    if kind is _M.STOP_CONTROL_CONNECTION_REQUEST:
        result = fields["reason"]
    assert isinstance(result, int)
    assert isinstance(error, int)
    assert isinstance(cause, int)
    words = f"{RESULTS.get(kind, {}).get(result, 'a result that the RFC does not know')} ({result})"
    if error:
        known = GENERAL_ERRORS[error] if error < len(GENERAL_ERRORS) else "unknown"
        words += f", error {known} ({error})"
    return f"{words}, cause {cause}" if cause else words
