"""The lines that the daemon and its clients exchange, and the client's side of it.

docs/api.md is the description for people.  A request is one JSON object on one
line; every line of its answer repeats its ``id``::

    {"v":1,"id":7,"do":"status"}          {"v":1,"id":7,"ok":true,"version":...}
    {"v":1,"id":8,"do":"list"}            {"v":1,"id":8,"ok":true,"item":{...}}  for each
                                          {"v":1,"id":8,"ok":true,"items":2}     at the end
    {"v":1,"id":9,"do":"subscribe"}       {"v":1,"id":9,"ok":true,"types":[]}
                                          {"v":1,"id":9,"event":{...}}           from then on
                                          {"v":1,"id":9,"ok":true,"ended":"..."} at its end
    {"v":1,"id":10,"do":"dance"}          {"v":1,"id":10,"ok":false,"error":"..."}
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pptp_nat.control import sockets
from pptp_nat.errors import PptpNatError, UsageError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from io import BufferedReader
    from pathlib import Path

VERSION: Final = 1
LONGEST_REQUEST: Final = 64 << 10  #: octets of a request, its line feed included
LONGEST_ANSWER: Final = 16 << 20  #: octets of one line that a client reads
ANSWER_SECONDS: Final = 15.0  #: how long a client waits for the daemon's next octet
SUBSCRIBE: Final = "subscribe"
OWN_ID: Final = 1  #: of the one request that `send` sends on a connection

_FRAME: Final = frozenset({"v", "id", "ok"})
_ENCODER: Final = json.JSONEncoder(
    separators=(",", ":"),
    allow_nan=False,
    check_circular=False,  # half the time of a row, and rows are trees
)
LARGEST_ID: Final = (1 << 53) - 1  # what every JSON library holds without loss


class GarbageError(Exception):
    """Octets that are no request: whoever sends them cannot be followed further."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request: what to *do*, its arguments, its id, and the user who asks."""

    id: int
    do: str
    arguments: Mapping[str, object]
    uid: int


class RefusedRequest(PptpNatError):
    """A line that is a request and still cannot be answered; carries its id."""

    def __init__(self, reason: str, number: int) -> None:
        super().__init__(reason)
        self.number = number


class Refused(UsageError):
    """The daemon says no, perhaps after a part of its answer."""


class BrokenOff(UsageError):
    """The daemon ended the connection in the middle of its answer."""


def parse(line: bytes, uid: int) -> Request:
    """Return the request that *line* holds.

    Raises:
        GarbageError: it holds none, so its end may not be one either.
        RefusedRequest: another version, or nothing to do.
    """
    try:
        found = json.loads(line.decode(), parse_constant=_no_number)
    except RecursionError as error:
        raise GarbageError("nested too deeply for a request") from error
    except ValueError as error:  # also UnicodeDecodeError, and int() of too many digits
        raise GarbageError('not a JSON object; write {"v":1,"id":1,"do":"status"}') from error
    if not isinstance(found, dict):
        raise GarbageError('not a JSON object; write {"v":1,"id":1,"do":"status"}')
    number, version, do = (found.pop(name, None) for name in ("id", "v", "do"))
    if type(number) is not int or not 0 <= number <= LARGEST_ID:
        raise GarbageError(f"a request has an id: a whole number from 0 to {LARGEST_ID}")
    if type(version) is not int or version != VERSION:
        raise RefusedRequest(f'this daemon speaks version {VERSION}; write "v":{VERSION}', number)
    if not isinstance(do, str):
        raise RefusedRequest('a request says what to do, such as "do":"list"', number)
    return Request(number, do, found, uid)


def encode(value: Mapping[str, object]) -> bytes:
    """Return *value* as JSON: ASCII, on one line, without blanks."""
    return _ENCODER.encode(value).encode()


def accepted(number: int, answer: Mapping[str, object]) -> bytes:
    """Return a line that says yes to request *number*."""
    return encode({"v": VERSION, "id": number, "ok": True, **answer}) + b"\n"


def refused(number: int | None, reason: str) -> bytes:
    """Return a line that says no; without a number when there was none to be seen."""
    return encode({"v": VERSION, "id": number, "ok": False, "error": reason}) + b"\n"


