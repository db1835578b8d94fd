"""Calls seen twice: on both sides of a NAT, or at two places of a plain way.

A NAT changes addresses, ports and call IDs, but not TCP's sequence numbers, nor what a call
was asked for with: its serial number, its phone number, the other party's address and
number.  Clocks of two captures need not agree, so time decides only among equals.
"""

from __future__ import annotations

from collections import defaultdict
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Final

from pptp_nat.analysis.model import Translation
from pptp_nat.core.messages import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator

    from pptp_nat.analysis.model import Analysis, Call

_AT_ONCE: Final = 5.0  #: seconds between two views of a call by one clock, at most
_CLOCKS_AGREE: Final = 1.0  #: seconds; a longer way is none


def translations(analysis: Analysis) -> list[Translation]:
    """Return which calls are one call at two places, each call once at most."""
    found: list[Translation] = []
    taken: set[int] = set()
    vantage = {index: file.vantage for index, file in enumerate(analysis.files)}
    for names in (_by_sequence_numbers, _by_numbers):
        for group in _groups(analysis.calls, names):
            for index, one in enumerate(group):
                free = [
                    other
                    for other in group[index + 1 :]
                    if other.id not in taken and _are_two_views(one, other, vantage)
                ]
                if one.id in taken or not free:
                    continue
                other = min(free, key=lambda each: abs(each.first.time - one.first.time))
                found.append(_translation(one, other, names is _by_sequence_numbers))
                taken |= {one.id, other.id}
    return sorted(found, key=lambda each: each.inside.id)


def _groups(
    calls: list[Call], names: Callable[[Call], Iterable[Hashable]]
) -> Iterator[list[Call]]:
    groups: dict[Hashable, list[Call]] = defaultdict(list)
    for call in calls:
        for name in names(call):
            groups[name].append(call)
    return (group for group in groups.values() if len(group) > 1)


def _by_sequence_numbers(call: Call) -> Iterator[Hashable]:
    """Name a call by its connection's initial sequence numbers and its place on it."""
    if call.connection is not None and None not in call.connection.initial:
        place = next(i for i, each in enumerate(call.connection.calls) if each is call)
        yield (*call.connection.initial, call.serial, place)


def _by_numbers(call: Call) -> Iterator[Hashable]:
    """Name a call by the party that may not be hidden, and by what it was asked for with."""
    for role in Role:
        end = call.end_of(role)
        if end.call_id is not None:
            yield role, end.address, end.call_id, call.serial, call.phone


def _are_two_views(one: Call, other: Call, vantage: dict[int, int]) -> bool:
    if one.connection is not None and one.connection is other.connection:
        return False
    if vantage[one.file] != vantage[other.file]:
        return True
    ends = [(call.pns.address, call.pac.address) for call in (one, other)]
    return ends[0] != ends[1] and abs(one.first.time - other.first.time) < _AT_ONCE


def _translation(one: Call, other: Call, by_sequence: bool) -> Translation:  # noqa: FBT001
    hidden = next(
        (
            role
            for role in Role
            if one.end_of(role).address != other.end_of(role).address
            or one.end_of(role).call_id != other.end_of(role).call_id
        ),
        None,
    )
    inside, outside = sorted((one, other), key=lambda call: call.first.time)
    if hidden is Role.PAC:  # the request comes from outside
        inside, outside = outside, inside
    if hidden is not None:
        private = [IPv4Address(call.end_of(hidden).address).is_private for call in (one, other)]
        if private[0] != private[1]:
            inside, outside = (one, other) if private[0] else (other, one)
    reasons = ["the same TCP sequence numbers"] if by_sequence else []
    reasons += [
        f"the same {role.value} with the same call ID"
        for role in Role
        if role is not hidden and one.end_of(role).call_id is not None
    ]
    if one.serial is not None and one.serial == other.serial:
        reasons.append("the same serial number")
    if one.phone and one.phone == other.phone:
        reasons.append("the same phone number")
    return Translation(inside, outside, hidden, tuple(reasons), _delay(inside, outside))


def _delay(inside: Call, outside: Call) -> float | None:
    """Return the seconds that the request took from one place to the other."""
    if inside.requested is None or outside.requested is None:
        return None
    delay = abs(outside.requested.time - inside.requested.time)
    return delay if delay < _CLOCKS_AGREE else None
