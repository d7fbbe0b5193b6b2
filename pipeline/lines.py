"""How a step is shown on the terminal: one line with its number, label, state and the head of its
summary.
"""

from collections.abc import Mapping, Sequence

from cluster.words import duration, number
from pipeline.step import Step

MOST_NUMBERS = 5


def step_line(ordered: Sequence[Step], step: Step, state: str, text: str) -> str:
    """One line on a step, with the markup of rich."""
    index = [other.label for other in ordered].index(step.label) + 1
    style = "dim" if state == "cached" else "green"
    return (
        f"[dim]{index:>2}/{len(ordered)}[/dim]  {step.label:<21} "
        f"[{style}]{state:<20}[/{style}] {text}"
    )


def state_after(seconds: float) -> str:
    """The state of a step that has just ended."""
    return f"done in {duration(seconds)}"


def headline(summary: Mapping[str, float]) -> str:
    """First entries of a summary that are not zero."""
    entries = [(name, value) for name, value in summary.items() if value]
    return "  ".join(f"{name} {number(value)}" for name, value in entries[:MOST_NUMBERS])
