"""Prometheus families: what is exported, under which names, and how it is written.

`FAMILIES` is the whole list, with its help; docs/metrics.md, the alert rules and the
dashboard are checked against it.  No label's value can be made by a peer: states,
directions and causes come from tables of ours; what does not is capped where it is
read.  Names say bytes and seconds since Prometheus' names do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final, Literal, NamedTuple

from prometheus_client import ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

PREFIX: Final = "pptp_nat_"


class Distribution(NamedTuple):
    """A histogram: how many values up to each bound (and past the last one), and their sum."""

    bounds: Sequence[float]
    counts: Sequence[int]  #: one more than bounds
    total: float


class Sample(NamedTuple):
    """One series of a family."""

    labels: tuple[str, ...]
    value: float | Distribution


class Family(NamedTuple):
    """A metric family; its name is without `PREFIX`."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    labels: tuple[str, ...]
    help: str


#: What a scrape shows: samples by the name of their family.
Samples = Mapping[str, Sequence[Sample]]


def _family(line: str) -> Family:
    kind, name, text = line.split(maxsplit=2)
    name, _, labels = name.rstrip("}").partition("{")
    assert kind in {"gauge", "counter", "histogram"}
    return Family(name, kind, tuple(filter(None, labels.split(","))), text)  # type: ignore[arg-type]


FAMILIES: Final = tuple(map(_family, filter(None, map(str.strip, """
gauge     build_info{version,python,datapath} Always 1; what runs here.
gauge     calls{state} Calls, by state.
gauge     control_connections{state} Control connections, by state.
gauge     control_connections_opaque Control connections some of whose octets pass without being understood.
gauge     clients Hidden hosts that have a control connection.
gauge     call_ids_used{external} Call IDs taken, those in quarantine too, of all address pairs with this external address.
gauge     call_ids_fullest{external} Call IDs taken of that address pair with this external address that has most.
gauge     call_ids_limit Call IDs that one address pair has.
gauge     call_ids_quarantined Call IDs that are kept back for a while since their calls have ended.
counter   call_id_collisions_total New calls whose own call ID another call of the same address pair had already.
counter   control_messages_total{type,direction} Whole control messages, by where they went.
counter   control_packets_total{verdict} Packets of control connections that got a verdict here.
counter   paced_packets_total{limit} Packets that our rules dropped ahead of the queues, by the limit that they exceeded.
counter   control_packets_rewritten_total Packets of control connections in which a call ID was replaced.
counter   control_parse_errors_total{reason} What could not be read as a TCP segment or a control message.
counter   control_oddities_total{kind} Departures from RFC 2637 or from TCP's order, all tolerated.
counter   call_requests_total Calls that were asked for.
counter   calls_established_total Calls that came up.
counter   call_failures_total{result} Calls that were asked for and never came up, by why.
counter   call_refusals_total{reason} Calls refused here since there was no number or no room for them.
counter   calls_ended_total{cause} Calls that are over, also those that never came up.
histogram call_setup_duration_seconds From the request of a call to its being up.
histogram call_duration_seconds From a call's being up to its end.
counter   gre_packets_total{direction} GRE packets that calls have carried, by where they went.
counter   gre_bytes_total{direction} Octets of the IP packets in pptp_nat_gre_packets_total.
counter   gre_unmatched_packets_total{direction} GRE packets with a call ID that no call has.
counter   gre_plain_packets_total GRE packets without call ID, not ours, seen by the data path queue.
counter   gre_observations_total{kind} What BPF programs have seen of GRE besides (data path bpf): fragments and ICMP errors, sequence numbers that were missing or late.
gauge     gre_read_timestamp_seconds When the look began that the GRE counts above are of, Unix seconds; none of them is older.
counter   gre_readings_total Looks at the counts of all calls, for scrapes and for when each call was last heard.
counter   gre_readings_cpu_seconds_total Processor time that those looks took.
gauge     gre_accounting Whether this kernel counts packets per conntrack entry (net.netfilter.nf_conntrack_acct).
counter   gre_entries_restored_total Conntrack entries of live calls that others had deleted and that were put back.
counter   datapath_failures_total Orders that the data path could not carry out at once; installations are tried again.
histogram verdict_duration_seconds From taking a packet of a control connection in hand to its verdict.
histogram loop_turn_duration_seconds Turns of the daemon's loop: how long a packet may wait for other work.
gauge     queue_bound{queue} Whether the queue is bound to this daemon.
gauge     queue_length{queue} Packets that wait in the kernel for a verdict.
counter   queue_packets_total{queue} Packets that the kernel has queued.
counter   queue_dropped_packets_total{queue} Packets that the kernel dropped since the queue was full.
counter   queue_user_dropped_packets_total{queue} Packets that the kernel dropped since the socket's buffer was full.
counter   queue_overruns_total{queue} Times that reading found the socket's buffer overrun (ENOBUFS).
counter   queue_verdicts_refused_total{queue} Verdicts that the kernel refused.
counter   queue_too_long_packets_total{queue} Packets dropped since they are longer than a queue can hand over.
counter   queue_faults_total{queue} Packets dropped since judging them failed; each is a bug and stands in the log.
gauge     limit{limit} What [limits] allows at most; 0: no limit.
gauge     state_journal_bytes Octets of the journal; 0 while it cannot be written.
counter   state_journal_writes_total Writes to the journal: what one packet or tick has changed, or a piece of what is written anew.
counter   state_journal_written_bytes_total Octets written to the journal, those that were written anew too.
counter   state_failures_total Times that the journal or a copy of it could not be written.
gauge     state_copy_timestamp_seconds When the last copy was made that outlives a boot, Unix seconds; one is made only when calls have come or gone.
gauge     state_copy_bytes Octets of that copy.
gauge     state_taken_up_seconds How long it took at the start to read what was on record and to compare it with the kernel.
gauge     kernel_helper_conflict Control connections left alone since the kernel's own PPTP helper is attached to them.
gauge     config_last_reload_successful Whether the last reload of the configuration was taken over.
gauge     config_last_reload_success_timestamp_seconds When a configuration was last taken over, Unix seconds.
gauge     workers Workers that answer; only where control.workers is more than 1.
counter   worker_restarts_total Workers that have died and were started again.
gauge     api_clients Programs connected to the control socket.
counter   api_clients_refused_total Programs turned away from the control socket since all places were taken.
counter   api_clients_dropped_total Subscribers disconnected since they fell behind.
counter   api_clients_garbled_total Programs disconnected since what they sent was no request.
counter   http_requests_total{code} Requests answered on the metrics port, by status code.
counter   http_connections_closed_total{reason} Connections to the metrics port that ended without a good request.
counter   textfile_failures_total Times that the textfile could not be written.
gauge     collector_success{collector} Whether this part of the scrape could be read.
gauge     collector_duration_seconds{collector} Processor time spent on this part of the scrape.
gauge     scrape_longest_step_seconds Processor time of the longest step since the last reading began: a verdict may have waited for it.
gauge     client_calls{client} Calls of one of the busiest clients.
counter   client_packets_total{client,direction} GRE packets of one of the busiest clients.
counter   client_bytes_total{client,direction} Octets of the IP packets in pptp_nat_client_packets_total.
counter   client_series_overflow_total Clients left out of scrapes since there were more than metrics.top_clients.
""".splitlines()))))  # noqa: E501  a table

