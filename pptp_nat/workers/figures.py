"""What a scrape shows of all workers: the sum of what each counts, mostly."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, Final

from pptp_nat.scrape.metrics import Distribution, Sample
from pptp_nat.workers.asking import Round

if TYPE_CHECKING:
    from pptp_nat.workers.supervisor import Supervisor

Found = dict[str, list[Sample]]

#: Families of which the least or the greatest of all workers is true, not the sum.
LEAST: Final = frozenset((
    "collector_success", "gre_accounting", "gre_read_timestamp_seconds", "queue_bound",
))  # fmt: skip
GREATEST: Final = frozenset((
    "build_info", "call_ids_limit", "call_ids_fullest", "scrape_longest_step_seconds",
))  # fmt: skip
#: What each worker counts of the supervisor's asking.
_OWN: Final = "api_"
#: Counters that nobody keeps for a worker: those of clients, who come and go.
_NOT_KEPT: Final = frozenset(("client_packets_total", "client_bytes_total"))
#: Counters that are not the process's own and outlive it: in the firewall's rules.
_OUTLIVING: Final = frozenset(("paced_packets_total",))


class Figures:
    """What a scrape shows of all workers of *supervisor*: a `Source`."""

    def __init__(self, supervisor: Supervisor, top_clients: int) -> None:
        self._supervisor = supervisor
        self._top_clients = top_clients
        self._longest = 0.0
        self._former: Found = {}  # what workers had counted that have died
        self._last: dict[int, tuple[int, Found]] = {}  # which of a place's workers, what it counted

    def take(self) -> Generator[None, None, Found]:
        """Ask all workers and add up what they say; who does not answer is left out.

        His counters are not: a sum that falls and rises again would look to a reader like
        as much that has happened anew.
        """
        supervisor = self._supervisor
        missing, generations = supervisor.missing(), supervisor.generations()
        asking = Round(supervisor.places(), {"do": "figures"})
        told: dict[int, Found] = {}
        for said in asking:
            if said is not None:
                item = json.loads(said.item)
                part = told.setdefault(said.worker, {})
                part[item["family"]] = [_sample(each) for each in item["samples"]]
            yield
        parts = [part for index, part in told.items() if index in asking.answered]
        steps = [each.value for part in parts for each in part["scrape_longest_step_seconds"]]
        self._longest = max((each for each in steps if isinstance(each, float)), default=0.0)
        found = summed([*parts, *self._kept(told, asking, generations)],
                       supervisor.config.control.workers)  # fmt: skip
        self._cut_clients(found)
        row, exporter = supervisor.api_row(), supervisor.exporter
        assert exporter is not None, "who is asked for figures has something to serve them at"
        meter = exporter.meter
        for name, value in (
            ("api_clients", row.clients), ("api_clients_refused_total", row.refused),
            ("api_clients_dropped_total", row.dropped), ("api_clients_garbled_total", row.garbled),
            ("config_last_reload_successful", meter.reloads_good),
            ("config_last_reload_success_timestamp_seconds", meter.reloaded),
            ("workers", len(parts)),
            ("worker_restarts_total", supervisor.restarts),
        ):  # fmt: skip
            found[name] = [Sample((), value)]
        if missing:
            found["queue_bound"] = [Sample(("control",), 0)]
        return found

    def _kept(
        self, told: dict[int, Found], asking: Round, generations: Sequence[int]
    ) -> list[Found]:
        """Return what those have counted who have died, or have not answered this time."""
        for index in asking.answered:
            generation, counted = self._last.get(index, (0, {}))
            if generation != generations[index]:
                own = {n: each for n, each in counted.items() if n not in _OUTLIVING}
                self._former = summed([self._former, own], 1)
            self._last[index] = generations[index], _counters(told.get(index, {}))
        silent = [found for index, (_, found) in self._last.items() if index not in asking.answered]
        return [self._former, *silent]

    def _cut_clients(self, found: Found) -> None:
        """Leave the busiest of all workers' busiest clients."""
        octets: Counter[str] = Counter()
        for (client, _), value in found.get("client_bytes_total", ()):
            assert not isinstance(value, Distribution)
            octets[client] += int(value)
        kept = {client for client, _ in octets.most_common(self._top_clients)}
        for name in ("client_calls", "client_packets_total", "client_bytes_total"):
            if name in found:
                found[name] = [each for each in found[name] if each.labels[0] in kept]

    def expect(self, when: float | None) -> None:
        """Leave it to the workers when they count."""

    def longest(self, step: float) -> float:
        """Return the longest of the workers' steps; no verdict waits for the supervisor's."""
        del step
        return self._longest

    def unbound(self) -> int | None:
        """Return the number of a queue that no worker has."""
        missing = self._supervisor.missing()
        return self._supervisor.config.control.queue + missing[0] if missing else None


def _counters(found: Found) -> Found:
    """Return of *found* what only ever grows."""
    return {
        name: samples for name, samples in found.items()
        if name not in _NOT_KEPT and (
            name.endswith("_total") or any(isinstance(s.value, Distribution) for s in samples)
        )
    }  # fmt: skip


def _sample(said: Sequence[Any]) -> Sample:
    labels, value = said
    return Sample(tuple(labels), Distribution(**value) if isinstance(value, dict) else value)


def summed(parts: Sequence[Found], workers: int) -> Found:
    """Return one scrape of those of some of *workers* workers."""
    found: Found = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        if name.startswith(_OWN):
            continue
        values: dict[tuple[str, ...], float | Distribution] = {}
        for part in parts:
            for labels, value in part.get(name, ()):
                known = values.get(labels)
                values[labels] = value if known is None else _both(name, known, value)
        found[name] = [Sample(labels, value) for labels, value in values.items()]
    # A worker gives every n-th number: its part of a pair may be full, and the pair is not.
    limit = next((each.value for each in found.get("call_ids_limit", ())), 0)
    assert not isinstance(limit, Distribution)
    fullest = [
        Sample(labels, min(limit, workers * value))
        for labels, value in found.get("call_ids_fullest", ())
        if not isinstance(value, Distribution)
    ]
    if fullest:
        found["call_ids_fullest"] = fullest
    return found


def _both(
    name: str, one: float | Distribution, other: float | Distribution
) -> float | Distribution:
    if isinstance(one, Distribution):
        assert isinstance(other, Distribution)
        counts = [a + b for a, b in zip(one.counts, other.counts, strict=True)]
        return Distribution(one.bounds, counts, one.total + other.total)
    assert not isinstance(other, Distribution)
    if name in LEAST:
        return min(one, other)
    return max(one, other) if name in GREATEST else one + other
