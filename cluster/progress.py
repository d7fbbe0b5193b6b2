"""Progress that is never silent: bars on a terminal, log lines elsewhere.

Log lines come after ten seconds and then every half minute. A meter is updated from any thread and
shown by a thread of its own, so that work is visible even before its first item is finished. Items
inside unfinished parts count (`under_way`). A meter that is opened while another one of the same
thread is open takes its place: a step shows its own clock only while no phase of it shows more.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path

from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from cluster import logs
from cluster.files import write_atomic
from cluster.words import duration, number

FIRST_LINE_S = 10.0
LINE_EVERY_S = 30.0
LINE_EVERY_SHARE = 0.25
REFRESH_S = 0.2
LEAST_S = 1e-9  # a rate is over at least this time, so that nothing is divided by 0
PROGRESS_FILE = "progress.json"  # in the folder of a job
PROGRESS_VARIABLE = "DINOTXT_PROGRESS"
"""Environment variable that names a file to keep the last line of progress in, as JSON."""

logger = logging.getLogger(__name__)


class Meter:
    """How much of a piece of work is done; every method may be called from any thread."""

    def __init__(self, total: int | None, label: str, unit: str) -> None:
        self.total = total
        self.label = label
        self.unit = unit
        self.numbers: dict[str, float | int] = {}
        self.is_covered = False
        """A phase of this work has a meter of its own, which is shown instead."""

        self._done = 0
        self._under_way = 0
        self._lock = threading.Lock()
        self._started_s = time.monotonic()

    def __call__(self, count: int = 1, **numbers: float | int) -> None:
        """Count finished items; `numbers` are shown beside the count."""
        with self._lock:
            self._done += count
            self.numbers |= numbers

    def under_way(self, count: int) -> None:
        """Set the number of items that are finished inside unfinished parts."""
        with self._lock:
            self._under_way = count

    @property
    def reached(self) -> int:
        """Number of finished items, including those inside unfinished parts."""
        return self._done + self._under_way

    @property
    def most(self) -> int:
        """The total, or the number of finished items if that is larger."""
        return max(self.total or 0, self.reached)

    @property
    def is_complete(self) -> bool:
        """Whether all items are finished; never for an unknown total."""
        return self.total is not None and self._done >= self.total

    @property
    def elapsed_s(self) -> float:
        """Seconds since the meter was opened."""
        return time.monotonic() - self._started_s

    def count(self) -> str:
        """'1,024 of 14,222 images'; empty if the total is unknown."""
        return f"{self.reached:,} of {self.most:,} {self.unit}" if self.total is not None else ""

    def speed(self) -> str:
        """'122 images/s, 1 min 48 s left'; empty before the first item."""
        if not self.reached:
            return ""
        rate = self.reached / max(LEAST_S, self.elapsed_s)
        text = f"{number(rate)} {self.unit}/s"
        return (
            text
            if self.is_complete
            else f"{text}, {duration((self.most - self.reached) / rate)} left"
        )

    def beside(self) -> str:
        """The numbers beside the count: 'loss 4.31, rejects 2'."""
        return ", ".join(f"{name} {number(value)}" for name, value in self.numbers.items())

    def line(self) -> str:
        """All of it in one line, for a log."""
        elapsed = f"{duration(self.elapsed_s)} so far"
        return f"{self.label}: " + ", ".join(
            filter(None, (self.count(), self.speed() or elapsed, self.beside()))
        )


_OPEN: ContextVar[Meter | None] = ContextVar("open_meter", default=None)
"""The innermost open meter. A context variable has a value per thread, so that steps in parallel
threads do not cover each other's meters.
"""


def open_label(otherwise: str) -> str:
    """The label of the innermost open meter, so that a phase carries the name of its step."""
    meter = _OPEN.get()
    return meter.label if meter else otherwise


@contextmanager
def progress(total: int | None, label: str, unit: str = "items") -> Iterator[Meter]:
    """Show the progress of `label` while the body runs.

    The body calls the meter with the number of items that it has finished. Without a total, the
    elapsed time is shown.
    """
    meter = Meter(total, label, unit)
    outer = _OPEN.get()
    token = _OPEN.set(meter)
    if outer:
        outer.is_covered = True

    try:
        with _bar(meter) if logs.console().is_terminal else _lines(meter):
            yield meter
    finally:
        _OPEN.reset(token)
        if outer:
            outer.is_covered = False


@contextmanager
def _lines(meter: Meter) -> Iterator[None]:
    """Log lines: after ten seconds, at every quarter, and at least every half minute."""
    ended = threading.Event()

    def write() -> None:
        next_line_s = FIRST_LINE_S
        next_share = LINE_EVERY_SHARE

        while not ended.wait(REFRESH_S):
            is_far = meter.total and meter.reached >= next_share * meter.total
            if meter.is_covered or not (is_far or meter.elapsed_s >= next_line_s):
                continue
            _write_line(meter)
            next_line_s = meter.elapsed_s + LINE_EVERY_S
            next_share = (meter.reached / meter.total if meter.total else 0) + LINE_EVERY_SHARE

    thread = threading.Thread(target=write, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        # The last line says how much was done; a mere clock needs none.
        if meter.total and not meter.is_covered:
            _write_line(meter)


def _write_line(meter: Meter) -> None:
    """Log how far a meter is, and keep it in the file of a job, where others read it."""
    logger.info("%s", meter.line())
    path = os.environ.get(PROGRESS_VARIABLE)
    if path and logger.isEnabledFor(logging.INFO):
        with suppress(OSError):  # what cannot be told must not end the work
            write_atomic(Path(path), json.dumps({"text": meter.line(), "time": time.time()}))


class _Display:
    """The bars of this process: the first one opens the display, the last one closes it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._meters: dict[TaskID, Meter] = {}
        self._progress: Progress | None = None
        self._thread: threading.Thread | None = None

    def add(self, meter: Meter) -> TaskID:
        """Show a bar for the meter."""
        with self._lock:
            if self._progress is None:
                self._progress = Progress(*_columns(), console=logs.console())
                self._progress.start()
                self._thread = threading.Thread(
                    target=self._refresh, args=(self._progress,), daemon=True
                )
                self._thread.start()
            task = self._progress.add_task(meter.label, total=meter.total, text="")
            self._meters[task] = meter
            self._update(self._progress, task, meter)
            return task

    def remove(self, task: TaskID) -> None:
        """Leave the bar with its last state; remove it if it only showed a clock."""
        with self._lock:
            shown = self._progress
            assert shown is not None
            meter = self._meters.pop(task)
            self._update(shown, task, meter)
            if meter.total is None:
                shown.remove_task(task)
            if not self._meters:
                shown.stop()
                self._progress = None

    def _refresh(self, shown: Progress) -> None:
        while True:
            time.sleep(REFRESH_S)
            with self._lock:
                if self._progress is not shown:  # closed, and perhaps opened again since
                    return
                for task, meter in self._meters.items():
                    self._update(shown, task, meter)

    @staticmethod
    def _update(shown: Progress, task: TaskID, meter: Meter) -> None:
        text = ", ".join(filter(None, (meter.count(), meter.speed(), meter.beside())))
        most = None if meter.total is None else meter.most
        shown.update(
            task, completed=meter.reached, total=most, visible=not meter.is_covered, text=text
        )


@cache
def _display() -> _Display:
    """The display of this process: it has one terminal, which parallel steps share."""
    return _Display()


@contextmanager
def _bar(meter: Meter) -> Iterator[None]:
    task = _display().add(meter)
    try:
        yield
    finally:
        _display().remove(task)


def _columns() -> tuple[SpinnerColumn | TextColumn | BarColumn | TimeElapsedColumn, ...]:
    return (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("{task.fields[text]}"),
    )
