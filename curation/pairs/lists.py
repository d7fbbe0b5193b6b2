"""Annotated data sets to rows: Karpathy JSON, COCO JSON, a captions file beside images, a text file beside each image.

Each function takes the tree of a folder or tar and gives every row, bad ones included; nothing but annotations is read.
A record that names no image is a row of its own, "unreadable record", so that it counts.
"""

import csv
import io
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from curation.pairs.annotations import annotated_images, annotation_kind
from curation.pairs.images import IMAGE_SUFFIXES
from curation.pairs.sample import Row, SourceConfig
from curation.pairs.splits import is_of_other_split
from curation.pairs.text import as_text, clean_captions
from curation.pairs.tree import Tree

IMAGE_FIELDS = ("image", "file_name", "filename", "filepath", "file", "path", "image_path", "image_name", "key")
CAPTION_FIELDS = ("captions", "caption", "text", "title", "sentence")
MOST_JSON_FILES = 64
HEAD_BYTES = 65_536

logger = logging.getLogger(__name__)


def find_json(tree: Tree, only: str, kinds: Sequence[str], split: str) -> tuple[str, str, dict] | None:
    """(kind, name, content) of the annotation file, `only` when it is given: Karpathy's before COCO's.

    ValueError when the COCO files are named after other splits.
    """
    coco = None
    for name in [only] if only else _json_names(tree, split):
        if coco is not None and not ("karpathy" in kinds and _begins_as_karpathy(tree, name)):
            continue
        content = _parsed(tree, name)
        if "karpathy" in kinds and annotation_kind(content) == "karpathy":
            return "karpathy", name, content
        if coco is None and "coco" in kinds and annotation_kind(content) == "coco":
            coco = "coco", name, content
    if coco is not None and not only and is_of_other_split(coco[1], split):
        raise ValueError(
            f"split {split!r} is empty: {coco[1]} is named after another and no COCO file after this one; set "
            "source.split to one that is there, or empty"
        )
    return coco


def _json_names(tree: Tree, split: str) -> list[str]:
    """The JSON files, those named after captions and the split first; none of very many, which are something else."""
    names = tree.with_suffix(".json")

    def rank(name: str) -> tuple[bool, bool, bool, str]:
        base = PurePosixPath(name).name.lower()
        is_other = is_of_other_split(name, split)
        return is_other, "caption" not in base and "dataset" not in base, split not in base, name

    return sorted(names, key=rank) if len(names) <= MOST_JSON_FILES else []


def _begins_as_karpathy(tree: Tree, name: str) -> bool:
    """COCO's other files are long: parsed, they would take gigabytes."""
    found = tree.files[name]
    return b'"sentences"' in found._replace(size=min(found.size, HEAD_BYTES)).read()


def _parsed(tree: Tree, name: str) -> Any:
    try:
        return json.loads(tree.files[name].read())
    except ValueError as error:
        logger.warning("annotation_file=%s ignored=%r", name, str(error))
        return None


def karpathy_rows(tree: Tree, name: str, content: dict, config: SourceConfig) -> list[Row]:
    """One row an image of the split."""
    images = annotated_images(content)
    wanted = [image for image in images if config.wants_split(image.split)]
    if not wanted:
        found = sorted({image.split for image in images})
        raise ValueError(f"split {config.split!r} is empty: {name} has the splits {found}; set source.split to one")
    near = str(PurePosixPath(name).parent)
    pairs = []
    for image in wanted:
        path = str(PurePosixPath(image.folder) / image.file_name)
        if not image.problem:
            pairs.append((path if tree.find(path, near) else image.file_name, clean_captions(image.captions)))
    return _rows(tree, name, pairs, [f"{name}:{image.place}" for image in wanted if image.problem])


def coco_rows(tree: Tree, name: str, content: dict) -> list[Row]:
    """One row an image, with all its captions in file order."""
    images = annotated_images(content)
    pairs = ((image.file_name, clean_captions(image.captions)) for image in images if not image.problem)
    return _rows(tree, name, pairs, [f"{name}:{image.place}" for image in images if image.problem])


def _numbered(records: object) -> Iterator[tuple[int, dict]]:
    """(number from 1, record) of what should be a list of objects; what is no object is an empty one."""
    for number, record in enumerate(records if isinstance(records, list) else [], start=1):
        yield number, record if isinstance(record, dict) else {}


def _text(record: dict, *fields: str) -> str:
    """The first of these fields that holds text."""
    return next((record[field] for field in fields if isinstance(record.get(field), str) and record[field]), "")


