"""How a run ends: its exit codes, and what turns a signal into an orderly end."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

import psutil

from cluster.logs import console

DONE = 0
FAILED = 1
"""A step failed, or an output is damaged."""
USAGE = 2
"""The command names something that does not exist or does not fit; nothing ran."""
REQUEUE = 85
"""The run was asked to stop and kept what it had finished; a SLURM job is requeued on this code."""
INTERRUPTED = 130
"""Ctrl-C, as shells count it: 128 and the number of the signal."""

KEPT = "what is finished is kept: run the same command again to continue"

JOB_FOLDER = "PIPELINE_JOB_FOLDER"
"""Environment variable of a driver in a SLURM job of ours: the job's folder."""
KILL_S = 5.0  # what the kernel may take to end a killed process
STOPPING = (signal.SIGTERM, signal.SIGUSR2)
"""What asks a run to stop: SLURM sends the first when a job is cancelled, the second before it is
preempted or runs into its time limit.
"""


class SessionError(RuntimeError):
    """Ray cannot be started, or is lost; no step is to blame, and what is finished is kept."""


class StoppedError(RuntimeError):
    """A run was asked to stop and saved its state; the same command continues from there."""


class FruitlessError(RuntimeError):
    """A SLURM job was tried several times and finished nothing: it must not be requeued again."""


def code_of_lost_session() -> int:
    """Exit code when Ray is lost: a SLURM job of ours is requeued, and gets another start of Ray,
    maybe on other nodes.
    """
    return REQUEUE if JOB_FOLDER in os.environ else FAILED


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """SIGTERM and SIGUSR2 end the body with StoppedError; only the main thread may listen for
    signals.

    Ray's core worker answers SIGTERM with a C++ stack and SIGABRT: this must be entered again after
    Ray has started.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    before = {number: signal.signal(number, _stop) for number in STOPPING}
    try:
        with unmasked():
            yield
    finally:
        for number, handler in before.items():
            is_stopping = signal.getsignal(number) is signal.SIG_IGN
            if not (is_stopping and handler is _stop):
                signal.signal(number, handler)


@contextmanager
def unmasked() -> Iterator[None]:
    """What a signal handler raised, as itself.

    A handler may run inside a function of Ray's that is compiled by Cython: its exception then
    comes out as the cause of a SystemError.
    """
    try:
        yield
    except SystemError as error:
        if isinstance(error.__cause__, StoppedError | KeyboardInterrupt):
            raise error.__cause__ from None
        raise


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """SLURM sends several signals to a process that it ends: the first one is enough, and what it
    started is to be completed.
    """
    for further in STOPPING:
        signal.signal(further, signal.SIG_IGN)
    raise StoppedError(f"asked to stop by {signal.Signals(number).name}")


@contextmanager
def end_at_second_interrupt() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, which lets everything close; a second one ends the process
    at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    before = signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGINT, lambda *_: end_now("interrupted again: ended", INTERRUPTED))
    raise KeyboardInterrupt


def end_now(message: str, code: int) -> NoReturn:
    """Print one line, kill every process that this one has started, and end it: no further line of
    Python runs.
    """
    console().print(message, highlight=False, soft_wrap=True)
    kill_children()
    os._exit(code)


def kill_children() -> None:
    """Kill every process that this one has started, and all that those have started."""
    children = psutil.Process().children(recursive=True)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(children, timeout=KILL_S)
