"""Calls and connections as `pptp_nat.tables.packed` has them, written as JSON at once.

Of 100,000 calls each microsecond is a tenth of a second.  All that is written here are
numbers, addresses and words of our own tables, in which there is nothing to escape.
"""

from __future__ import annotations

import functools
import json
from socket import inet_ntoa
from typing import Final

from pptp_nat.core.calls import Call, Connection
from pptp_nat.core.states import CallState
from pptp_nat.core.tuples import Party
from pptp_nat.router.carried import Counts
from pptp_nat.tables.views import (
    PARTIES,
    calls_of,
    hidden_by,
    inside_party,
    result_of,
    said_of,
)  # fmt: skip

_STATES: Final = {state: state.value for state in CallState}
#: of sequence numbers: missing and late to the remote party, missing and late to the inside
Gaps = tuple[int | None, int | None, int | None, int | None]


class Packer:
    """Writes calls one after the other; those of one connection mostly follow each other.

    *wall* is added to monotonic seconds to give Unix seconds.
    """

    def __init__(self, wall: float) -> None:
        self._wall = wall
        self._connection: Connection | None = None  # whose the following are
        self._inside = Party.ORIGINATOR
        self._last_gre: float | None = None  # of many, since a look hears of many at once
        self._heard = "null"
        self._here = self._external = self._there = self._control = self._last = ""

    def _attend(self, connection: Connection, call: Call) -> None:
        key, inside = connection.key, inside_party(call)
        hosts = inet_ntoa(key[:4]), inet_ntoa(key[4:8])
        hidden_as = connection.seen_as[inside]
        self._here, self._there = hosts[inside], hosts[not inside]
        self._external = self._here if hidden_as is None else inet_ntoa(hidden_as)
        self._control = (
            f'"{hosts[0]}",{key[8] << 8 | key[9]},"{hosts[1]}",{key[10] << 8 | key[11]}'
        )
        self._last = f"{connection.mark},{connection.id}"
        self._inside = inside
        # Where it hides both or neither, who is inside is a matter of each call.
        one, other = connection.seen_as
        self._connection = None if (one is None) == (other is None) else connection

    def pack(self, call: Call, carried: Counts, gaps: Gaps | None = None) -> str:
        """Return *call* as a JSON array."""
        connection, wall = call.connection, self._wall
        if connection is not self._connection:
            self._attend(connection, call)
        own, others_own, seen, others_seen, requester, pns, created = call.lasting
        if inside := self._inside:
            inside_id, external_id, remote_id = others_own, others_seen, own
            to_remote, to_inside = carried
        else:
            inside_id, external_id, remote_id = own, seen, others_own
            to_inside, to_remote = carried
        up_since, last_gre = call.up_since, call.last_gre
        if last_gre != self._last_gre:
            self._heard = "null" if last_gre is None else f"{last_gre + wall:.6f}"
            self._last_gre = last_gre
        end, codes = call.over
        return (
            f'[{call.id},"{_STATES[call.state]}","{"PNS" if pns == inside else "PAC"}",'
            f'"{"outgoing" if requester == pns else "incoming"}",'
            f'"{self._here}",{inside_id if inside_id >= 0 else "null"},'
            f'"{self._external}",{external_id if external_id >= 0 else "null"},'
            f'"{self._there}",{remote_id if remote_id >= 0 else "null"},{self._control},'
            f"{created + wall:.6f},"
            f'{"null" if up_since is None else f"{up_since + wall:.6f}"},'
            f"{self._heard},"
            f"{to_remote[0]},{to_remote[1]},{to_inside[0]},{to_inside[1]},{self._last},"
            f'{"null" if end is None else json.dumps(end.value)},'
            f'{"null" if codes is None else _result(call)},'
            f'{"null" if gaps is None else json.dumps(gaps)}]'
        )


def _result(call: Call) -> str:
    result = result_of(call)
    return json.dumps([result.code, result.text, result.error, result.cause])



def pack_connection(connection: Connection, now: float) -> str:
    """Return *connection* at *now*, monotonic seconds, as a JSON array.

    Its values are those of `pptp_nat.tables.packed_connections.COLUMNS`.
    """
    key, talk, passive = connection.key, connection.told, connection.passive
    echo = talk.last_echo
    originator, responder = connection.said
    return (
        f'[{talk.id},"{connection.state.value}",'
        f'"{inet_ntoa(key[:4])}",{key[8] << 8 | key[9]},'
        f'"{inet_ntoa(key[4:8])}",{key[10] << 8 | key[11]},"{hidden_by(connection)}",'
        f'{"true" if talk.is_opaque or passive else "false"},'
        f'{"null" if passive is None else json.dumps(passive)},{calls_of(connection)},'
        f"{now - talk.created:.6f},"
        + ("null,null,null" if echo is None else
           f'{now - echo.at:.6f},{echo.seconds:.6f},"{PARTIES[echo.by]}"')
        + f",{_said(originator)},{_said(responder)}]"
    )  # fmt: skip


@functools.lru_cache(maxsize=256)
def _said(octets: bytes | None) -> str:
    return json.dumps(said_of(octets))
