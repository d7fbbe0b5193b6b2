"""How the user's pairs are stored: settings of layout, fields, split, delimiter and encoding."""

import codecs
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Interval

from cluster.identity import MACHINE_FACT
from cluster.ranges import check_ranges

SourceFormat = Literal[
    "auto", "folder", "list", "text", "karpathy", "coco", "webdataset", "parquet"
]
TextLines = Literal["captions", "one caption"]

DELIMITERS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}


@dataclass(frozen=True)
class SourceConfig:
    """How the pairs are stored. `python -m pipeline inspect PATH` shows how a source is read."""

    format: SourceFormat = "auto"
    """Layouts to read. auto: all of them; list: lists that name images, also Karpathy's and COCO's;
    text: a caption file beside each image; folder: list and text.
    """
    split: str = "train"
    """Split to read, where rows or names of files and folders have splits (train includes restval);
    empty: all splits.
    """
    part_rows: Annotated[int, Ge(1)] = 1024
    """Rows per part, which becomes one shard, where the layout allows a choice."""
    part_mb: Annotated[int, Ge(1)] = 256
    """Tars longer than this are read in parts of about this size, MB."""
    image_column: str | None = None
    """Field with the image's name or bytes, by name or path (`media.0.file`); unset: the first
    known name. Columns of a table without a header are called 0, 1, 2, ...
    """
    caption_column: str | None = None
    """Field or fields with captions, by name, path (`conversations.1.value`) or pattern
    (`caption_*`); unset: the first known name.
    """
    key_column: str | None = None
    """Field with unique keys; unset: keys are image names, or file name and row number in
    Parquet.
    """
    split_column: str | None = None
    """Field with the split of each row; unset: `split`, where there is one."""
    delimiter: str | None = None
    """Delimiter of tables: one character, or tab, comma, semicolon, pipe; unset: recognized from
    the first line.
    """
    encoding: str | None = None
    """Encoding of text without a byte-order mark, such as cp1252 or gbk; unset: UTF-8."""
    text_lines: TextLines = "captions"
    """What the lines of a caption file beside an image are: one caption per line, or one caption in
    all.
    """
    unread_budget: Annotated[float, Interval(ge=0, le=1)] = field(
        default=0.01, metadata=MACHINE_FACT
    )
    """Share of the files that look like images or captions that may be left unread before the run
    stops; 1 never stops.
    """

    def __post_init__(self) -> None:
        check_ranges(self, "source")
        if self.delimiter is not None and len(self.delimiter_character or "") != 1:
            raise ValueError(
                f"delimiter={self.delimiter!r}: must be one character, or one of "
                f"{', '.join(DELIMITERS)}; correct it"
            )
        if self.encoding is not None:
            self._check_encoding()

    def _check_encoding(self) -> None:
        try:
            codecs.lookup(self.encoding or "")
        except LookupError:
            raise ValueError(
                f"encoding={self.encoding!r}: must be an encoding that Python knows, such as "
                "cp1252 or gbk; correct it"
            ) from None

    @property
    def delimiter_character(self) -> str | None:
        """The delimiter itself; None if it must be recognized."""
        return None if self.delimiter is None else DELIMITERS.get(self.delimiter, self.delimiter)

    def wants_split(self, split: object) -> bool:
        """Whether a row of this split is read; rows without a split (None or "") always are.

        Karpathy's split restval, the rest of COCO's validation images, belongs to train by custom.
        """
        is_any = not self.split or split is None or split == ""
        return is_any or split == self.split or (self.split == "train" and split == "restval")
