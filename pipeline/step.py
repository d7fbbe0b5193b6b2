"""A step: a name, a plain function, a frozen config, and its inputs.

The function is called as `run(config, out=Path, **inputs: Path) -> Mapping[str, float]` and knows
nothing about this package. Two steps of one recipe may share a name (two models, say); their labels
differ.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path

from cluster.identity import Json, identity
from cluster.words import nearest
from pipeline.fingerprint import data_identity, digest

VERSIONS = {
    "pool": 2,
    "embed": 8,
    "images": 2,
    "curate": 8,
    "tokenizer": 2,
    "train": 4,
    "evaluate": 14,
    "report": 9,
}
"""Version of the code of each kind of step, 1 if it is not listed. A change to the code that
changes the output raises it. A change that raises `embed` raises `images`, too.
"""


class StepError(RuntimeError):
    """A step failed; its finished shards, iterations or checkpoints are kept for the next run."""


@dataclass(frozen=True)
class RunOf:
    """The function `run` of a module, which is imported when the function is called.

    So a recipe can be planned and looked up without importing what its steps compute with.
    """

    module: str

    def __call__(self, config: object, **paths: Path) -> Mapping[str, float]:
        return self.function()(config, **paths)

    def function(self) -> Callable[..., Mapping[str, float]]:
        """The function itself."""
        return importlib.import_module(self.module).run


@dataclass(frozen=True)
class Step:
    """A function with its config and inputs; equal work has an equal fingerprint."""

    name: str
    """Kind of step, and its folder in the workspace."""
    label: str
    """Unique in its recipe: the name, or name@arm."""
    run: Callable[..., Mapping[str, float]]
    config: object
    inputs: "Mapping[str, Output | Path]" = field(default_factory=dict)
    runs_beside: bool = False
    """True: in a thread, beside other steps; False: alone, in the main thread, because signals and
    Ray Train need that.
    """

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the step's output: a digest of its name, code version, config and inputs."""
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
        """The steps whose outputs this step reads."""
        return [source.step for source in self.inputs.values() if isinstance(source, Output)]


@dataclass(frozen=True)
class Output:
    """The output of a step, or one file or folder in it."""

    step: Step
    path: str = ""


def input_identity(source: Output | Path) -> Json:
    """[fingerprint, path inside it] for a step's output; the content digest for user data."""
    if isinstance(source, Output):
        return [source.step.fingerprint, source.path]
    return data_identity(source)


def in_order(steps: Sequence[Step]) -> list[Step]:
    """The steps and all steps that they need, each after its inputs, otherwise in their order.

    ValueError if two different steps have one label.
    """
    placed: dict[str, Step] = {}

    # Depth first: a step is placed after everything upstream of it. A step that is reached again is
    # the same object, and stays where it is.
    def place(step: Step) -> None:
        for source in step.upstream():
            place(source)
        if placed.setdefault(step.label, step) is not step:
            raise ValueError(
                f"two steps have the label {step.label!r}: labels must be unique; rename one"
            )

    for step in steps:
        place(step)

    return list(placed.values())


def find_step(steps: Sequence[Step], label: str) -> Step:
    """The step with this label. ValueError gives the nearest one."""
    labels = {step.label: step for step in in_order(steps)}
    if label not in labels:
        raise ValueError(
            f"there is no step {label!r}{nearest(label, labels)}; steps: {', '.join(labels)}"
        )
    return labels[label]


def check_labels(steps: Sequence[Step], *groups: Sequence[str]) -> None:
    """ValueError for a label that no step has."""
    for label in chain(*groups):
        find_step(steps, label)


def ancestors(step: Step) -> Iterator[Step]:
    """Every step whose output `step` needs, directly or indirectly; a step may occur repeatedly."""
    for source in step.upstream():
        yield source
        yield from ancestors(source)
