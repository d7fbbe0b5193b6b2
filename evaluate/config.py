"""Settings of the steps evaluate and report."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval

from cluster.machine import PRECISION, PrecisionChoice
from cluster.ranges import check_ranges
from cluster.resources import Resources
from curation.config import EmbedConfig
from curation.encoders.config import BackboneConfig

SegmentationProtocol = Literal["window", "whole", "high-resolution"]


@dataclass(frozen=True)
class ViewConfig:
    """How an image becomes the square that an encoder takes."""

    crop: Literal["auto", "resize-crop", "square"] = "auto"
    """resize-crop: the short side to `resize`, then a crop of the model's image size; square: the
    whole centered square, resized; auto: resize-crop for published sets, square for all others.
    """
    resize: Annotated[int | None, Ge(1)] = None
    """Short side before the crop of resize-crop, px; None: 256 for 224, as published, and in
    proportion.
    """

    def __post_init__(self) -> None:
        check_ranges(self, "evaluate.view")


@dataclass(frozen=True)
class RegionConfig:
    """Crops and regions of the high-resolution protocol."""

    crop_shares: Annotated[tuple[float, ...], Interval(gt=0, le=1)] = (0.1875, 0.25, 0.375, 0.5)
    """Sides of the crops as shares of the image's short side."""
    times_seen: Annotated[float, Ge(1)] = 10.0
    """How often the crops of each size see a place of the image; with four sizes, forty times in
    all.
    """
    input_px: Annotated[int, Ge(1)] = 224
    """Side that each crop is resized to for the encoder, px."""
    grid: Annotated[int, Ge(1)] = 128
    """Cells along the short side of the grid that features are averaged on."""
    regions: Annotated[int, Ge(1)] = 32
    """Clusters of k-means."""
    iterations: Annotated[int, Ge(1)] = 20
    """Iterations of k-means."""
    seed: Annotated[int, Ge(0)] = 0
    """Seed of k-means++."""

    def __post_init__(self) -> None:
        check_ranges(self, "evaluate.segmentation.regions")
        if not self.crop_shares:
            raise ValueError("evaluate.segmentation.regions.crop_shares is (): name at least one")

    def describe(self) -> str:
        """All numbers, for results."""
        shares = ", ".join(f"{share:g}" for share in self.crop_shares)
        return (
            f"square crops of {shares} of the short side to {self.input_px} px, each size sees a "
            f"place {self.times_seen:g} times; features averaged on {self.grid} cells per short "
            f"side; k-means of {self.regions} regions ({self.iterations} iterations, seed "
            f"{self.seed}), each named by its mean"
        )


@dataclass(frozen=True)
class SegmentationConfig:
    """Sizes of the protocol and what to do with a background class."""

    short_side: Annotated[int, Ge(1)] = 512
    """Short side that images are resized to, px."""
    window: Annotated[int, Ge(1)] = 384
    """Side of the square window, px; a smaller image is one window."""
    stride: Annotated[int, Ge(1)] = 192
    """Distance between windows, px; the last one ends at the border."""
    logit_scale: Annotated[float, Gt(0)] = 1.0
    """Factor on the cosines before the soft-max over classes: 1, as dino.txt is evaluated, and not
    the trained scale, which would let each window's first choice outvote the mean.
    """
    background: Literal["prompts", "threshold"] = "prompts"
    """Sets with a background class: it scores as the best of `background_prompts`, or a constant
    cosine.
    """
    background_prompts: tuple[str, ...] = (
        "background",
        "backdrop",
        "empty space",
        "sky",
        "ground",
        "wall",
    )
    """Names of the background, in the same templates as class names; those that are classes of the
    set are left out.
    """
    background_cosine: float = 0.1
    """With "threshold": a pixel is background where no class has a higher cosine."""
    protocol: SegmentationProtocol = "window"
    """window: the published sliding windows; whole: the resized image at once; high-resolution:
    regions of averaged features of many crops.
    """
    regions: RegionConfig = RegionConfig()
    """Crops and regions of the high-resolution protocol."""
    wordnet: str | None = None
    """Folder of WordNet's database files, such as /usr/share/wordnet: adds Open-mIoU, in which a class
    that is like the true one counts in part; None: without.
    """

    def __post_init__(self) -> None:
        check_ranges(self, "evaluate.segmentation")
        if self.stride > self.window:
            raise ValueError(
                f"segmentation.stride is {self.stride} with a window of {self.window} px: must be "
                "at most the window, or no window covers the pixels between them; lower "
                "the stride"
            )

    def describe(self) -> str:
        """The protocol's name and all its numbers, for results."""
        if self.protocol == "high-resolution":
            return f"high resolution: {self.regions.describe()}"
        resized = f"short side {self.short_side} px, bicubic"
        if self.protocol == "whole":
            return (
                f"whole image: {resized}, stretched to whole patches, cosines bilinear to the "
                "mask, arg-max"
            )
        return (
            f"window: {resized}; windows of {self.window} px, stride {self.stride} px, stretched "
            f"to whole patches; cosines bilinear to pixels, soft-max of {self.logit_scale:g} x "
            "cosine, mean over windows, bilinear to the mask, arg-max"
        )


