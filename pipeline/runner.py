"""Which steps a run has to do: skips what is done, and leaves the rest to pipeline/execution.py.

Nothing heavy is imported before there is something to do, so that a run of a finished recipe
answers at once.
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
    """Steps to run, in order: without a record, forced or after a forced one; with `only`, those
    and their inputs.
    """

    def is_forced(step: Step) -> bool:
        return any(made.label in force for made in (step, *ancestors(step)))

    return [step for step in _asked(steps, only) if is_forced(step) or store.record(step) is None]


def _asked(steps: Sequence[Step], only: Sequence[str]) -> list[Step]:
    """All steps, or with `only` those and what they need, in order."""
    ordered = in_order(steps)
    wanted = {
        need.label for step in ordered if step.label in only for need in (step, *ancestors(step))
    }
    return [step for step in ordered if step.label in wanted] if only else ordered


def run_steps(
    steps: Sequence[Step],
    store: Store,
    console: Console,
    open_tracking: Callable[[], Tracking],
    force: Sequence[str] = (),
    only: Sequence[str] = (),
) -> None:
    """Bring every step to a record. StepError, after the running steps have ended, when one
    raises.
    """
    todo = pending(steps, store, force, only)
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
