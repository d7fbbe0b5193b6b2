"""Raw image-caption pairs in any common layout: a source as parts, and a part as samples.

Opening a source decides on every file below it: it is read as pairs, belongs to a pair, is a list,
or is not read for a reason that the account names. Layouts may lie side by side. Opening reads
annotations and file names only. Keys are unique by construction.
"""

import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from cluster.storage import kind_of
from curation.pairs.beside import read_pair
from curation.pairs.config import SourceConfig
from curation.pairs.images import IMAGE_SUFFIXES
from curation.pairs.kinds import READ_KINDS, file_kind, tree_of
from curation.pairs.opening import Opening, Source
from curation.pairs.parquet import read_parquet_part
from curation.pairs.ranges import ByteRange
from curation.pairs.sample import Part, Reject, Sample
from curation.pairs.tree import open_tree
from curation.pairs.webdataset import TarWalk, tar_pairs

REASONS_NAMED = 4
FIRST_ROWS = 16

# Bytes of a tar per row in addition to the image, in blocks of 512: three headers (image, text,
# JSON), one block for a caption, and half a block that pads the image on average.
TAR_BYTES = 2304

logger = logging.getLogger(__name__)


def list_parts(config: SourceConfig, path: Path) -> list[Part]:
    """Every part of the source, in a fixed order.

    Raises ValueError when there is none, when none can be used, or when too many files are unread.
    """
    return checked(config, open_source(config, path)).parts


def checked(config: SourceConfig, source: Source) -> Source:
    """The source, after its notes are logged. Raises ValueError as `check` does."""
    for note in source.account.notes:
        logger.warning("source=%s %s", source.path.name, note)
    check(config, source)
    logger.info(
        "source=%s parts=%d files=%d",
        source.path.name,
        len(source.parts),
        len(source.account.files),
    )
    return source


def check(config: SourceConfig, source: Source) -> None:
    """Raise ValueError when a source has no pair, no usable pair, or too many unread files."""
    if not source.parts:
        raise _nothing_to_read(config, source)
    _check_usable(source)
    source.account.check(config.unread_budget)


def open_source(config: SourceConfig, path: Path) -> Source:
    """An opened source: what is read of it, and how.

    Raises ValueError when the source does not exist, is damaged, or is of a kind that is not read.
    """
    kind = kind_of(path)
    if not kind:
        raise ValueError(f"source {path} does not exist: give {READ_KINDS}")
    if kind == "folder":
        return Opening(config, open_tree(path)).all_of_it()

    what = file_kind(path)
    if what == "tar":
        return Opening(config, open_tree(path)).all_of_it()

    tree, only = tree_of(path)
    return Opening(config, tree).one_file(only, what)


def _nothing_to_read(config: SourceConfig, source: Source) -> ValueError:
    """The error for a source without pairs: its splits, an unreadable list, or what it contains."""
    unread = source.account.unread()
    of_split = [(reason, names) for reason, names in unread.items() if "another split" in reason]
    if source.splits and not config.wants_split(next(iter(source.splits))):
        return ValueError(
            f"split {config.split!r} is empty: the rows of {source.path} have the splits "
            f"{sorted(source.splits)}; set source.split to one with --embed.source.split, or to "
            "'' for all"
        )

    # The first reason explains enough. Names of lists and tars say more than those of images.
    for _, names in of_split:
        named = [name for name in names if not name.lower().endswith(IMAGE_SUFFIXES)] or names
        return ValueError(
            f"split {config.split!r} is empty: all {len(named)} files are named after another, "
            f"{named[0]} first; set source.split to one that is there with --embed.source.split, "
            "or to '' for all"
        )

    if source.problems:
        return source.problems[0]

    first = list(unread.items())[:REASONS_NAMED]
    reasons = "; ".join(source.account.describe(reason, names) for reason, names in first)
    return ValueError(
        f"source {source.path} ({len(source.account.files)} files) has no pairs in a known "
        "layout: WebDataset .tar with images and .txt or .json beside them; .parquet; a Karpathy "
        "or COCO .json; a list of images and captions (captions.json, captions.jsonl, "
        f"metadata.csv, ...); or a .txt beside each image. What is there: {reasons or 'nothing'}. "
        "Set source.format, or convert to one of these"
    )


def _check_usable(source: Source) -> None:
    """Raise ValueError when every listed pair has a problem, which is known without reading."""
    if any(
        part.kind != "pairs" or any(pair.problem is None for pair in part.pairs)
        for part in source.parts
    ):
        return

    problems = [
        pair.problem for part in source.parts for pair in part.pairs if pair.problem is not None
    ]
    reasons = list(dict.fromkeys(problem.reason for problem in problems))
    advice = ""

    if "missing file" in reasons:
        advice = (
            "; images are searched beside their list and below the source: give a folder that "
            f"holds both the list and its images, such as {source.path.parent}"
        )

    raise ValueError(
        f"none of the {len(problems)} pairs of {source.path} can be used ({', '.join(reasons)}): "
        f"{problems[0].detail}{advice}"
    )


def read_part(
    config: SourceConfig, part: Part, walks: dict[str, TarWalk] | None = None
) -> Iterator[Sample | Reject]:
    """Every row of a part in order, as a sample or as a reject with its reason.

    A caller that reads several parts of one tar passes the same `walks` each time: the next part
    then continues where the last one ended.
    """
    if part.kind == "parquet":
        return read_parquet_part(config, part)
    pairs = tar_pairs(part, walks) if part.kind == "tar" else part.pairs
    return (read_pair(pair, part.name, config) for pair in pairs)


def estimated_rows(config: SourceConfig, parts: Sequence[Part]) -> int:
    """About how many rows the parts have; the first rows of a tar stand for the others."""
    known = sum(part.num_rows or 0 for part in parts)
    tars = [part for part in parts if part.num_rows is None]
    if not tars:
        return known

    first = [
        row for row in islice(read_part(config, tars[0]), FIRST_ROWS) if isinstance(row, Sample)
    ]
    row_bytes = [len(row.image) + TAR_BYTES for row in first] or [tars[0].num_bytes]
    mean_bytes = sum(row_bytes) / len(row_bytes)

    return known + max(1, round(sum(part.num_bytes for part in tars) / mean_bytes))


def image_ranges(
    part: Part, walks: dict[str, TarWalk] | None = None
) -> Iterator[tuple[str, ByteRange]]:
    """(key, where the image is) of the rows of a part that have an image.

    `walks` is that of `read_part`. Raises ValueError for images that cannot be read in any order.
    """
    if part.kind == "parquet":
        raise ValueError(
            f"{part.name} is Parquet, whose single images cannot be read in any order: train on "
            "stored embeddings, or convert it to WebDataset tars"
        )

    for pair in tar_pairs(part, walks) if part.kind == "tar" else part.pairs:
        if pair.image is None or pair.problem is not None:
            continue
        if pair.image.pieces is not None:
            raise ValueError(
                f"{pair.key} is stored sparse in {pair.image.path}, whose images cannot be read "
                "in any order: pack it again without --sparse"
            )
        yield pair.key, pair.image
