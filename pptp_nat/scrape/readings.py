"""What a scrape shows, read from a running daemon a slice at a time.

Each step of `Readings.take` is a fraction of a millisecond, whatever the number of
calls; between two the loop serves packets.  So a reading is no photograph: its
parts are some milliseconds apart, each true when it was read.
"""

from __future__ import annotations

import heapq
import platform
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from socket import inet_ntoa
from typing import TYPE_CHECKING, Final, TypeVar

from pptp_nat import __version__
from pptp_nat.core.bindings import LIMIT
from pptp_nat.core.states import CallState, ControlState, End
from pptp_nat.core.tuples import Address, Party
from pptp_nat.errors import PptpNatError
from pptp_nat.linux.accounting import accounting
from pptp_nat.linux.bpf_path import BpfPath
from pptp_nat.linux.nfqueue import queue_counters
from pptp_nat.linux.ruleset import paced_drops
from pptp_nat.router.listening import FRESH_SECONDS
from pptp_nat.scrape.keeping import kept, limits
from pptp_nat.scrape.meter import FAILURES, Histogram, Meter
from pptp_nat.scrape.metrics import Distribution, Sample
from pptp_nat.tables.views import calls_by_state

if TYPE_CHECKING:
    from pptp_nat.daemon import Daemon

_T = TypeVar("_T")
Work = Generator[None, None, None]
Found = dict[str, list[Sample]]

MOST_EXTERNALS: Final = 64  #: external addresses with series of their own; the rest are "other"
MOST_KINDS: Final = 64  #: oddities told apart; there are some twenty
_SLICE: Final = 256  #: calls or connections looked at in one step
_OTHER: Final = "other"
_DIRECTIONS: Final = ("to_remote", "to_inside")  #: by "to the inside"

#: Of `Book.counts`: what makes octets unreadable, ...
PARSE_ERRORS: Final = (
    "not_a_segment", "bad_magic", "length_below_header", "length_beyond_bound", "short_message",
    "unknown_control_type", "not_a_control_message",
)  # fmt: skip
#: ... and what has a family of its own or is told elsewhere; all else is an oddity.
_ELSEWHERE: Final = {"collision_avoided", "rewritten", *PARSE_ERRORS}
_REFUSED: Final = "refused_"
#: What refuses calls; there from the start, so that the first refusal is an increase.
REFUSALS: Final = (
    "calls_limit", "calls_per_connection_limit", "calls_per_client_limit",
    "setups_per_client_limit", "call_ids_exhausted", "call_id_block_full",
    "router_number_taken",
)  # fmt: skip


