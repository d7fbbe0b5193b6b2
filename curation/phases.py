"""Time, memory and progress of the phases of a step whose passes run on a pool of workers.

Memory is what a process alone holds (RssAnon of /proc, sampled every 20 ms): pages of mapped shards, which processes
share and the kernel can drop, are not counted. A phase shows a bar whose steps are the spans of its passes.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cluster.fanout import Pool
from cluster.logs import progress
from curation.scan import Scanner, Workers

SAMPLE_EVERY_S = 0.02
STATUS = Path("/proc/self/status")


class Phase(NamedTuple):
    """What a phase took: wall time, and the peak memory of the driver and of all workers together, in MB."""

    seconds: float
    driver_mb: float
    workers_mb: float


class PeakMemory:
    """The most private memory of this process while the context lasts, in MB."""

    def __enter__(self) -> "PeakMemory":
        self.peak_mb = private_mb()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="memory", daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_EVERY_S):
            self.peak_mb = max(self.peak_mb, private_mb())

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        self.peak_mb = max(self.peak_mb, private_mb())


def private_mb() -> float:
    """Resident private pages of this process."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) / 1024


class MeasuredScanner:
    """A Scanner in a worker process that says how much memory each call took."""

    def __init__(self) -> None:
        self.scanner = Scanner()

    def measured(self, task: tuple[str, Any], *shared: object) -> tuple[Any, int, float]:
        """The result of a method for an item, this process, and its peak memory in MB."""
        method, item = task
        with PeakMemory() as memory:
            result = getattr(self.scanner, method)(item, *shared)
        return result, os.getpid(), memory.peak_mb


class MeasuredWorkers:
    """A pool of `MeasuredScanner`s in the place of the pool of Scanners that a pass expects."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.peaks_mb: dict[int, float] = {}

    def map(self, method: str, items: Sequence[Any], *shared: object) -> Iterator[tuple[Any, Any]]:
        """(item, result) of each item, in any order."""
        tasks = [(method, item) for item in items]
        for (_, item), (result, process, peak_mb) in self.pool.map("measured", tasks, *shared):
            self.peaks_mb[process] = max(self.peaks_mb.get(process, 0.0), peak_mb)
            yield item, result


class Phases:
    """The workers of a step, and what each phase took on them."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._peaks_mb = workers.peaks_mb if isinstance(workers, MeasuredWorkers) else {}
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
        with progress(num_items, name.replace("_", " "), "spans") as self._advance, PeakMemory() as memory:
            yield
        self._advance = _nothing
        self.taken[name] = Phase(time.monotonic() - start, memory.peak_mb, sum(self._peaks_mb.values()))


def _nothing() -> None:
    """Outside of phases nothing is shown."""
