"""Runs steps in order: skips what is done, runs what is independent side by side, continues what was interrupted.

Ray starts only when something is left to do. A step's record is taken from what is known here: config, inputs,
commit, environment; the step itself only returns its summary.
"""

import logging
import platform
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from cluster.devices import precision_choice, slow_choices
from cluster.files import append_jsonl, read_jsonl, remove_torn, write_atomic
from cluster.session import ROOT, session
from pipeline.fingerprint import canonical, fingerprint, input_identity
from pipeline.step import Step, ancestors, in_order
from pipeline.store import Record, Store, checksums, list_files
from pipeline.tracking import Tracking

log = logging.getLogger(__name__)

ERROR = "error.txt"
CHOICES = "choices.jsonl"
VERSIONS_OF = ("torch", "ray", "pyarrow", "numpy", "mlflow", "sentencepiece")


class StepFailed(RuntimeError):
    """A step raised; its finished shards, iterations or checkpoints are kept for the next run."""


def pending(steps: Sequence[Step], store: Store, force: Sequence[str] = (), only: Sequence[str] = ()) -> list[Step]:
    """Steps to run, in order: without a record, forced or after a forced one; with `only`, those and what they lack."""

    def is_forced(step: Step) -> bool:
        return any(made.label in force for made in (step, *ancestors(step)))

    return [step for step in _asked(steps, only) if is_forced(step) or store.record(step) is None]


def _asked(steps: Sequence[Step], only: Sequence[str]) -> list[Step]:
    """All steps, or with `only` those and what they need, in order."""
    ordered = in_order(steps)
    wanted = {need.label for step in ordered if step.label in only for need in (step, *ancestors(step))}
    return [step for step in ordered if step.label in wanted] if only else ordered


def run_steps(
    steps: Sequence[Step],
    store: Store,
    console: Console,
    open_tracking: Callable[[], Tracking],
    force: Sequence[str] = (),
    only: Sequence[str] = (),
) -> None:
    """Bring every step to a record. StepFailed, after the steps already running have ended, when one raises."""
    todo = pending(steps, store, force, only)
    store.check_sizes(*(step for step in _asked(steps, only) if step not in todo), forced=force)
    ordered = in_order(steps)
    for step in ordered:
        record = store.record(step)
        if record and step not in todo:
            console.print(_line(ordered, step, "cached", headline(record.summary)), soft_wrap=True)
    if not todo:
        return
    again = {step.label for step in todo if store.record(step)}
    tracking = open_tracking()
    status = "FAILED"
    try:
        with session():
            show_choices(todo, console)
            _run_all(todo, lambda step: _run_step(step, store, tracking, step.label in again), console, ordered)
        status = "FINISHED"
    finally:
        tracking.finish(status, *_results(ordered, store))


def show_choices(todo: Sequence[Step], console: Console) -> None:
    """Say what `auto` stands for on this machine. ValueError, before anything runs, for a choice that is impossible."""
    for warning in [warning for step in todo for warning in slow_choices(step.config, step.label)]:
        log.warning("%s", warning)
    choices = dict.fromkeys(str(choice) for step in todo if (choice := precision_choice(step.config)))
    for choice in choices:
        console.print(f"precision [b]{escape(choice)}[/b]", soft_wrap=True, highlight=False)


def _run_all(todo: list[Step], run: Callable[[Step], Record], console: Console, ordered: Sequence[Step]) -> None:
    """Run each step once its inputs are there, in threads or, for those that run alone, in this one."""
    waiting, running = list(todo), dict[Future[Record], Step]()
    errors: list[BaseException] = []

    def show(step: Step, record: Record) -> None:
        state = f"done in {record.seconds:.1f} s"
        console.print(_line(ordered, step, state, headline(record.summary)), soft_wrap=True)

    threads = ThreadPoolExecutor(max_workers=len(todo))  # not a context: an interrupt must not wait for the steps
    try:
        while waiting or running:
            side_by_side, alone = _ready(waiting, list(running.values()))
            for step in side_by_side:
                waiting.remove(step)
                running[threads.submit(run, step)] = step
            for step in alone:
                waiting.remove(step)
                show(step, run(step))
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                step = running.pop(future)
                if error := future.exception():
                    errors.append(error)
                    waiting.clear()
                else:
                    show(step, future.result())
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
    if errors:
        raise errors[0]


def _ready(waiting: Sequence[Step], running: Sequence[Step]) -> tuple[list[Step], list[Step]]:
    """The steps to start now: those that run side by side; when there is none and nothing runs, one that runs alone."""
    unfinished = {step.label for step in (*waiting, *running)}
    able = [step for step in waiting if not any(need.label in unfinished for need in ancestors(step))]
    side_by_side = [step for step in able if step.runs_beside]
    return side_by_side, [] if side_by_side or running else able[:1]