class Readings:
    """Reads *daemon* for scrapes."""

    def __init__(self, daemon: Daemon, meter: Meter, top_clients: int) -> None:
        self._daemon = daemon
        self._meter = meter
        self._top_clients = top_clients
        self._overflow = 0
        self._parts: Mapping[str, Callable[[Found], Iterator[None]]] = {
            "gre": self._gre,
            "calls": self._calls,
            "connections": self._connections,
            "call_ids": self._call_ids,
            "counts": self._counts,
            "queues": self._queues,
            "state": self._state,
        }

    def take(self) -> Generator[None, None, Found]:
        """Read everything, step by step."""
        found: Found = {}
        for name, part in self._parts.items():
            yield from _timed(name, part(found), found)
        return found

    def expect(self, when: float | None) -> None:
        """Have the counts read by then; see `Listening.expect`."""
        self._daemon.listening.expect(when)

    def longest(self, step: float) -> float:
        """Return the longest of *step* and of the looks at the counts since the last time."""
        listening = self._daemon.listening
        longest, listening.longest = max(step, listening.longest), 0.0
        return longest

    def unbound(self) -> int | None:
        """Return the number of a queue that is not bound."""
        queues = filter(None, (self._daemon.control_queue, self._daemon.gre_queue))
        numbers = (queue.number for queue in queues)
        return next((each for each in numbers if queue_counters(each) is None), None)

    def _gre(self, found: Found) -> Iterator[None]:
        daemon = self._daemon
        carrier, listening = daemon.carrier, daemon.listening
        counting = accounting() is not False or carrier.path.name != "conntrack"
        found["gre_accounting"] = [Sample((), counting)]
        try:
            yield from listening.freshen(FRESH_SECONDS)
        finally:  # what is known stays known
            totals = carrier.totals
            found["gre_packets_total"] = _directed(totals.packets)
            found["gre_bytes_total"] = _directed(totals.octets)
            if listening.read_at is not None:
                _add(found, "gre_read_timestamp_seconds", listening.read_at + daemon.wall)
            _add(found, "gre_readings_total", listening.looks)
            _add(found, "gre_readings_cpu_seconds_total", listening.cpu_seconds)
        if self._top_clients:
            yield from self._clients(found)

    def _clients(self, found: Found) -> Iterator[None]:
        clients = self._daemon.carrier.totals.clients
        busiest: list[tuple[int, Address]] = []
        for some in _slices(list(clients)):
            octets = ((sum(clients[each].octets), each) for each in some if each in clients)
            busiest = heapq.nlargest(self._top_clients, (*busiest, *octets))
            yield
        self._overflow += max(0, len(clients) - self._top_clients)
        for _, client in busiest:
            kept = clients.get(client)
            if kept is None:
                continue
            name = inet_ntoa(client)
            _add(found, "client_calls", (kept.legs + 1) // 2, name)
            for to_inside, direction in enumerate(_DIRECTIONS):
                _add(found, "client_packets_total", kept.packets[to_inside], name, direction)
                _add(found, "client_bytes_total", kept.octets[to_inside], name, direction)
        _add(found, "client_series_overflow_total", self._overflow)

    def _calls(self, found: Found) -> Iterator[None]:
        states = calls_by_state(self._daemon.translator.book)
        shown = (state for state in CallState if state not in {CallState.IDLE, CallState.GONE})
        found["calls"] = [Sample((state.value,), states.get(state.value, 0)) for state in shown]
        yield

    def _connections(self, found: Found) -> Iterator[None]:
        states: Counter[ControlState] = Counter()
        clients: set[Address] = set()
        opaque = conflicts = 0
        for some in _slices(list(self._daemon.translator.book.connections.values())):
            states.update(each.state for each in some)
            clients.update(each.key[:4] for each in some if each.chooses(Party.ORIGINATOR))
            clients.update(each.key[4:8] for each in some if each.chooses(Party.RESPONDER))
            opaque += sum(each.is_opaque for each in some)
            conflicts += sum(each.passive == "kernel_helper" for each in some)
            yield
        shown = (state for state in ControlState if state is not ControlState.CLOSED)
        found["control_connections"] = [Sample((state.value,), states[state]) for state in shown]
        _add(found, "control_connections_opaque", opaque)
        _add(found, "clients", len(clients))
        _add(found, "kernel_helper_conflict", conflicts)

    def _call_ids(self, found: Found) -> Iterator[None]:
        bindings = self._daemon.translator.book.bindings
        used: Counter[Address] = Counter()
        fullest: dict[Address, int] = {}
        for some in _slices(list(bindings.used().items())):
            for (external, _), count in some:
                used[external] += count
                fullest[external] = max(fullest.get(external, 0), count)
            yield
        ranked = [external for external, _ in used.most_common()]
        for external in ranked[:MOST_EXTERNALS]:
            name = inet_ntoa(external)
            _add(found, "call_ids_used", used[external], name)
            _add(found, "call_ids_fullest", fullest[external], name)
        if rest := ranked[MOST_EXTERNALS:]:
            _add(found, "call_ids_used", sum(used[each] for each in rest), _OTHER)
            _add(found, "call_ids_fullest", max(fullest[each] for each in rest), _OTHER)
        _add(found, "call_ids_limit", LIMIT)
        _add(found, "call_ids_quarantined", len(bindings.quarantined()))

    def _counts(self, found: Found) -> Iterator[None]:
        daemon, meter = self._daemon, self._meter
        book = daemon.translator.book
        _add(
            found, "build_info", 1,
            __version__, platform.python_version(), daemon.carrier.path.name,
        )  # fmt: skip
        for (kind, from_inside), count in book.messages.items():
            title = "unknown" if kind is None else kind.title
            _add(found, "control_messages_total", count, title, _DIRECTIONS[not from_inside])
        found["control_packets_total"] = [
            Sample((verdict.value,), count) for verdict, count in meter.verdicts.items()
        ]
        yield
        self._slugs(found, book.counts)
        found["calls_ended_total"] = [
            Sample((end.name.lower(),), book.ends[end]) for end in End
        ]
        found["call_failures_total"] = [
            Sample((why,), meter.failures[why]) for why in FAILURES
        ]
        _add(found, "call_requests_total", meter.requests)
        _add(found, "calls_established_total", meter.established)
        yield
        for name, histogram in (
            ("call_setup_duration_seconds", meter.setup_seconds),
            ("call_duration_seconds", meter.call_seconds),
            ("verdict_duration_seconds", meter.verdict_seconds),
            ("loop_turn_duration_seconds", meter.turn_seconds),
        ):
            found[name] = [Sample((), _distribution(histogram))]
        for direction, count in daemon.strays().items():
            _add(found, "gre_unmatched_packets_total", count, direction)
        if daemon.queue_path is not None:
            _add(found, "gre_plain_packets_total", daemon.queue_path.counts["plain_gre"])
        if isinstance(daemon.carrier.path, BpfPath):
            for slug, count in daemon.carrier.path.told().items():
                _add(found, "gre_observations_total", count, slug)
        _add(found, "gre_entries_restored_total", daemon.upkeep.restored)
        _add(found, "datapath_failures_total", daemon.carrier.failures)
        _add(found, "config_last_reload_successful", meter.reloads_good)
        _add(found, "config_last_reload_success_timestamp_seconds", meter.reloaded)
        if (api := daemon.api) is not None:
            _add(found, "api_clients", len(api.clients))
            _add(found, "api_clients_refused_total", api.refused)
            _add(found, "api_clients_dropped_total", api.dropped)
            _add(found, "api_clients_garbled_total", api.garbled)

    @staticmethod
    def _slugs(found: Found, counts: Mapping[str, int]) -> None:
        """Sort what the book has counted under slugs into families."""
        _add(found, "call_id_collisions_total", counts.get("collision_avoided", 0))
        _add(found, "control_packets_rewritten_total", counts.get("rewritten", 0))
        for reason in PARSE_ERRORS:
            _add(found, "control_parse_errors_total", counts.get(reason, 0), reason)
        refused = dict.fromkeys(REFUSALS, 0)
        oddities: dict[str, int] = {}
        for name, count in counts.items():
            if name.startswith(_REFUSED):
                refused[name.removeprefix(_REFUSED)] = count
            elif name not in _ELSEWHERE:
                oddities[name] = count
        for family, kinds in (
            ("call_refusals_total", refused), ("control_oddities_total", oddities),
        ):  # fmt: skip
            for kind in list(kinds)[:MOST_KINDS]:
                _add(found, family, kinds[kind], kind)

    def _queues(self, found: Found) -> Iterator[None]:
        daemon = self._daemon
        for limit, count in (paced_drops(daemon.rule_settings) or {}).items():
            _add(found, "paced_packets_total", count, limit)
        yield
        for queue, name in ((daemon.control_queue, "control"), (daemon.gre_queue, "gre")):
            if queue is None:
                continue
            seen = queue_counters(queue.number)
            _add(found, "queue_bound", seen is not None, name)
            if seen is not None:
                _add(found, "queue_length", seen.waiting, name)
                _add(found, "queue_packets_total", seen.sequence, name)
                _add(found, "queue_dropped_packets_total", seen.dropped, name)
                _add(found, "queue_user_dropped_packets_total", seen.user_dropped, name)
            _add(found, "queue_overruns_total", queue.overruns, name)
            _add(found, "queue_verdicts_refused_total", queue.refusals, name)
            _add(found, "queue_too_long_packets_total", queue.too_long, name)
            _add(found, "queue_faults_total", queue.faults, name)
            yield


    def _state(self, found: Found) -> Iterator[None]:
        daemon = self._daemon
        for family, sample in (*kept(daemon), *limits(daemon.translator.book.settings)):
            found.setdefault(family, []).append(sample)
        yield


def _timed(name: str, part: Iterator[None], found: Found) -> Work:
    """Do *part* step by step; note the time that its steps took and whether it succeeded."""
    spent, good = 0.0, True
    while True:
        began = time.thread_time()
        try:
            next(part)
        except StopIteration:
            break
        except (PptpNatError, OSError):
            good = False
            break
        finally:
            spent += time.thread_time() - began
        yield
    _add(found, "collector_success", good, name)
    _add(found, "collector_duration_seconds", spent, name)


def _add(found: Found, family: str, value: float, *labels: str) -> None:
    found.setdefault(family, []).append(Sample(labels, value))


def _directed(values: Sequence[int]) -> list[Sample]:
    return [Sample((way,), value) for way, value in zip(_DIRECTIONS, values, strict=True)]


def _distribution(histogram: Histogram) -> Distribution:
    return Distribution(histogram.bounds, tuple(histogram.counts), histogram.total)


def _slices(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), _SLICE):
        yield items[start : start + _SLICE]
