"""What a source is made of: parts, the pairs of a part on disk, and the samples they become."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from curation.pairs.images import RejectReason
from curation.pairs.ranges import ByteRange


@dataclass(frozen=True)
class Sample:
    """One usable pair: an encoded image file and its captions.

    Only an evaluation set of images has samples without captions.
    """

    key: str
    image: bytes
    captions: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Reject:
    """One row that is not used, and why."""

    key: str
    source: str
    reason: RejectReason
    detail: str = ""


class Problem(NamedTuple):
    """Why a pair cannot be used, known before its image is read."""

    reason: RejectReason
    detail: str


class Pair(NamedTuple):
    """One pair whose image is still on disk.

    Captions come from a list, or from files beside the image.
    """

    key: str
    image: ByteRange | None
    captions: tuple[str, ...] | None = ()
    """Captions of a list; None for an image of an evaluation set without captions."""
    beside: tuple[tuple[str, ByteRange], ...] = ()
    """(kind, file) of the caption files beside the image; kinds are "txt" and "json"."""
    problem: Problem | None = None


@dataclass(frozen=True)
class Part:
    """A piece of a source that one process turns into one shard.

    It is a number of listed pairs, a byte range of a tar, or a row range of a Parquet file.
    """

    name: str
    kind: Literal["pairs", "tar", "parquet"]
    pairs: tuple[Pair, ...] = ()
    path: str = ""
    start: int = 0
    stop: int = 0
    key_prefix: str = ""
    num_rows: int | None = None
    """Number of rows; None if it is not known without reading."""
    num_bytes: int = 0
    """About how many bytes it reads. It measures the work, and is not part of the identity."""

    def digest(self) -> str:
        """SHA-256 of what the part is, wherever its files lie."""
        # Sizes and not paths or offsets: moving or repacking data does not change its identity.
        pairs = [
            (pair.key, pair.image and pair.image.size, pair.captions, _sizes(pair), pair.problem)
            for pair in self.pairs
        ]
        fields = [
            self.name,
            self.kind,
            pairs,
            self.start,
            self.stop,
            self.key_prefix,
            self.num_rows,
        ]

        return hashlib.sha256(json.dumps(fields).encode("utf-8", "replace")).hexdigest()


def _sizes(pair: Pair) -> list[tuple[str, int]]:
    return [(kind, file.size) for kind, file in pair.beside]


def parts_of_pairs(name: str, pairs: Sequence[Pair], part_rows: int) -> list[Part]:
    """Listed pairs as parts of at most `part_rows` each."""
    parts = []
    for start in range(0, len(pairs), part_rows):
        chunk = tuple(pairs[start : start + part_rows])
        num_bytes = sum(pair.image.size for pair in chunk if pair.image is not None)
        label = f"{name}:{start}-{start + len(chunk)}"
        parts.append(Part(label, "pairs", chunk, num_rows=len(chunk), num_bytes=num_bytes))
    return parts
