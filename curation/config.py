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
    """What is embedded, by which backbone, and what is kept of it."""

    source: SourceConfig = SourceConfig()
    """How the pairs are stored."""
    backbone: BackboneConfig = BackboneConfig()
    """The frozen image encoder."""
    captions: CaptionConfig = CaptionConfig()
    """The caption encoder, for text clusters."""
    content: Content = "tokens"
    """pooled: CLS and patch mean; grid: CLS, registers and a small patch grid; tokens: all."""
    grid: Annotated[int, Ge(1)] = 4
    """Side of the patch grid when content is grid."""
    dtype: Dtype = "float16"
    """Number format of the stored vectors."""
    precision: PrecisionChoice = field(default=AUTO, metadata=PRECISION)
    """Number format of the backbone's products; auto: bfloat16 where the workers' device is fast in
    it, otherwise float32.
    """
    view: Annotated[int, Ge(0)] = 0
    """0: the centre of each image; any other number: a random crop and flip that is its own for
    each number.
    """
    augment: AugmentConfig = AugmentConfig()
    """How views other than the centre are cropped."""
    thumbnail_px: Annotated[int, Ge(0)] = 48
    """Longest side of the thumbnails kept for reports, in pixels; 0: none."""
    hash_forms: bool = True
    """Hash crops and bordered forms of each image, too, so that such copies are found; 640 bytes
    per row.
    """
    batch_size: Annotated[int, Ge(1)] = field(default=64, metadata=MACHINE_FACT)
    """Images in one forward pass."""
    error_budget: Annotated[float, Interval(ge=0, le=1)] = field(
        default=0.01, metadata=MACHINE_FACT
    )
    """Share of rows that may be rejected before the run stops."""
    retry_rejects: bool = field(default=False, metadata=MACHINE_FACT)
    """Embed only what is new: rows whose key, captions and image are as they were are taken over
    from the outputs in this workspace that were embedded with the same settings. For data that were
    mended after rows were rejected.
    """
    resources: Resources = Resources()
    """Workers, and CPUs and GPUs for each."""

    def __post_init__(self) -> None:
        check_ranges(self, "embed")


@dataclass(frozen=True)
class CaptionClustersConfig:
    clusters: Annotated[int, Ge(0)] = 0
    """Clusters of captions; 0: one per 40 rows, as far as these are distinct, a multiple of
    `split`.
    """
    split: Annotated[int, Ge(0)] = 0
    """Parts that each first-stage cluster is split in; 0: one stage, but for more than 50,000
    automatic clusters.
    """
    threshold: Annotated[float | None, Gt(0)] = None
    """MetaCLIP's t, in pairs per cluster or entry; None: what gives the target size."""
    tail_share: Annotated[float | None, Interval(gt=0, lt=1)] = None
    """Find t such that clusters or entries below t hold this share of the pairs (0.06 as
    published); None: not used.
    """
    unmatched: Literal["drop", "keep"] = "drop"
    """Pairs in whose captions no metadata entry occurs: dropped as published, or never dropped by
    text.
    """

    def __post_init__(self) -> None:
        check_ranges(self, "text")
        if self.threshold is not None and self.tail_share is not None:
            raise ValueError(
                f"text.threshold is {self.threshold} and text.tail_share {self.tail_share}: each "
                "gives a threshold; leave one of them out"
            )
        if self.clusters and self.clusters % max(1, self.split):
            raise ValueError(
                f"text.split is {self.split} on {self.clusters} text.clusters: it must divide "
                "them; choose other numbers, or leave text.clusters out"
            )


@dataclass(frozen=True)
class CurateConfig:
    method: Method = "both"
    """What balances: image clusters, caption clusters, both; random: a draw of the same size; none:
    keep all.
    """
    combine: Combine = "intersection"
    """With both: a pair must be in both selections, or in either."""
    target_rows: Annotated[int | None, Ge(1)] = None
    """Pairs to keep; None: `share` decides."""
    share: Annotated[float, Interval(gt=0, le=1)] = 0.5
    """Pairs to keep, as a share of those left after leakage and duplicates."""
    metric: Literal["cosine", "euclidean"] = "cosine"
    """Distance between image vectors; captions always use cosine."""
    levels: LevelsConfig = LevelsConfig()
    """Hierarchy of image clusters."""
    scores: str | None = field(default=None, metadata=MACHINE_FACT)
    """File with a score of each pair, computed elsewhere: a .csv, .tsv, .jsonl or .parquet with the
    columns `key` and `score`; None: no filter. Its content bears identity, not its place.
    """
    min_score: float | None = None
    """Pairs with a lower score in `scores`, or with none, are dropped before anything else is
    decided.
    """
    text: CaptionClustersConfig = CaptionClustersConfig()
    """Balance over caption clusters, or over metadata entries where the step is given some."""
    kmeans: KMeansConfig = KMeansConfig()
    """Every clustering."""
    repeats: Annotated[int, Ge(1)] = 1
    """How often a pair may be taken to fill the share of a small image cluster; the selection lists
    it as often.
    """
    leaf: Literal["random", "central"] = "random"
    """Which rows of a bottom cluster are kept first: any, or those nearest its centroid."""
    duplicates: DuplicatesConfig = DuplicatesConfig()
    """What counts as a duplicate; applies to every method."""
    leakage: LeakageConfig = LeakageConfig()
    """What counts as leakage; applies to every method that is given evaluation embeddings."""
    error_budget: Annotated[float, Interval(ge=0, le=1)] = 0.01
    """Share of rows that may have unusable vectors before the run stops."""
    engine: Engine = field(default="auto", metadata=MACHINE_FACT)
    """Who multiplies in the search for nearest centroids; auto: chosen for this machine. Labels are
    exact with each.
    """
    seed: Annotated[int, Ge(0)] = 0
    """Seed of samples, coins and ties."""
    resources: Resources = field(default_factory=Resources)
    """Workers that scan the shards."""

    def __post_init__(self) -> None:
        check_ranges(self, "curate")
        if self.repeats > 1 and self.method not in ("both", "image"):
            raise ValueError(
                f"curate.repeats is {self.repeats} with method {self.method}: more than 1 is "
                "possible with methods both and image; lower it to 1"
            )
        if (self.scores is None) != (self.min_score is None):
            raise ValueError(
                f"scores is {self.scores} and min_score {self.min_score}: a filter needs both; set "
                "--curate.scores FILE and --curate.min-score NUMBER, or leave both out"
            )

        gives_threshold = self.text.threshold is not None or self.text.tail_share is not None
        if self.method == "text" and gives_threshold and self.target_rows is not None:
            raise ValueError(
                f"curate.target_rows is {self.target_rows} with method text and a threshold: the "
                "threshold decides how many pairs are kept; leave out target_rows, or "
                "text.threshold and text.tail_share"
            )
