"""Annotated data sets to rows: Karpathy JSON, COCO JSON, a captions file beside images, a text file beside each image.

Each function takes the tree of a folder or tar and gives every row, bad ones included; nothing but annotations is read.
"""

import csv
import io
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

from curation.pairs import IMAGE_SUFFIXES, Row, SourceConfig, clean_captions
from curation.tree import Tree

CAPTION_FILES = tuple(
    stem + suffix for stem in ("captions", "metadata") for suffix in (".json", ".jsonl", ".csv", ".tsv", ".txt")
)
IMAGE_FIELDS = ("image", "file_name", "filename", "filepath", "file", "path", "image_path", "image_name", "key")
CAPTION_FIELDS = ("captions", "caption", "text", "title", "sentence")
MOST_JSON_FILES = 64

logger = logging.getLogger(__name__)


def find_json(tree: Tree, kind: str, split: str) -> tuple[str, dict] | None:
    """The annotation file of that kind (name, content): the one named after captions and the split first."""
    names = tree.with_suffix(".json")
    if len(names) > MOST_JSON_FILES:
        return None

    def rank(name: str) -> tuple[bool, bool, str]:
        base = PurePosixPath(name).name.lower()
        return "caption" not in base and "dataset" not in base, bool(split) and split not in base, name

    for name in sorted(names, key=rank):
        try:
            content = json.loads(tree.files[name].read())
        except ValueError as error:
            logger.warning("annotation_file=%s ignored=%r", name, str(error))
            continue
        if is_karpathy(content) if kind == "karpathy" else is_coco(content):
            return name, content
    return None


def is_karpathy(content: Any) -> bool:
    return _first(content, "images", "sentences") and "filename" in content["images"][0]


def is_coco(content: Any) -> bool:
    return _first(content, "images", "file_name") and _first(content, "annotations", "caption")


def _first(content: Any, table: str, field: str) -> bool:
    rows = content.get(table) if isinstance(content, dict) else None
    return isinstance(rows, list) and bool(rows) and isinstance(rows[0], dict) and field in rows[0]


def karpathy_rows(tree: Tree, name: str, content: dict, config: SourceConfig) -> list[Row]:
    """One row an image of the split."""
    near = str(PurePosixPath(name).parent)
    images = [image for image in content["images"] if config.wants_split(image.get("split"))]
    if not images:
        found = sorted({str(image.get("split")) for image in content["images"]})
        raise ValueError(f"split {config.split!r} is empty: {name} has the splits {found}; set source.split to one")
    return _rows(
        tree,
        near,
        (
            (
                str(PurePosixPath(image.get("filepath", "")) / image["filename"]),
                clean_captions(sentence.get("raw") for sentence in image.get("sentences", [])),
            )
            for image in images
        ),
    )


def coco_rows(tree: Tree, name: str, content: dict) -> list[Row]:
    """One row an image, with all its captions in file order."""
    captions: dict[object, list[object]] = {}
    for annotation in content["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation.get("caption"))
    near = str(PurePosixPath(name).parent)
    pairs = ((image["file_name"], clean_captions(captions.get(image["id"], []))) for image in content["images"])
    return _rows(tree, near, pairs)


def find_captions_file(tree: Tree) -> str | None:
    """The captions file nearest the root."""
    names = [name for base in CAPTION_FILES for name in tree.by_basename.get(base, [])]
    names = [name for name in names if not name.endswith("captions.txt") or len(tree.with_suffix(".txt")) == 1]
    return min(names, key=lambda name: len(PurePosixPath(name).parts), default=None)


def captions_file_rows(tree: Tree, name: str, config: SourceConfig) -> list[Row]:
    """One row an image named in the captions file; captions of repeated lines with other text are joined."""
    text = tree.files[name].read().decode("utf-8-sig", "replace")
    merged: dict[str, list[object]] = {}
    unreadable = []
    for number, record in _records(name, text):
        if record is None:
            unreadable.append(Row(f"{name}:{number}", None, (), "unreadable record"))
        elif config.wants_split(record.get("split", config.split)):
            image = next((record[field] for field in IMAGE_FIELDS if isinstance(record.get(field), str)), "")
            captions: Any = next((record[field] for field in CAPTION_FIELDS if record.get(field) is not None), [])
            merged.setdefault(image, []).extend(captions if isinstance(captions, list) else [captions])
    if merged.keys() <= {""}:
        raise ValueError(
            f"{name} names no image of split {config.split!r}: each record needs one of {IMAGE_FIELDS} and one of "
            f"{CAPTION_FIELDS}; rename its fields, or set source.split"
        )
    near = str(PurePosixPath(name).parent)
    return _rows(tree, near, ((image, clean_captions(captions)) for image, captions in merged.items())) + unreadable


def _records(name: str, text: str) -> Iterable[tuple[int, dict | None]]:
    """(number, record) of a JSON, JSON-lines, comma- or tab-separated file; None where a line is no record."""
    if name.endswith(".jsonl"):
        lines = enumerate(text.split("\n"), start=1)
        return [(number, _record(line)) for number, line in lines if line.strip()]
    try:
        if name.endswith(".json"):
            content = json.loads(text, strict=False)
            if isinstance(content, dict):
                content = [{"image": image, "captions": captions} for image, captions in content.items()]
            return enumerate(content, start=1)
        delimiter = "\t" if name.endswith(".tsv") else ","
        table = csv.DictReader(io.StringIO(text.replace("\0", " "), newline=""), delimiter=delimiter)
        return list(enumerate(table, start=1))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{name} cannot be parsed ({error}): repair it there, then run again") from error


def _record(line: str) -> dict | None:
    try:
        record = json.loads(line, strict=False)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def sibling_rows(tree: Tree) -> list[Row]:
    """One row an image, its captions the lines of the .txt file of the same name."""
    rows = []
    for name in tree.with_suffix(*IMAGE_SUFFIXES):
        text = tree.files.get(str(PurePosixPath(name).with_suffix(".txt")))
        rows.append(Row(name, tree.files[name], () if text is None else text))
    return rows


def _rows(tree: Tree, near: str, pairs: Iterable[tuple[str, tuple[str, ...]]]) -> list[Row]:
    """Rows in file order; the second row with a key is marked."""
    return list(_marked(tree, near, pairs))


def _marked(tree: Tree, near: str, pairs: Iterable[tuple[str, tuple[str, ...]]]) -> Iterator[Row]:
    seen: set[str] = set()
    for name, captions in pairs:
        yield Row(name, tree.find(name, near), captions, "duplicate key" if name in seen else None)
        seen.add(name)
