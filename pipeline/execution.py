"""Runs the steps that are left to do: in order, and independent steps side by side.

A step that was interrupted continues in the folder that it left. A step itself only returns its
summary; its record is written here, from the config, the inputs, the commit and the environment.
"""

import logging
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from cluster.devices import precision_choice, slow_choices
from cluster.endings import StoppedError, stop_on_signals, unmasked
from cluster.files import append_jsonl, read_jsonl, remove_torn, write_atomic
from cluster.progress import progress
from cluster.session import session
from cluster.tries import note_try
from pipeline.lines import headline, state_after, step_line
from pipeline.outcome import read_outcome
from pipeline.provenance import make_record
from pipeline.record import Record
from pipeline.step import Step, StepError, ancestors
from pipeline.store import Store
from pipeline.tracking import Tracking, status_after

ERROR = "error.txt"
CHOICES = "choices.jsonl"
MOST_BESIDE = 4  # steps at a time

logger = logging.getLogger(__name__)


def execute(
    todo: Sequence[Step],
    ordered: Sequence[Step],
    store: Store,
    console: Console,
    open_tracking: Callable[[], Tracking],
) -> None:
    """Run the steps in `todo` until each has a record.

    If one raises, no further step starts, and StepError follows once the running ones have ended.
    """
    again = {step.label for step in todo if store.record(step)}
    note_try(store.finished_work(todo))
    tracking = open_tracking()
    status = "FINISHED"

    try:
        with session(), stop_on_signals():
            show_choices(todo, console)
            run = _Run(ordered, store, tracking, console, again)
            run.all(todo)
    except BaseException as error:
        status = status_after(error)
        raise
    finally:
        tracking.finish(status, lambda: read_outcome(ordered, store))


def show_choices(todo: Sequence[Step], console: Console) -> None:
    """Print what `auto` stands for on this machine, before anything runs.

    ValueError if a setting is impossible on this machine.
    """
    for step in todo:
        for warning in slow_choices(step.config, step.label):
            logger.warning("%s", warning)

    if any(step.name == "train" for step in todo):
        # Imported here, because torch and Ray Train take seconds, for which other steps need not wait.
        from pipeline.checks import check_training

        check_training(todo)

    choices = [precision_choice(step.config) for step in todo]
    for text in dict.fromkeys(str(choice) for choice in choices if choice is not None):
        console.print(f"precision [b]{escape(text)}[/b]", soft_wrap=True, highlight=False)


