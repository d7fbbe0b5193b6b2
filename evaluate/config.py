"""Settings of the steps evaluate and report."""

from dataclasses import dataclass, field
from typing import Literal

from cluster.machine import AUTO, PRECISION, PrecisionChoice
from cluster.resources import Resources
from curation.encoders.config import BackboneConfig
from evaluate.prompts import TemplateSet


@dataclass(frozen=True)
class SegmentationConfig:
    """Sizes of the sliding-window protocol and what to do with a background class."""

    short_side: int = 512
    """Short side that images are resized to, px."""
    window: int = 384
    """Side of the square window, px; a smaller image is one window."""
    stride: int = 192
    """Distance between windows, px; the last one ends at the border."""
    logit_scale: float = 1.0
    """Factor on the cosines before the soft-max over classes: 1, as dino.txt is evaluated, and not the trained scale,
    which would let each window's first choice outvote the mean."""
    background: Literal["prompts", "threshold"] = "prompts"
    """Sets with a background class: it scores as the best of `background_prompts`, or a constant cosine."""
    background_prompts: tuple[str, ...] = ("background", "backdrop", "empty space", "sky", "ground", "wall")
    """Names of the background, in the same templates as class names; those that are classes of the set are left out."""
    background_cosine: float = 0.1
    """With "threshold": a pixel is background where no class has a higher cosine."""

    def __post_init__(self) -> None:
        for name in ("short_side", "window", "stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"segmentation.{name} is {getattr(self, name)}: must be at least 1; raise it")
        if self.stride > self.window:
            raise ValueError(
                f"segmentation.stride is {self.stride} with a window of {self.window} px: must be at most the window, "
                "or pixels between windows are not seen; lower the stride"
            )
        if not self.logit_scale > 0:
            raise ValueError(
                f"segmentation.logit_scale is {self.logit_scale}: must be above 0, or the nearest class does not win; "
                "leave it out for the default"
            )


@dataclass(frozen=True)
class EvaluateConfig:
    """What is measured, and how."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The frozen backbone of the model."""
    open_clip: str = ""
    """ARCHITECTURE:WEIGHTS of open_clip, measured instead of a model from here; a recipe's `others` sets it."""
    benchmarks: tuple[str, ...] = ()
    """Which of the given evaluation sets to run, by input name; empty: all."""
    templates: TemplateSet = "imagenet"
    """Prompts for class names: the 80 of CLIP, a short set for drawings, or the bare name."""
    split: str = "auto"
    """Split of retrieval sets; "auto": test if there, else val, else every image."""
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)
    """Sliding-window protocol."""
    precision: PrecisionChoice = field(default=AUTO, metadata=PRECISION)
    """Number format of the backbone's products, best the same as in embedding; auto: bfloat16 where the workers' device
    is fast in it, otherwise float32."""
    batch_size: int = 64
    """Images decoded and encoded at a time."""
    bootstrap_samples: int = 1000
    """Resamples for confidence intervals."""
    seed: int = 0
    """Seed of the bootstrap."""
    num_examples: int = 8
    """Examples of each kind kept for the report."""
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        for name, least in {"batch_size": 1, "bootstrap_samples": 1, "seed": 0, "num_examples": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"evaluate.{name} is {getattr(self, name)}: must be at least {least}; raise it")


@dataclass(frozen=True)
class ReportConfig:
    """What the page says of itself."""

    title: str = "dino.txt"
    """Heading of the page."""
    subtitle: str = ""
    """One line under the heading."""
    bootstrap_samples: int = 2000
    """Resamples for the intervals of differences between arms."""
    seed: int = 0
    """Seed of the bootstrap."""

    def __post_init__(self) -> None:
        for name, least in {"bootstrap_samples": 1, "seed": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"report.{name} is {getattr(self, name)}: must be at least {least}; raise it")
