"""Time, memory and progress of the phases of a step whose passes run on a pool of workers.

A phase shows a bar whose steps are the spans of its passes.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from cluster.fanout import Pool
from cluster.memory import PeakMemory
from cluster.progress import progress
from curation.clusters.scan import Workers


class Phase(NamedTuple):
    """What a phase took: wall time, and the peak memory of the driver and of all workers together,
    in MB.
    """

    seconds: float
    driver_mb: float
    workers_mb: float


class Phases:
    """The workers of a step, and what each phase took on them."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._peaks_mb = workers.peaks_mb if isinstance(workers, Pool) else {}
        self._advance: Callable[..., None] = _nothing
        self.taken: dict[str, Phase] = {}

    def map(self, method: str, items: Sequence[Any], *shared: object) -> Iterator[tuple[Any, Any]]:
        """The workers' map, shown as progress of the current phase."""
        for done in self._workers.map(method, items, *shared):
            self._advance()
            yield done

    @contextmanager
    def phase(self, name: str, num_items: int = 1) -> Iterator[None]:
        """A phase whose passes hand out at most about so many items."""
        self._peaks_mb.clear()
        start = time.monotonic()
        with (
            progress(num_items, name.replace("_", " "), "spans") as self._advance,
            PeakMemory() as memory,
        ):
            yield

        self._advance = _nothing
        self.taken[name] = Phase(
            time.monotonic() - start, memory.peak_mb, sum(self._peaks_mb.values())
        )


def _nothing() -> None:
    """Outside of phases nothing is shown."""
