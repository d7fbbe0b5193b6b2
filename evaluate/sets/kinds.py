"""What an evaluation set is, by task: images with a class, with captions, or with a class per
pixel; or pairs of sentences.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float64, Int64

from evaluate.sets.images import Images
from evaluate.sets.masks import Masks

IGNORED = -1
"""Label of pixels that count nowhere."""

ImageTask = Literal["classification", "retrieval", "segmentation"]
Task = Literal["classification", "retrieval", "segmentation", "similarity"]
IMAGE_TASKS: tuple[ImageTask, ...] = get_args(ImageTask)
TASKS: tuple[Task, ...] = get_args(Task)
ClassNames = tuple[tuple[str, ...], ...]
"""The names of each class, the first of which is shown."""


@dataclass(frozen=True)
class Facts:
    """What a result says of the set it was measured on."""

    kind: str
    """Name of the known set, or of the layout."""
    published: bool = False
    """Whether the published image protocol is the default."""
    templates: str | tuple[str, ...] = "imagenet"
    """The set's own prompt templates, or the name of those that its published figures use."""
    notes: Mapping[str, object] = field(default_factory=dict)
    """Lines for the protocol of a result: what was mapped, left out or cropped."""


@dataclass(frozen=True)
class ClassificationSet:
    """Images with one class each."""

    facts: Facts
    images: Images
    targets: Int64[np.ndarray, " n"]
    class_names: ClassNames


@dataclass(frozen=True)
class RetrievalSet:
    """Images with one or more captions each.

    Two images with two captions each have `owners` [0, 0, 1, 1]: captions 0 and 1 describe image 0.
    `foils`, where there are any, has a wrong caption for each caption.
    """

    facts: Facts
    images: Images
    split: str
    captions: tuple[str, ...]
    owners: Int64[np.ndarray, " m"]
    foils: tuple[str, ...] = ()


@dataclass(frozen=True)
class SegmentationSet:
    """Images with masks.

    `values` gives the class of each mask value, `ignored` the mask values that count nowhere.
    Values in neither are an error, unless `ignores_rest`. `background` is the class "none of
    these". `groups` are further names, each of which is true for several classes ("footwear").
    """

    facts: Facts
    images: Images
    masks: Masks
    labels: ClassNames
    values: Mapping[int, int]
    ignored: frozenset[int] = frozenset()
    ignores_rest: bool = False
    background: int | None = None
    groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class SimilaritySet:
    """Pairs of sentences, each with a score of how alike people find them."""

    facts: Facts
    sentences: tuple[tuple[str, str], ...]
    scores: Float64[np.ndarray, " n"]


def first_names(names: ClassNames) -> tuple[str, ...]:
    """The name of each class that tables and pictures show."""
    return tuple(each[0] for each in names)


def split_name(name: str) -> tuple[Task, str]:
    """The task that a set's name begins with, and the variant behind its @: both of
    segmentation_voc@20.
    """
    # With the underscore, "retrievals" is not taken for a set of the task retrieval.
    base, _, variant = name.partition("@")
    for task in TASKS:
        if base == task or base.startswith(f"{task}_"):
            return task, variant
    raise ValueError(
        f"unknown evaluation set {name!r}: names begin with {', '.join(TASKS)}; rename the input"
    )
