"""A step as one line on the terminal: number, label, state, and the start of its summary."""

from collections.abc import Mapping, Sequence

from cluster.words import duration, number
from pipeline.step import Step

MOST_NUMBERS = 5


def step_line(ordered: Sequence[Step], step: Step, state: str, text: str) -> str:
    """One line about a step, with rich's markup."""
    index = [other.label for other in ordered].index(step.label) + 1
    style = "dim" if state == "cached" else "green"
    return (
        f"[dim]{index:>2}/{len(ordered)}[/dim]  {step.label:<21} "
        f"[{style}]{state:<20}[/{style}] {text}"
    )


def state_after(seconds: float) -> str:
    """The state of a step that has just finished."""
    return f"done in {duration(seconds)}"


def headline(summary: Mapping[str, float]) -> str:
    """The first entries of a summary that are not zero."""
    entries = [(name, value) for name, value in summary.items() if value]
    return "  ".join(f"{name} {number(value)}" for name, value in entries[:MOST_NUMBERS])
