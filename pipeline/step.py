"""A step: a name, a plain function, a frozen config, its inputs.

The function is called as `run(config, out=Path, **inputs: Path) -> Mapping[str, float]` and knows
nothing of the conductor. Two steps of one recipe may share a name (two models, say); their labels
differ.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cluster.identity import Json, identity
from pipeline.fingerprint import data_identity, digest

VERSIONS = {
    "embed": 7,
    "images": 1,
    "curate": 5,
    "tokenizer": 2,
    "train": 3,
    "evaluate": 8,
    "report": 6,
}
"""Of the code of a kind of step, 1 if not named; raised by the change that makes it put out
something else. What raises `embed` raises `images`, too.
"""


class StepError(RuntimeError):
    """A step raised; its finished shards, iterations or checkpoints are kept for the next run."""


@dataclass(frozen=True)
class RunOf:
    """The function `run` of a module, which is imported when the function is called.

    So a recipe is drawn, planned and looked up without what its steps compute with.
    """

    module: str

    def __call__(self, config: object, **paths: Path) -> Mapping[str, float]:
        return self.function()(config, **paths)

    def function(self) -> Callable[..., Mapping[str, float]]:
        """The function itself."""
        return importlib.import_module(self.module).run


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
    """In a thread beside other steps; otherwise alone, in the main thread, as signals and Ray Train
    need it.
    """

    @cached_property
    def fingerprint(self) -> str:
        """Identity of what the step puts out: of its name, code version, config and inputs."""
        return digest(
            {
                "step": self.name,
                "version": VERSIONS.get(self.name, 1),
                "config": identity(self.config),
                "inputs": self.input_identities(),
            }
        )

    def input_identities(self) -> dict[str, Json]:
        """Identity of each input by its name."""
        return {name: input_identity(source) for name, source in sorted(self.inputs.items())}

    def upstream(self) -> "list[Step]":
        return [source.step for source in self.inputs.values() if isinstance(source, Output)]


@dataclass(frozen=True)
class Output:
    """What a step has put out, or one file or folder in it."""

    step: Step
    path: str = ""


def input_identity(source: Output | Path) -> Json:
    """[fingerprint, path inside] of a step's output; the content digest of user data."""
    if isinstance(source, Output):
        return [source.step.fingerprint, source.path]
    return data_identity(source)


def in_order(steps: Sequence[Step]) -> list[Step]:
    """The steps and all they need, each after its inputs, otherwise in the order given."""
    placed: dict[str, Step] = {}

    def place(step: Step) -> None:
        for source in step.upstream():
            place(source)
        if placed.setdefault(step.label, step) is not step:
            raise ValueError(
                f"two steps carry the label {step.label!r}: labels must be unique; rename one"
            )

    for step in steps:
        place(step)

    return list(placed.values())


def ancestors(step: Step) -> Iterator[Step]:
    """Every step whose output `step` needs, directly or not; may repeat."""
    for source in step.upstream():
        yield source
        yield from ancestors(source)