@dataclass(frozen=True)
class EvaluateConfig:
    """What is measured, and how."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The frozen backbone of the model."""
    open_clip: str = ""
    """ARCHITECTURE:WEIGHTS of open_clip, measured instead of a model from here; a recipe's `others`
    sets it.
    """
    sets: tuple[str, ...] = ()
    """Which of the evaluation sets to run, by name (classification_imagenet); empty: all."""
    templates: str = "auto"
    """Prompts for class names: imagenet (the 80 of CLIP), emoji (for drawings), plain (the bare
    name), those of another published set (cifar10, ...), or a text file with one template per line,
    {} for the name; auto: the set's own, else imagenet.
    """
    split: str = "auto"
    """Split of retrieval sets; "auto": test if there, else val, else every image."""
    view: ViewConfig = field(default_factory=ViewConfig)
    """How images are cut for classification and retrieval."""
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)
    """Protocol of segmentation."""
    precision: PrecisionChoice = field(default="float32", metadata=PRECISION)
    """Number format of the backbone's products: float32, as published; auto: bfloat16 where the
    workers' device is fast in it.
    """
    batch_size: Annotated[int, Ge(1)] = 64
    """Images decoded and encoded at a time."""
    bootstrap_samples: Annotated[int, Ge(1)] = 1000
    """Resamples for confidence intervals."""
    seed: Annotated[int, Ge(0)] = 0
    """Seed of the bootstrap."""
    num_examples: Annotated[int, Ge(0)] = 8
    """Examples of each kind kept for the report."""
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        check_ranges(self, "evaluate")


@dataclass(frozen=True)
class IndexConfig:
    """How a collection of images is made searchable."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The frozen backbone of the model; it embeds the images of a folder."""
    exact_mb: float = 100.0
    """Vectors up to this size are compared one by one; larger collections are searched in lists."""
    seed: int = 0
    """Seed of the k-means that makes the lists."""


@dataclass(frozen=True)
class ReportConfig:
    """What the page says of itself."""

    title: str = "dino.txt"
    """Heading of the page."""
    subtitle: str = ""
    """One line under the heading."""
    bootstrap_samples: Annotated[int, Ge(1)] = 2000
    """Resamples for the intervals of differences between arms."""
    seed: Annotated[int, Ge(0)] = 0
    """Seed of the bootstrap."""

    def __post_init__(self) -> None:
        check_ranges(self, "report")


@dataclass(frozen=True)
class ImagesConfig:
    """How the images of an evaluation set are embedded, for curation to compare the pool with
    them.
    """

    embed: EmbedConfig = EmbedConfig()
    """How the pool was embedded: its images are compared with these."""
    task: Literal["classification", "retrieval", "segmentation"] | None = None
    """What the set is scored on; None: nothing, its images are only kept out of the pool."""
    variant: str = ""
    """Published way to score it, where a set has several; empty: the usual one."""
    split: str = "auto"
    """Split of captioned images; auto: test if there is one, else val, else every image."""
