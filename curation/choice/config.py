"""Settings of what is dropped and of what balances: duplicates, leakage, methods."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Interval

from cluster.ranges import check_ranges

Method = Literal["both", "image", "text", "random", "none"]
Combine = Literal["intersection", "union"]


@dataclass(frozen=True)
class LikenessConfig:
    """When two images count as copies of each other: any one of four signs is enough."""

    exact: bool = True
    """Equal bytes, or equal pixels."""
    hash_bits: Annotated[int | None, Interval(ge=0, le=128)] = 30
    """Perceptual hashes that differ in at most this many of 256 bits, in any of eight orientations
    (mirrored, turned by quarters); None: not used.
    """
    form_bits: Annotated[int | None, Interval(ge=0, le=128)] = 54
    """Hash of one image that differs in at most this many bits from a cropped or bordered form of
    the other, if their vectors are also closer than those of 99 % of nearest unrelated images;
    None: not used.
    """
    cosine: Annotated[float | Literal["auto"] | None, Interval(ge=-1, le=1)] = "auto"
    """Vectors with at least this cosine; auto: the cosine that `false_rate` allows for this pool
    and backbone; None: not used.
    """
    false_rate: Annotated[float, Interval(gt=0, le=0.1)] = 1e-6
    """With `cosine` auto: share of images without a copy that may be mistaken for copies, estimated
    from the pool's own cosines.
    """

    def __post_init__(self) -> None:
        check_ranges(self, "alike")

    @property
    def uses_vectors(self) -> bool:
        return self.cosine is not None or self.form_bits is not None


OFF = LikenessConfig(exact=False, hash_bits=None, form_bits=None, cosine=None)


@dataclass(frozen=True)
class DuplicatesConfig:
    """How copies within the pool are found, and which of them stays."""

    alike: LikenessConfig = LikenessConfig(false_rate=1e-7)
    """When an image of the pool is a copy of another one."""
    neighbors: Annotated[int, Ge(0)] = 4
    """Number of neighboring clusters whose vectors are compared with those of each cluster; 0: only
    vectors of the same cluster are compared.
    """
    keep: Literal["central", "caption"] = "central"
    """Which of several duplicates stays: the one nearest to its centroid, or the one with the
    longest captions.
    """
    captions: Literal["merge", "drop"] = "merge"
    """Captions of a dropped image that equals a selected one in bytes or pixels: added to those of
    the selected one, or dropped too.
    """

    def __post_init__(self) -> None:
        check_ranges(self, "duplicates")


@dataclass(frozen=True)
class LeakageConfig:
    """How copies of evaluation images are found in the pool, from which they are removed."""

    alike: LikenessConfig = LikenessConfig()
    """When an image of the pool is a copy of an evaluation image."""
    captions: Literal["list", "remove"] = "list"
    """Pairs of the pool with a caption that equals an evaluation caption: listed in the decisions,
    or removed too.
    """
