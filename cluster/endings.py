"""How a run ends: its exit codes, and what turns a signal into an orderly end."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

DONE = 0
FAILED = 1
"""A step failed, or an output is damaged."""
USAGE = 2
"""The command names something that does not exist or does not fit; nothing ran."""
REQUEUE = 85
"""The run was asked to stop and kept what it had finished; a SLURM job is requeued on this code."""
INTERRUPTED = 130
"""Ctrl-C, as shells count it: 128 and the number of the signal."""


class SessionError(RuntimeError):
    """Ray cannot be started, or is lost; no step is to blame, and what is finished is kept."""


class StoppedError(RuntimeError):
    """A run was asked to stop and saved its state; the same command continues from there."""


@contextmanager
def stop_on_sigterm() -> Iterator[None]:
    """SIGTERM ends the body with StoppedError; only the main thread may listen for signals.

    Ray's core worker answers SIGTERM with a C++ stack and SIGABRT: this must be entered after Ray
    has started.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise StoppedError("asked to stop by SIGTERM")