def captions_rows(tree: Tree, names: Sequence[str], config: SourceConfig) -> dict[str, list[Row]]:
    """Rows by captions file, one an image; captions of repeated lines with other text are joined.

    Keys are the images' names, below the folder of their file where there are several.
    """
    rows, num_images = {}, 0
    for name in names:
        merged, unreadable = _merged_records(tree, name, config)
        pairs = ((image, clean_captions(captions)) for image, captions in merged.items())
        rows[name] = _rows(tree, name, pairs, unreadable, f"{PurePosixPath(name).parent}/" if len(names) > 1 else "")
        num_images += len(merged)
    if not num_images:
        raise ValueError(
            f"{' and '.join(names[:2])} names no image of split {config.split!r}: each record needs one of "
            f"{IMAGE_FIELDS} and one of {CAPTION_FIELDS}; rename its fields, or set source.split"
        )
    return rows


def _merged_records(tree: Tree, name: str, config: SourceConfig) -> tuple[dict[str, list[object]], list[str]]:
    """Captions by image of the split, and the records that name no image."""
    text = tree.files[name].read().decode("utf-8-sig", "replace")
    merged: dict[str, list[object]] = {}
    unreadable = []
    for number, record in _records(name, text):
        if not config.wants_split(record.get("split")):
            continue
        if image := _text(record, *IMAGE_FIELDS):
            captions: Any = next((record[field] for field in CAPTION_FIELDS if record.get(field) is not None), [])
            merged.setdefault(image, []).extend(captions if isinstance(captions, list) else [captions])
        else:
            unreadable.append(f"{name}:{number}")
    return merged, unreadable


def _records(name: str, text: str) -> Iterable[tuple[int, dict]]:
    """(number, record) of a JSON, JSON-lines, comma- or tab-separated file; empty where a line is no record."""
    if name.endswith(".jsonl"):
        lines = enumerate(text.split("\n"), start=1)
        return [(number, _record(line)) for number, line in lines if line.strip()]
    try:
        if name.endswith(".json"):
            content = json.loads(text, strict=False)
            if isinstance(content, dict):
                content = [{"image": image, "captions": captions} for image, captions in content.items()]
            return _numbered(content)
        return enumerate(_table(name, text), start=1)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{name} cannot be parsed ({error}): repair it there, then run again") from error


def _record(line: str) -> dict:
    try:
        record = json.loads(line, strict=False)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _table(name: str, text: str) -> list[dict]:
    """Rows under a header. Tabs need no quotes: where these do not pair, those of a .tsv are part of its captions."""
    lines, delimiter = io.StringIO(text.replace("\0", " "), newline=""), "\t" if name.endswith(".tsv") else ","
    table = csv.DictReader(lines, delimiter=delimiter, strict=True)
    try:
        return [_as_wide_as_its_header(record, delimiter) for record in table]
    except csv.Error as error:
        if delimiter == ",":
            raise csv.Error(f"{error}, line {table.reader.line_num}") from error
        lines.seek(0)
        table = csv.DictReader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
        return [_as_wide_as_its_header(record, delimiter) for record in table]


def _as_wide_as_its_header(record: dict, delimiter: str) -> dict:
    """A record with more fields than the header: what is too many belongs to a caption in the last, or it is none."""
    rest = record.pop(None, None)
    if rest is None:
        return record
    last = next(reversed(record))
    return {**record, last: delimiter.join([record[last], *rest])} if last in CAPTION_FIELDS else {}


def sibling_rows(tree: Tree) -> list[Row]:
    """One row an image, its captions the lines of the .txt file of the same name."""
    rows = []
    for name in tree.with_suffix(*IMAGE_SUFFIXES):
        text = tree.files.get(str(PurePosixPath(name).with_suffix(".txt")))
        rows.append(Row(name, tree.files[name], () if text is None else text))
    return rows


def _rows(
    tree: Tree,
    name: str,
    pairs: Iterable[tuple[str, tuple[str, ...]]],
    unreadable: Iterable[str],
    key_prefix: str = "",
) -> list[Row]:
    """Rows in the order of file `name`, the second with a key marked; then those of its unreadable records."""
    near = str(PurePosixPath(name).parent)
    return [*_marked(tree, near, pairs, key_prefix), *(Row(key, None, (), "unreadable record") for key in unreadable)]


def _marked(tree: Tree, near: str, pairs: Iterable[tuple[str, tuple[str, ...]]], key_prefix: str) -> Iterator[Row]:
    seen: set[str] = set()
    for given, captions in pairs:
        name = as_text(given)
        files = tree.find(name, near)
        image = tree.files[files[0]] if len(files) == 1 else None
        yield Row(key_prefix + name, image, captions, "duplicate key" if name in seen else None)
        seen.add(name)