class _Run:
    """The steps of one run, while they run."""

    def __init__(
        self,
        ordered: Sequence[Step],
        store: Store,
        tracking: Tracking,
        console: Console,
        again: set[str],
    ) -> None:
        self.ordered = ordered
        self.store = store
        self.tracking = tracking
        self.console = console
        self.again = again
        """Labels of finished steps that run again."""
        self._lock = threading.Lock()
        self._checks = dict[Path, Future[None]]()
        """The comparison of each folder with its checksums, once per run."""

    def all(self, todo: Sequence[Step]) -> None:
        """Run each step once its inputs are there.

        Steps that may run beside others run in threads; the others run in this thread, one at a
        time.
        """
        waiting = list(todo)
        running = dict[Future[Record], Step]()
        errors: list[BaseException] = []

        # Not as a context manager, which would wait for the threads on an interrupt.
        threads = ThreadPoolExecutor(max_workers=MOST_BESIDE)

        try:
            while waiting or running:
                side_by_side, alone = _ready(waiting, list(running.values()))
                for step in side_by_side:
                    waiting.remove(step)
                    running[threads.submit(self.one, step)] = step
                for step in alone:
                    waiting.remove(step)
                    self._show(step, self.one(step))

                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    step = running.pop(future)
                    if error := future.exception():
                        errors.append(error)
                        waiting.clear()  # start no further step; let the running ones end
                    else:
                        self._show(step, future.result())
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

        if errors:
            raise errors[0]

    def one(self, step: Step) -> Record:
        """Run a step, unless another run on this workspace has built its output; its record."""
        with self.store.claim(step):
            done = self.store.record(step)
            if done and step.label not in self.again:
                return done

            # The folder may hold the work of an interrupted run, which the step continues, even
            # when it is forced.
            out = self.store.partial(step)
            self.store.make_folder(out)
            (out / ERROR).unlink(missing_ok=True)
            remove_torn(out)
            logger.info("step %s starts", step.label)
            try:
                with progress(None, step.label), unmasked():
                    self._check_inputs(step)
                    record = self._work(step, out)
                    self.store.commit(step, record)
            except Exception as error:
                raise _failure(step, error, out) from error

        return record

    def _work(self, step: Step, out: Path) -> Record:
        """Call the step's function, followed by tracking."""
        inputs = {name: self.store.resolve(source) for name, source in step.inputs.items()}
        choices = note_choices(step, out)
        started = datetime.now(UTC)
        clock_s = time.perf_counter()

        with self.tracking.step(step, out) as track:
            summary = {
                name: float(value)
                for name, value in step.run(step.config, out=out, **inputs).items()
            }
            track(summary)

        remove_torn(out)  # files of workers that were lost while others went on
        (out / CHOICES).unlink(missing_ok=True)
        return make_record(step, summary, out, started, time.perf_counter() - clock_s, choices)

    def _check_inputs(self, step: Step) -> None:
        """Compare the outputs that the step reads with their checksums, each once per run.

        Of steps that share an input, the first compares it. The others wait, and fail if it does.
        """
        for source in step.upstream():
            folder = self.store.folder(source)
            with self._lock:
                is_first = folder not in self._checks
                check = self._checks.setdefault(folder, Future[None]())

            if is_first:
                try:
                    self.store.check_content(source)
                except BaseException as error:
                    check.set_exception(error)
                    raise
                check.set_result(None)

            check.result()

    def _show(self, step: Step, record: Record) -> None:
        line = step_line(self.ordered, step, state_after(record.seconds), headline(record.summary))
        self.console.print(line, soft_wrap=True)


def _ready(waiting: Sequence[Step], running: Sequence[Step]) -> tuple[list[Step], list[Step]]:
    """The steps to start now: those that may run side by side, and one that must run alone.

    Steps start in their order. One that must run alone waits until no other is running.
    """
    unfinished = {step.label for step in (*waiting, *running)}
    able = [
        step for step in waiting if not any(need.label in unfinished for need in ancestors(step))
    ]
    side_by_side = list(takewhile(lambda step: step.runs_beside, able))
    return side_by_side, [] if side_by_side or running else able[:1]


def note_choices(step: Step, out: Path) -> dict[str, str]:
    """What `auto` stands for in this run of a step, and stood for in earlier, interrupted runs.

    Each run notes its choice in `out`, because a step may continue on another machine.
    """
    choice = precision_choice(step.config)
    if choice is None:
        return {}

    earlier = [row["precision"] for row in read_jsonl(out / CHOICES)]
    if str(choice) not in earlier:
        append_jsonl(out / CHOICES, {"precision": str(choice)})
    return {"precision": ", then ".join(dict.fromkeys([*earlier, str(choice)]))}


def _failure(step: Step, error: Exception, out: Path) -> StepError:
    """The error for the user; its traceback is written into the step's folder."""
    if isinstance(error, StoppedError):
        return StepError(f"step {step.label}: {error}")

    with suppress(OSError):  # on a full disk, only the message is left
        write_atomic(out / ERROR, "".join(traceback.format_exception(error)))

    reason = "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
    return StepError(
        f"step {step.label} failed: {reason}\n"
        f"Finished work is kept in {out}: run the same command again to resume, or delete the "
        f"folder to start over. Traceback: {out / ERROR}"
    )