def item_lines(
    number: int, items: Iterable[Mapping[str, object] | bytes | None]
) -> Iterator[bytes]:
    """Yield the lines of a long answer, an empty one for None; an error is its last line.

    *items*: octets are an item that is encoded already.
    """
    count = 0
    try:
        for item in items:
            if item is None:
                yield b""
                continue
            body = item if isinstance(item, bytes) else encode(item)
            yield b'{"v":%d,"id":%d,"ok":true,"item":%b}\n' % (VERSION, number, body)
            count += 1
    except PptpNatError as error:
        yield refused(number, str(error))
    else:
        yield accepted(number, {"items": count})


def single_line(number: int, steps: Iterable[Mapping[str, object] | None]) -> Iterator[bytes]:
    """Yield the line of an answer that takes several steps, an empty one for each None before."""
    try:
        for each in steps:
            yield b"" if each is None else accepted(number, each)
    except PptpNatError as error:
        yield refused(number, str(error))


def event_line(number: int, body: bytes) -> bytes:
    """Return the line that tells subscription *number* of an encoded event."""
    return b'{"v":%d,"id":%d,"event":%b}\n' % (VERSION, number, body)


def ask(
    path: Path, request: Mapping[str, object], *, timeout: float | None = ANSWER_SECONDS
) -> dict[str, Any]:
    """Send *request* (``do`` and arguments) and return the answer without its frame.

    Raises:
        UsageError: nobody answers there, or the answer is no; says why.
    """
    with sockets.connect(path, timeout) as peer:
        send(peer, request)
        with peer.makefile("rb") as answers:
            return next_answer(path, answers)


def stream(
    path: Path,
    request: Mapping[str, object],
    *,
    timeout: float | None = ANSWER_SECONDS,
    subscribed: Callable[[], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Send *request* and yield the items of its answer, or the events it subscribes to.

    Nothing is sent before the first item is asked for.

    Args:
        path: of the socket.
        request: ``do`` and arguments.
        timeout: seconds of waiting for each line; None for a subscription.
        subscribed: called when a subscription has begun.

    Raises:
        UsageError: as `ask`, also between items; `BrokenOff` if the daemon is gone.
    """
    with sockets.connect(path, timeout) as peer:
        send(peer, request)
        with peer.makefile("rb") as answers:
            while True:
                answer = next_answer(path, answers)
                if "item" in answer:
                    yield answer["item"]
                elif "event" in answer:
                    yield answer["event"]
                elif "items" in answer or "ended" in answer:
                    return
                elif subscribed is not None:
                    subscribed()


def send(peer: socket.socket, request: Mapping[str, object]) -> None:
    """Send *request*, ``do`` and arguments."""
    try:
        peer.sendall(encode({"v": VERSION, "id": OWN_ID, **request}) + b"\n")
    except ConnectionError:  # refused: the reason is there to be read
        return


def next_answer(path: Path, answers: BufferedReader) -> dict[str, Any]:
    """Return the next line of the daemon at *path* without its frame.

    Raises:
        UsageError: it says no, or nothing; says why.
    """
    try:
        line = answers.readline(LONGEST_ANSWER)
    except TimeoutError:
        raise UsageError(f"the daemon on {path} is silent; look at its log") from None
    except ConnectionError:
        line = b""
    if not line.endswith(b"\n"):
        raise BrokenOff(f"the daemon on {path} broke off in its answer; look at its log")
    return understood(path, line)


def understood(path: Path, line: bytes) -> dict[str, Any]:
    """Return the *line* that the daemon at *path* has said, without its frame.

    Raises:
        UsageError: it says no, or what nobody understands; `Refused` if it says no.
    """
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or answer.get("v") != VERSION:
        raise UsageError(
            f"who answers on {path} does not speak version {VERSION} of our language; "
            "use the pptp-nat of the daemon's own version"
        )
    if answer.get("ok", True) is not True:
        raise Refused(str(answer.get("error")))
    return {name: value for name, value in answer.items() if name not in _FRAME}


def _no_number(text: str) -> NoReturn:
    raise ValueError(text)
