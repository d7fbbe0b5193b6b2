"""What a source is made of: parts that processes share out, and the samples or rejects that a part yields."""

import hashlib
import json
from dataclasses import dataclass
from typing import Literal, NamedTuple

from curation.pairs.images import Reason
from curation.pairs.ranges import ByteRange

Format = Literal["auto", "folder", "karpathy", "coco", "webdataset", "parquet"]


@dataclass(frozen=True)
class SourceConfig:
    """How the pairs are stored."""

    format: Format = "auto"
    """Layout of the data; auto looks at the files."""
    split: str = "train"
    """Split to take where rows, or names of files and folders, tell splits (train includes restval); empty: all."""
    part_rows: int = 1024
    """Rows in one part, and so in one shard, where the layout allows a choice."""
    part_mb: int = 256
    """Tars longer than this are read in parts of about this size, MB."""
    image_column: str = ""
    """Parquet column with image bytes or paths; empty: the first known name."""
    caption_column: str = ""
    """Parquet column with the caption or a list of captions; empty: the first known name."""
    key_column: str = ""
    """Parquet column with unique keys; empty: keys are file name and row number."""

    def __post_init__(self) -> None:
        for name in ("part_rows", "part_mb"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1; leave it out for the default")

    def wants_split(self, split: object) -> bool:
        """Whether a row of this split, None or "" when it has none, is taken.

        COCO's restval belongs to train, as its users agree.
        """
        is_any = not self.split or split is None or split == ""
        return is_any or split == self.split or (self.split == "train" and split == "restval")


@dataclass(frozen=True)
class Sample:
    """One usable pair: an encoded image file and at least one caption."""

    key: str
    image: bytes
    captions: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Reject:
    """One row that is not used, and why."""

    key: str
    source: str
    reason: Reason
    detail: str = ""


class Row(NamedTuple):
    """One pair of an annotated data set, still on disk; `captions` may be a text file with one a line."""

    key: str
    image: ByteRange | None
    captions: tuple[str, ...] | ByteRange
    problem: Reason | None = None


@dataclass(frozen=True)
class Part:
    """A share of a source that one process turns into one shard: listed rows, or a range of a tar or Parquet file."""

    name: str
    kind: Literal["rows", "tar", "parquet"]
    rows: tuple[Row, ...] = ()
    path: str = ""
    start: int = 0
    stop: int = 0
    key_prefix: str = ""
    num_rows: int | None = None
    """Rows inside, when that is known without reading."""

    def digest(self) -> str:
        """Identity of the part's data, wherever it lies."""
        rows = [(row.key, row.image and row.image.size, _text(row.captions), row.problem) for row in self.rows]
        fields = [self.name, self.kind, rows, self.start, self.stop, self.key_prefix, self.num_rows]
        return hashlib.sha256(json.dumps(fields).encode("utf-8", "replace")).hexdigest()


def _text(captions: tuple[str, ...] | ByteRange) -> tuple[str, ...] | int:
    return captions.size if isinstance(captions, ByteRange) else captions
