"""Time, memory and progress of the phases of a step whose passes run on a pool of workers.

The progress bar of a phase counts the spans that workers have finished.
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
    """What a phase needed."""

    seconds: float
    """Wall time."""
    driver_mb: float
    """Peak memory of the driver, MB."""
    workers_mb: float
    """Sum of the peak memory of all workers, MB."""


class Phases:
    """The workers of a step, and what each phase needed."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._peaks_mb = workers.peaks_mb if isinstance(workers, Pool) else {}
        self._advance: Callable[..., None] = _nothing
        self.needs: dict[str, Phase] = {}
        """What each finished phase needed, by its name."""

    def map(self, method: str, items: Sequence[Any], *shared: object) -> Iterator[tuple[Any, Any]]:
        """The workers' own `map`; each result advances the progress bar of the current phase."""
        for done in self._workers.map(method, items, *shared):
            self._advance()
            yield done

    @contextmanager
    def phase(self, name: str, num_items: int = 1) -> Iterator[None]:
        """Measure a phase, whose passes have about `num_items` items at most in all."""
        self._peaks_mb.clear()  # the pool writes the peaks of this phase into the same dictionary
        start = time.monotonic()
        with (
            progress(num_items, name.replace("_", " "), "spans") as self._advance,
            PeakMemory() as memory,
        ):
            yield

        self._advance = _nothing
        self.needs[name] = Phase(
            time.monotonic() - start, memory.peak_mb, sum(self._peaks_mb.values())
        )


def _nothing() -> None:
    """Outside of phases, no progress is shown."""
