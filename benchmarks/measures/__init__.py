"""The measurements.  Each yields samples: plain dictionaries, one a round and way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from benchmarks.measures.flush import flush
from benchmarks.measures.gre import delay, gre
from benchmarks.measures.growth import growth
from benchmarks.measures.memory import memory
from benchmarks.measures.reading import reading
from benchmarks.measures.scrape import scrape
from benchmarks.measures.setup import echo, setup
from benchmarks.plan import Run, Sample

MEASURES: Final[dict[str, Callable[[Run], Iterator[Sample]]]] = {
    "gre": gre,
    "delay": delay,
    "setup": setup,
    "latency": echo,
    "memory": memory,
    "growth": growth,
    "scrape": scrape,
    "flush": flush,
    "reading": reading,
}
