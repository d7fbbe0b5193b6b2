"""Settings of what is dropped and of what balances: duplicates, leakage, methods."""

from dataclasses import dataclass
from typing import Literal

Method = Literal["both", "image", "text", "random", "none"]
Combine = Literal["intersection", "union"]
MOST_BITS = 4  # bands of 12 bits: beyond, so many hashes share one that ten million take hours


@dataclass(frozen=True)
class DuplicatesConfig:
    exact: bool = True
    """Drop images whose bytes or pixels equal another's."""
    perceptual_bits: int = 1
    """Drop images whose perceptual hash differs in at most this many of 64 bits; -1: not used."""
    perceptual_cosine: float = 0.97
    """... when the cosine of their vectors is also at least this."""
    cosine: float = 0.985
    """Drop images whose vector has at least this cosine with another's; above 1: not used."""
    neighbours: int = 4
    """Clusters next to each cluster in which duplicates are sought; 0: in the own one only, for millions of them."""
    keep: Literal["central", "caption"] = "central"
    """Which of several duplicates stays: the one nearest its centroid, or the one with the longest captions."""

    def __post_init__(self) -> None:
        check_bits("duplicates", self.perceptual_bits)


@dataclass(frozen=True)
class LeakageConfig:
    exact: bool = True
    """Find pool images whose bytes or pixels equal an evaluation image's."""
    perceptual_bits: int = 1
    """Find pool images whose perceptual hash differs in at most this many of 64 bits; -1: not used."""
    perceptual_cosine: float = 0.97
    """... when the cosine of their vectors is also at least this."""
    cosine: float = 0.985
    """Find pool images whose vector has at least this cosine with an evaluation image's; above 1: not used."""
    captions: Literal["list", "remove"] = "list"
    """Pool pairs one of whose captions equals an evaluation caption: listed in the decisions, or removed too."""

    def __post_init__(self) -> None:
        check_bits("leakage", self.perceptual_bits)


def check_bits(name: str, perceptual_bits: int) -> None:
    """ValueError unless hashes that differ in so many bits can be found by what they share."""
    if not -1 <= perceptual_bits <= MOST_BITS:
        raise ValueError(
            f"{name}.perceptual_bits is {perceptual_bits}: -1 (not used) to {MOST_BITS} are possible, as the search "
            f"for more compares nearly all pairs of images; choose one of them, or lower {name}.cosine instead"
        )
