"""Clients and their server, who know nothing of the machine between them."""

from __future__ import annotations

import functools
import itertools

from pptp_nat.lab.network import Lab
from pptp_nat.lab.peers import Call, Loop, Station, converse


class Clients:
    """All hosts of a laboratory but its router."""

    def __init__(self, lab: Lab, loop: Loop) -> None:
        self.loop = loop
        self.stations = {
            host.name: Station(host.name, loop, functools.partial(lab.open_socket, host))
            for host in (*lab.outside, *lab.inside)
        }
        self.server = lab.outside[0]
        self.clients = [self.stations[host.name] for host in lab.inside]
        self.stations[self.server.name].listen()
        self.numbers = itertools.count(7)

    def dial(self) -> list[Call]:
        """Have all clients call the server, with one and the same call ID; return both ends."""
        number = next(self.numbers)
        connections = [client.dial(self.server.address) for client in self.clients]
        assert self.loop.run_until(lambda: all(each.established for each in connections))
        calls = [each.call(number) for each in connections]
        assert self.loop.run_until(lambda: all(call.up for call in calls))
        both = [
            end
            for call in calls
            for end in (call, self.stations[call.connection.peer_name].named(call.label))
        ]
        assert self.loop.run_until(lambda: all(call.up for call in both))
        return both

    def all_hear(self, calls: list[Call]) -> None:
        """Have every call send, and hear what is for it and only that."""
        before = [call.right for call in calls]
        assert converse(self.loop, calls, count=5)
        assert [5] * len(calls) == [c.right - b for c, b in zip(calls, before, strict=True)]
        assert [] == [wrong for call in calls for wrong in call.wrong]
