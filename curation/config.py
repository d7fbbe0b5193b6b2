"""Settings of the steps embed and curate."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval

from cluster.identity import MACHINE_FACT
from cluster.machine import AUTO, PRECISION, PrecisionChoice
from cluster.ranges import check_ranges
from cluster.resources import Resources
from curation.choice.config import Combine, DuplicatesConfig, LeakageConfig, Method
from curation.clusters.config import Engine, KMeansConfig, LevelsConfig
from curation.encoders.config import BackboneConfig, CaptionConfig
from curation.encoders.views import AugmentConfig
from curation.pairs.config import SourceConfig
from curation.shards.codec import Dtype
from curation.shards.schema import Content


@dataclass(frozen=True)
class EmbedConfig:
    """What is embedded, by which backbone, and what is stored."""

    source: SourceConfig = SourceConfig()
    """How the pairs are stored."""
    backbone: BackboneConfig = BackboneConfig()
    """The frozen image encoder."""
    captions: CaptionConfig = CaptionConfig()
    """The caption encoder, for text clusters."""
    content: Content = "tokens"
    """pooled: CLS and the mean of the patches; grid: CLS, registers and a small grid of pooled
    patches; tokens: all tokens.
    """
    grid: Annotated[int, Ge(1)] = 4
    """Side of the stored patch grid, if content is grid."""
    dtype: Dtype = "float16"
    """Number format of the stored vectors."""
    precision: PrecisionChoice = field(default=AUTO, metadata=PRECISION)
    """Number format of the backbone's matrix products; auto: bfloat16 if it is fast on the workers'
    device, else float32.
    """
    view: Annotated[int, Ge(0)] = 0
    """View of each image. 0: its center square; n > 0: random crop and flip number n."""
    augment: AugmentConfig = AugmentConfig()
    """How random views are cropped."""
    thumbnail_px: Annotated[int, Ge(0)] = 48
    """Longest side of the thumbnails that reports show, in pixels; 0: no thumbnails."""
    hash_forms: bool = True
    """Also hash cropped and bordered forms of each image to find such copies; 640 bytes per row."""
    batch_size: Annotated[int, Ge(1)] = field(default=64, metadata=MACHINE_FACT)
    """Images per forward pass."""
    error_budget: Annotated[float, Interval(ge=0, le=1)] = field(
        default=0.01, metadata=MACHINE_FACT
    )
    """Share of rows that may be rejected before the run stops."""
    retry_rejects: bool = field(default=False, metadata=MACHINE_FACT)
    """Embed only new and changed rows. Rows with the same key, captions and image are copied from
    outputs in this workspace that have the same settings. Use it after you have repaired data that
    were rejected.
    """
    resources: Resources = Resources()
    """Workers, and CPUs and GPUs of each."""

    def __post_init__(self) -> None:
        check_ranges(self, "embed")


@dataclass(frozen=True)
class CaptionClustersConfig:
    """How captions are clustered, and how the selection is balanced over their clusters."""

    levels: LevelsConfig = LevelsConfig()
    """Hierarchy of caption clusters."""
    threshold: Annotated[float | None, Gt(0)] = None
    """MetaCLIP's t, in pairs per cluster of the top level or per entry; None: the t that reaches the target size."""
    tail_share: Annotated[float | None, Interval(gt=0, lt=1)] = None
    """Choose t such that top clusters or entries below t have this share of the pairs (published:
    0.06); None: not used.
    """
    unmatched: Literal["drop", "keep"] = "drop"
    """Pairs whose captions have no metadata entry: dropped, as published, or never dropped because
    of their captions.
    """

    def __post_init__(self) -> None:
        check_ranges(self, "text")
        if self.threshold is not None and self.tail_share is not None:
            raise ValueError(
                f"text.threshold is {self.threshold} and text.tail_share is {self.tail_share}: "
                "each gives a threshold; leave one of them out"
            )


@dataclass(frozen=True)
class CurateConfig:
    """Which pairs of the pool are selected for training."""

    method: Method = "both"
    """What the selection is balanced over: image clusters, caption clusters, or both; random: a
    random selection of the same size; none: all pairs are kept.
    """
    combine: Combine = "intersection"
    """With method both: a pair must be in both selections, or in at least one (union)."""
    target_rows: Annotated[int | None, Ge(1)] = None
    """Pairs to keep; None: `share` decides."""
    share: Annotated[float, Interval(gt=0, le=1)] = 0.5
    """Pairs to keep, as a share of those left after leakage and duplicates."""
    metric: Literal["cosine", "euclidean"] = "cosine"
    """Distance between image vectors; captions always use cosine."""
    levels: LevelsConfig = LevelsConfig()
    """Hierarchy of image clusters."""
    scores: str | None = field(default=None, metadata=MACHINE_FACT)
    """File with a score per pair from a filter of your own: a .csv, .tsv, .jsonl or .parquet with
    the columns `key` and `score`; None: no filter. Its content is part of the fingerprint, its path
    is not.
    """
    min_score: float | None = None
    """Pairs with a lower score in `scores`, or without a score, are dropped before all other
    decisions.
    """
    text: CaptionClustersConfig = CaptionClustersConfig()
    """Balance over caption clusters, or over metadata entries if the step has a list of them."""
    kmeans: KMeansConfig = KMeansConfig()
    """Settings of every clustering."""
    repeats: Annotated[int, Ge(1)] = 1
    """How often a pair may be selected to fill the share of a small image cluster. The selection
    lists it that often.
    """
    leaf: Literal["random", "central"] = "random"
    """Which rows of a bottom cluster are kept first: random ones, or those nearest its centroid."""
    duplicates: DuplicatesConfig = DuplicatesConfig()
    """What counts as a duplicate, whatever the method."""
    leakage: LeakageConfig = LeakageConfig()
    """What counts as leakage, whatever the method, if there are evaluation images."""
    error_budget: Annotated[float, Interval(ge=0, le=1)] = 0.01
    """Share of rows that may have unusable vectors before the run stops."""
    engine: Engine = field(default="auto", metadata=MACHINE_FACT)
    """What computes the products in the search for nearest centroids; auto: what is fastest on this
    machine. Labels are exact with each of them.
    """
    seed: Annotated[int, Ge(0)] = 0
    """Seed of all random choices."""
    resources: Resources = field(default_factory=Resources)
    """Workers that scan the shards."""

    def __post_init__(self) -> None:
        check_ranges(self, "curate")
        if self.repeats > 1 and self.method not in ("both", "image"):
            raise ValueError(
                f"curate.repeats is {self.repeats} with method {self.method}: only the methods "
                "both and image can repeat pairs; lower it to 1"
            )
        if (self.scores is None) != (self.min_score is None):
            raise ValueError(
                f"scores is {self.scores} and min_score is {self.min_score}: a filter needs both; "
                "set --curate.scores FILE and --curate.min-score NUMBER, or leave both out"
            )

        gives_threshold = self.text.threshold is not None or self.text.tail_share is not None
        if self.method == "text" and gives_threshold and self.target_rows is not None:
            raise ValueError(
                f"curate.target_rows is {self.target_rows} with method text and a threshold: the "
                "threshold decides how many pairs are kept; leave out target_rows, or "
                "text.threshold and text.tail_share"
            )
