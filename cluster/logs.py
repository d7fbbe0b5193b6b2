"""Logging and progress: one event per line, and a bar with rate and ETA where a person watches.

Rank 0 speaks; the other ranks of a distributed run only warn. The terminal is one, so the bars of steps that run in
parallel threads share one display.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY_S = 30.0
LINE_EVERY_SHARE = 0.25
CHATTY = ("urllib3", "matplotlib", "PIL", "git", "submitit", "fsspec", "asyncio")

logger = logging.getLogger(__name__)


def setup_logging(verbose: bool = False) -> None:
    """Log to standard error: warnings where a person watches the bars, INFO too elsewhere, all when `verbose`."""
    if console().is_terminal:
        handler: logging.Handler = RichHandler(console=console(), show_path=verbose, omit_repeated_times=False)
        handler.setFormatter(logging.Formatter("%(message)s", datefmt="[%X]"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%S"))
    is_rank_zero = os.environ.get("RANK", "0") == "0"
    is_quiet = console().is_terminal or not is_rank_zero
    level = logging.DEBUG if verbose else logging.WARNING if is_quiet else logging.INFO
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)


@cache
def console() -> Console:
    """The terminal of this process; log lines and bars go through it so that they do not overwrite each other."""
    return Console(stderr=True)


@contextmanager
def progress(total: int, label: str, unit: str = "rows") -> Iterator[Callable[..., None]]:
    """Yield `advance(count=1, **numbers)`, which shows how far `label` has come; `numbers` stand beside the bar.

    A total that turns out too small grows with what is done.
    """
    if console().is_terminal:
        with _DISPLAY.bar(total, label, unit) as advance:
            yield advance
    else:
        yield _line_writer(total, label, unit)


class _Display:
    """The bars of this process: the first one opens the display, the last one closes it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.bars = 0
        self.progress: Progress | None = None

    @contextmanager
    def bar(self, total: int, label: str, unit: str) -> Iterator[Callable[..., None]]:
        with self.lock:
            if self.progress is None:
                self.progress = Progress(*_columns(), console=console())
                self.progress.start()
            shown, self.bars = self.progress, self.bars + 1
            task = shown.add_task(label, total=total, unit=unit, rate="", numbers="")
        done, started = 0, time.monotonic()

        def advance(count: int = 1, **numbers: float) -> None:
            nonlocal done
            done += count
            rate = f"{done / max(1e-9, time.monotonic() - started):.4g} {unit}/s"
            shown.update(task, completed=done, total=max(total, done), rate=rate, numbers=_numbers(numbers))

        try:
            yield advance
        finally:
            with self.lock:
                self.bars -= 1
                if self.bars == 0:
                    shown.stop()
                    self.progress = None


_DISPLAY = _Display()


def _columns() -> list[TextColumn | BarColumn | MofNCompleteColumn | TimeElapsedColumn | TimeRemainingColumn]:
    return [
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("elapsed"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}", style="dim"),
    ]


def _line_writer(total: int, label: str, unit: str) -> Callable[..., None]:
    """Sparse log lines: one each quarter of the way, and one each half minute in between."""
    started = last_line = time.monotonic()
    done, last_done = 0, 0

    def advance(count: int = 1, **numbers: float) -> None:
        nonlocal done, last_done, last_line
        done += count
        now = time.monotonic()
        is_due = done - last_done >= LINE_EVERY_SHARE * total or now - last_line >= LINE_EVERY_S or done == total
        if not is_due or done == last_done:
            return
        last_done, last_line = done, now
        rate = done / max(1e-9, now - started)
        left = max(0, total - done) / max(1e-9, rate)
        line = f"{label} done={done}/{max(total, done)} {unit}_per_s={rate:.4g} left_s={left:.0f} {_numbers(numbers)}"
        logger.info("%s", line.rstrip())

    return advance


def _numbers(numbers: dict[str, float]) -> str:
    return " ".join(f"{name}={value:.4g}" for name, value in numbers.items())