_KINDS: Final[Mapping[str, type[CounterMetricFamily | GaugeMetricFamily]]] = {
    "counter": CounterMetricFamily, "gauge": GaugeMetricFamily,
}  # fmt: skip


class Form(NamedTuple):
    """A way of writing families."""

    name: str
    content_type: str
    write: Callable[[_One], bytes]
    end: bytes  #: what follows the last family


class _One(NamedTuple):
    """What prometheus_client takes for a registry: one family, or a few."""

    families: Iterable[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.families


def _openmetrics(one: _One) -> bytes:
    written: bytes = openmetrics.generate_latest(one)  # type: ignore[no-untyped-call]
    return written.removesuffix(_EOF)


_EOF: Final = b"# EOF\n"
TEXT: Final = Form("text", "text/plain; version=0.0.4; charset=utf-8", generate_latest, b"")
OPENMETRICS: Final = Form(
    "openmetrics", "application/openmetrics-text; version=1.0.0; charset=utf-8", _openmetrics, _EOF
)


def form_for(accept: str) -> Form:
    """Return the form that an Accept header asks for; the text format suits everybody."""
    return OPENMETRICS if "application/openmetrics-text" in accept else TEXT


def written(samples: Samples, form: Form, *, process: bool = True) -> Iterator[bytes]:
    """Yield the octets of a scrape, a family at a time; a family without samples is left out.

    *process*: add the families of this process, which have the same names in every exporter.
    """
    for family in FAMILIES:
        if found := samples.get(family.name):
            yield form.write(_One([_metric(family, found)]))
    if process:
        yield form.write(_One(_PROCESS.collect()))
    yield form.end


def _metric(family: Family, samples: Sequence[Sample]) -> Metric:
    name = PREFIX + family.name
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(name, family.help, labels=family.labels)
        for labels, value in samples:
            assert isinstance(value, Distribution)
            ends = [*map(_number, value.bounds), "+Inf"]
            buckets = list(zip(ends, accumulate(value.counts), strict=True))
            histogram.add_metric(labels, buckets, value.total)
        return histogram
    metric = _KINDS[family.kind](name, family.help, labels=family.labels)
    for labels, value in samples:
        assert not isinstance(value, Distribution)
        assert len(labels) == len(family.labels), family.name
        metric.add_metric(labels, value)
    return metric


def _number(bound: float) -> str:
    """Return a bound as a label's value, never as 5e-05."""
    return f"{bound:.6f}".rstrip("0") + ("0" if bound.is_integer() else "")


_PROCESS: Final = ProcessCollector(registry=None)
