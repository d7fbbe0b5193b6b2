"""Decides which steps a run has to do, and leaves them to pipeline/execution.py.

Nothing heavy is imported before there is something to do, so that a run of a finished recipe ends
at once.
"""

from collections.abc import Callable, Sequence

from rich.console import Console

from pipeline.lines import headline, step_line
from pipeline.step import Step, ancestors, in_order
from pipeline.store import Store
from pipeline.tracking import Tracking


def pending(
    steps: Sequence[Step], store: Store, force: Sequence[str] = (), only: Sequence[str] = ()
) -> list[Step]:
    """The steps to run, in order: those without a record, and those downstream of `force`.

    With `only`, these steps and their inputs alone are considered.
    """

    def is_forced(step: Step) -> bool:
        return any(made.label in force for made in (step, *ancestors(step)))

    return [step for step in _asked(steps, only) if is_forced(step) or store.record(step) is None]


def _asked(steps: Sequence[Step], only: Sequence[str]) -> list[Step]:
    """All steps in order; with `only`, these and the steps that they need."""
    ordered = in_order(steps)
    wanted = {
        need.label for step in ordered if step.label in only for need in (step, *ancestors(step))
    }
    return [step for step in ordered if step.label in wanted] if only else ordered


def check_inputs_done(
    steps: Sequence[Step], store: Store, force: Sequence[str], exactly: Sequence[str]
) -> None:
    """ValueError for a step that one of `exactly` needs and that is not done."""
    missing = [step.label for step in pending(steps, store, force, exactly)]
    missing = [label for label in missing if label not in exactly]
    if missing:
        raise ValueError(
            f"{', '.join(exactly)} cannot run alone: {', '.join(missing)} is not done; run that "
            "first, or use --only, which runs what is missing too"
        )


def run_steps(
    steps: Sequence[Step],
    store: Store,
    console: Console,
    open_tracking: Callable[[], Tracking],
    force: Sequence[str] = (),
    only: Sequence[str] = (),
) -> None:
    """Print the steps that are done, and run the others until each has a record.

    StepError if a step raises; DamagedOutputError if files of a finished output are missing.
    """
    todo = pending(steps, store, force, only)

    # A step that is skipped must still have its files, because later steps read them.
    store.check_sizes(*(step for step in _asked(steps, only) if step not in todo), forced=force)

    ordered = in_order(steps)

    for step in ordered:
        record = store.record(step)
        if record and step not in todo:
            console.print(
                step_line(ordered, step, "cached", headline(record.summary)), soft_wrap=True
            )

    if todo:
        from pipeline.execution import execute  # with Ray, which a finished recipe does not need

        execute(todo, ordered, store, console, open_tracking)
