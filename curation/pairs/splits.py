"""Which files of a tree hold the pairs of a split, by their names alone.

A file belongs to a split when its name or a folder of it says so (`test/metadata.jsonl`,
`train-00000-of-00002.parquet`), otherwise to all.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from curation.pairs.tree import Tree

CAPTION_FILES = tuple(
    stem + suffix for stem in ("captions", "metadata") for suffix in (".json", ".jsonl", ".csv", ".tsv", ".txt")
)
SPLIT_NAMES = {"train", "val", "valid", "validation", "dev", "test"}

logger = logging.getLogger(__name__)


def captions_files(tree: Tree, split: str) -> list[str]:
    """The captions files of the split that are nearest the root, one a folder."""
    names = _named_as_captions(tree)
    if len(tree.with_suffix(".txt")) > len(tree.by_basename.get("captions.txt", [])):
        names = [name for name in names if not name.endswith("captions.txt")]
    by_folder: dict[PurePosixPath, str] = {}
    for name in of_split(names, split):
        by_folder.setdefault(PurePosixPath(name).parent, name)
    depth = min((len(folder.parts) for folder in by_folder), default=0)
    return sorted(name for folder, name in by_folder.items() if len(folder.parts) == depth)


def _named_as_captions(tree: Tree) -> list[str]:
    return [name for base in CAPTION_FILES for name in tree.by_basename.get(base, [])]


def is_divided(tree: Tree) -> bool:
    """Whether pairs lie in several captions files, or in files named after several splits."""
    files = [*tree.with_suffix(".tar", ".parquet"), *_named_as_captions(tree)]
    splits = SPLIT_NAMES.intersection(re.findall("[a-z]+", " ".join(files).lower()))
    return len(splits) > 1 or len(captions_files(tree, "")) > 1


def of_split(names: Sequence[str], split: str) -> list[str]:
    """The files that do not belong to another split, in their order; ValueError when all do."""
    kept = [name for name in names if not is_of_other_split(name, split)]
    others = [name for name in names if is_of_other_split(name, split)]
    if others and not kept:
        raise ValueError(
            f"split {split!r} is empty: all {len(others)} files are named after another, {others[0]} first; set "
            "source.split to one that is there, or empty for all"
        )
    if others:
        logger.info("split=%s files=%d left_out=%d first_left_out=%s", split, len(kept), len(others), others[0])
    return kept


def is_of_other_split(name: str, split: str) -> bool:
    """Whether a file's name, or a folder's above it, is a split's and not this one's; none is where all are wanted."""
    return any(_names_other_split(part, split.lower()) for part in name.lower().split("/"))


def _names_other_split(part: str, split: str) -> bool:
    names_any = not SPLIT_NAMES.isdisjoint(re.findall("[a-z]+", part))
    return names_any and not re.search(f"(?<![a-z]){re.escape(split)}", part)
