"""The command that shows what happens: events."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from pptp_nat import __version__, api
from pptp_nat.errors import UsageError
from pptp_nat.tables.rendering_events import event_text, stamped

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

AGAIN_SECONDS: Final = 0.5  #: between two tries to reach a daemon that was there before

_RENDERINGS: Final[dict[str, Callable[[Mapping[str, Any]], str]]] = {
    "text": event_text,
    "timestamp": stamped,
    "json": json.dumps,
}


def events(options: Namespace) -> int:
    """Show events until there were enough, the time is over or Ctrl-C."""
    request: dict[str, object] = {"do": "subscribe", "types": options.types}
    for name in ("call", "client", "server"):
        if getattr(options, name) is not None:
            request[name] = getattr(options, name)
    if options.call is not None:
        request["connection"] = connection_of(options.socket, options.call)
    heard = lasting(options.socket, request, options.seconds)
    for number, event in enumerate(heard, 1):
        try:
            line = _RENDERINGS[options.output](event)
        except (KeyError, TypeError) as error:
            raise UsageError(
                f"the daemon on {options.socket} tells otherwise than this pptp-nat "
                f"{__version__} expects ({error}); use the pptp-nat of the daemon's own version"
            ) from error
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
        if number == options.count:
            break
    return 0


def connection_of(path: Path, call: int) -> int:
    """Return the control connection of *call*, so that its messages are heard too.

    Raises:
        UsageError: there is no such call.
    """
    for item in api.stream(path, {"do": "list", "call": call}):
        number: int = item["connection"]
        return number
    raise UsageError(f"there is no call {call}; `pptp-nat list` shows those that there are")


def lasting(
    path: Path, request: Mapping[str, object], seconds: float | None
) -> Iterator[dict[str, Any]]:
    """Yield the events of a subscription for *seconds*, whatever becomes of the daemon meanwhile.

    A daemon that is restarted is subscribed to again as soon as it is back; that
    events are missing is said on standard error.

    Raises:
        UsageError: there is no daemon at the start, or it refuses.
    """
    ends = None if seconds is None else time.monotonic() + seconds
    state = {"subscribed": False, "gone": False}

    def subscribed() -> None:
        if state["gone"]:
            sys.stderr.write(
                "pptp-nat: the daemon tells again; what happened meanwhile is not shown\n"
            )
        state.update(subscribed=True, gone=False)

    while True:
        left = None if ends is None else ends - time.monotonic()
        if left is not None and left <= 0:
            return
        wanted = dict(request) if left is None else {**request, "seconds": left}
        timeout = None if left is None else left + api.ANSWER_SECONDS
        try:
            yield from api.stream(path, wanted, timeout=timeout, subscribed=subscribed)
        except api.BrokenOff:
            pass
        except UsageError:
            if not state["gone"]:
                raise
        else:
            return
        if not state["subscribed"]:
            raise UsageError(f"the daemon on {path} broke off before it answered; look at its log")
        if not state["gone"]:
            state["gone"] = True
            sys.stderr.write(
                f"pptp-nat: the daemon on {path} broke off: it has ended, or we were too slow "
                "for it; waiting for it\n"
            )
        time.sleep(AGAIN_SECONDS if left is None else min(AGAIN_SECONDS, left))
