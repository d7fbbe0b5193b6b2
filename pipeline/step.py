"""A step: a name, a plain function, a frozen config, its inputs.

The function is called as `run(config, out=Path, **inputs: Path) -> Mapping[str, float]` and knows nothing of the
conductor. Two steps of one recipe may share a name (two models, say); their labels differ.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

VERSIONS = {"embed": 2, "curate": 3, "tokenizer": 2, "train": 3, "evaluate": 3, "report": 2}
"""Of the code of a kind of step, 1 if not named; raised by the change that makes it put out something else."""


@dataclass(frozen=True)
class Step:
    name: str
    """Kind of work and folder in the workspace."""
    label: str
    """Unique in its recipe: the name, or name@arm."""
    run: Callable[..., Mapping[str, float]]
    config: object
    inputs: "Mapping[str, Output | Path]" = field(default_factory=dict)
    runs_beside: bool = False
    """In a thread beside other steps; otherwise alone, in the main thread, as signals and Ray Train need it."""

    def upstream(self) -> "list[Step]":
        return [source.step for source in self.inputs.values() if isinstance(source, Output)]


@dataclass(frozen=True)
class Output:
    """What a step has put out, or one file or folder in it."""

    step: Step
    path: str = ""


def in_order(steps: Sequence[Step]) -> list[Step]:
    """The steps and all they need, each after its inputs, otherwise in the order given."""
    placed: dict[str, Step] = {}

    def place(step: Step) -> None:
        for source in step.upstream():
            place(source)
        if placed.setdefault(step.label, step) is not step:
            raise ValueError(f"two steps carry the label {step.label!r}: labels must be unique; rename one")

    for step in steps:
        place(step)
    return list(placed.values())


def ancestors(step: Step) -> Iterator[Step]:
    """Every step whose output `step` needs, directly or not; may repeat."""
    for source in step.upstream():
        yield source
        yield from ancestors(source)