def _run_step(step: Step, store: Store, tracking: Tracking, again: bool) -> Record:
    with store.claim(step):
        done = store.record(step)
        if done and not again:
            return done  # another run on this workspace has built it while this one waited
        out = store.partial(step)  # with what an interrupted run has left there, a forced one too
        out.mkdir(parents=True, exist_ok=True)
        (out / ERROR).unlink(missing_ok=True)
        remove_torn(out)
        try:
            inputs = {name: store.resolve(source) for name, source in step.inputs.items()}
            choices = note_choices(step, out)
            started, clock = datetime.now(UTC), time.perf_counter()
            with tracking.step(step, out) as track:
                summary = {name: float(value) for name, value in step.run(step.config, out=out, **inputs).items()}
                track(summary)
            remove_torn(out)  # of workers that were lost while others went on
            (out / CHOICES).unlink(missing_ok=True)
            record = make_record(step, summary, out, started, time.perf_counter() - clock, choices)
            store.commit(step, record)
        except Exception as error:
            raise _failure(step, error, out) from error
        return record


def note_choices(step: Step, out: Path) -> dict[str, str]:
    """What `auto` stands for in this run of a step and stood for in earlier, unfinished ones, which `out` remembers."""
    choice = precision_choice(step.config)
    if choice is None:
        return {}
    earlier = [row["precision"] for row in read_jsonl(out / CHOICES)]
    if str(choice) not in earlier:
        append_jsonl(out / CHOICES, {"precision": str(choice)})
    return {"precision": ", then ".join(dict.fromkeys([*earlier, str(choice)]))}


def _failure(step: Step, error: Exception, out: Path) -> StepFailed:
    """What the error is and where its traceback lies."""
    with suppress(OSError):  # on a full disk the message has to do
        write_atomic(out / ERROR, "".join(traceback.format_exception(error)))
    reason = "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
    return StepFailed(
        f"step {step.label} failed: {reason}\n"
        f"What it had finished is kept in {out}: run the same command again to continue from there, "
        f"or delete it to start anew. The traceback is in {out / ERROR}"
    )


def make_record(
    step: Step,
    summary: Mapping[str, float],
    out: Path,
    started: datetime,
    seconds: float,
    choices: Mapping[str, str],
) -> Record:
    """The record of a step that has just ended with its output in `out`, on this machine, with this code."""
    commit, dirty = git_state()
    return Record(
        step=step.name,
        label=step.label,
        fingerprint=fingerprint(step),
        config=canonical(step.config),
        inputs={name: input_identity(source) for name, source in step.inputs.items()},
        summary=dict(summary),
        commit=commit,
        dirty=dirty,
        environment=environment(),
        command=" ".join(sys.argv),
        host=socket.gethostname(),
        started=started.isoformat(timespec="seconds"),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 3),
        files=list_files(out),
        choices=dict(choices),
        checksums=checksums(out),
    )


def git_state() -> tuple[str, bool]:
    """Commit of the code that runs, and whether it has uncommitted changes; ("", False) outside a checkout."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))


def environment() -> dict[str, str]:
    """Versions and machine that a figure may depend on."""
    packages = {name: version(name) for name in VERSIONS_OF}
    return {"python": platform.python_version(), "platform": platform.platform(), **packages}


def headline(summary: Mapping[str, float], most: int = 5) -> str:
    """First entries of a summary that are not zero, for one line on a terminal."""
    entries = [(name, value) for name, value in summary.items() if value]
    return "  ".join(f"{name} {_number(value)}" for name, value in entries[:most])


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:.4g}"


def _line(ordered: Sequence[Step], step: Step, state: str, text: str) -> str:
    number = [other.label for other in ordered].index(step.label) + 1
    style = "dim" if state == "cached" else "green"
    return f"[dim]{number:>2}/{len(ordered)}[/dim]  {step.label:<21} [{style}]{state:<15}[/{style}] {text}"


def _results(ordered: Sequence[Step], store: Store) -> tuple[dict[str, float], dict[str, Path]]:
    """What the parent run shows: the scores of every model; the files to keep, by the folder they go to."""
    metrics, artifacts = dict[str, float](), dict[str, Path]()
    for step in ordered:
        record = store.record(step)
        if record and step.name == "evaluate":
            metrics |= {f"{step.label}/{name}".replace("@", "."): value for name, value in record.summary.items()}
            artifacts[step.label] = store.folder(step) / "results.json"
        if record and step.name == "report":
            artifacts[step.label] = store.folder(step) / "report.html"
    return metrics, artifacts
