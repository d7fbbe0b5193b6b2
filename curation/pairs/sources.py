"""Raw image-caption pairs in any common layout, as parts that processes can share and the samples of each part.

Layouts: a folder (or one uncompressed tar of it) with a captions file, Karpathy or COCO JSON; WebDataset tars, as
img2dataset writes them; Parquet. Listing reads annotations and file names only; keys are unique by construction.
"""

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cluster.storage import kind_of, read_range, size_of
from curation.pairs.images import IMAGE_SUFFIXES
from curation.pairs.lists import (
    captions_rows,
    coco_rows,
    find_json,
    karpathy_rows,
    sibling_rows,
)
from curation.pairs.parquet import parquet_parts, read_parquet_part
from curation.pairs.ranges import ByteRange
from curation.pairs.sample import Format, Part, Reject, Row, Sample, SourceConfig
from curation.pairs.splits import CAPTION_FILES, captions_files, is_divided
from curation.pairs.text import as_text, clean_captions
from curation.pairs.tree import Tree, open_tree
from curation.pairs.webdataset import TarWalk, read_tar_part, split_name, tar_parts, tar_samples

HASHED_WHOLE_BYTES = 64_000_000
ANNOTATION_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv")
LIST_SUFFIXES = (*ANNOTATION_SUFFIXES, ".txt")
IMAGE_NAME = re.compile("|".join(map(re.escape, IMAGE_SUFFIXES)).encode(), re.IGNORECASE)
COMPRESSED_SUFFIXES = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".7z")

LAYOUTS: tuple[Format, ...] = ("webdataset", "parquet", "karpathy", "coco", "folder")
PROBLEM_DETAILS = {
    "duplicate key": "an earlier row has this key",
    "unreadable record": "the record is no object, or names no image",
}

logger = logging.getLogger(__name__)


def list_parts(config: SourceConfig, path: Path) -> list[Part]:
    """Every part of the source, in a fixed order; ValueError says what was looked for when there is none."""
    if not kind_of(path):
        raise ValueError(f"source {path} does not exist: give a folder, a .tar, a .parquet or an annotation .json")
    if path.name.lower().endswith(COMPRESSED_SUFFIXES):
        raise ValueError(f"source {path} is compressed: files are read in place; unpack it first")
    parts = _listed_parts(config, path)
    if not parts:
        raise ValueError(f"source {path} holds no pair of split {config.split!r}: at least one; check source.split")
    logger.info("source=%s kind=%s parts=%d", path.name, parts[0].kind, len(parts))
    return parts


def _listed_parts(config: SourceConfig, path: Path) -> list[Part]:
    tree, only = _tree_and_file(path)
    layouts = LAYOUTS if config.format == "auto" else (config.format,)
    if not only and "webdataset" in layouts and _holds_webdataset(tree, is_asked=config.format == "webdataset"):
        return tar_parts(tree, config)
    if not only and "parquet" in layouts and tree.with_suffix(".parquet"):
        return parquet_parts(tree, config)
    if annotated := _annotated_rows(layouts, tree, only, config):
        return [part for name, rows in annotated.items() for part in _row_parts(name, rows, config.part_rows)]
    raise ValueError(
        f"source {path} ({len(tree.files)} files) has no pairs in a known layout (looked for {', '.join(layouts)}): "
        "WebDataset .tar with images and .txt or .json beside them; .parquet; a Karpathy or COCO .json; "
        f"{' or '.join(CAPTION_FILES)}; or a .txt beside each image. Set source.format, or convert to one of these"
    )


def _tree_and_file(path: Path) -> tuple[Tree, str]:
    """The tree to search and, when an annotation file was given, its name in the tree of its folder."""
    suffix = path.suffix.lower()
    if suffix == ".tar" or kind_of(path) != "file":
        return open_tree(path), ""
    if suffix == ".parquet":
        return Tree(path, True, {as_text(path.name): ByteRange(str(path), 0, size_of(path))}), ""
    return open_tree(path.parent), as_text(path.name)


def _holds_webdataset(tree: Tree, is_asked: bool) -> bool:
    """A folder with tars; or one tar, when asked for or when its images have captions beside them and no list."""
    if not tree.is_file:
        return bool(tree.with_suffix(".tar"))
    if is_asked:
        return True
    images = {split_name(name)[0] for name in tree.with_suffix(*IMAGE_SUFFIXES)}
    beside = {split_name(name)[0] for name in tree.with_suffix(".txt", ".json")}
    return tree.root.suffix == ".tar" and bool(images & beside)


def _annotated_rows(
    layouts: Sequence[Format], tree: Tree, only: str, config: SourceConfig
) -> Mapping[str, Sequence[Row]]:
    """Rows of an annotated layout by the file that lists them, `only` when it is given; empty when there is none."""
    is_json = not only or only.endswith(".json")
    if is_json and not {"karpathy", "coco"}.isdisjoint(layouts):
        found = find_json(tree, only, layouts, config.split)
        if found is not None:
            kind, name, content = found
            is_coco = kind == "coco"
            return {name: coco_rows(tree, name, content) if is_coco else karpathy_rows(tree, name, content, config)}
    if "folder" not in layouts:
        return {}
    if names := [only] if only else captions_files(tree, config.split):
        return captions_rows(tree, names, config)
    has_siblings = tree.with_suffix(".txt") and tree.with_suffix(*IMAGE_SUFFIXES)
    return {tree.name: sibling_rows(tree)} if has_siblings else {}


def _row_parts(name: str, rows: Sequence[Row], part_rows: int) -> list[Part]:
    parts = []
    for start in range(0, len(rows), part_rows):
        chunk = tuple(rows[start : start + part_rows])
        parts.append(Part(f"{name}:{start}-{start + len(chunk)}", "rows", chunk, num_rows=len(chunk)))
    return parts


def read_part(config: SourceConfig, part: Part, walks: dict[str, TarWalk] | None = None) -> Iterator[Sample | Reject]:
    """Every row of a part in order, as a sample or as a reject with its reason; `walks` is kept from part to part."""
    if part.kind == "tar":
        return read_tar_part(part, walks)
    if part.kind == "parquet":
        return read_parquet_part(config, part)
    return (_read_row(row, part.name) for row in part.rows)


def _read_row(row: Row, source: str) -> Sample | Reject:
    if row.problem:
        return Reject(row.key, source, row.problem, PROBLEM_DETAILS[row.problem])
    try:
        data = row.image.read() if row.image else None
    except FileNotFoundError:
        data = None
    if row.image is None or data is None:
        return Reject(row.key, source, "missing file", row.key)
    if len(data) < row.image.size:
        return Reject(row.key, source, "truncated archive", f"{len(data)} of {row.image.size} bytes")
    captions = row.captions
    if isinstance(captions, ByteRange):
        captions = clean_captions(captions.read().decode("utf-8-sig", "replace").split("\n"))
    if not captions:
        return Reject(row.key, source, "empty caption", "no text is left after cleaning")
    return Sample(row.key, data, captions, source)


def source_digest(path: Path) -> str:
    """Identity of user data without reading it all.

    One file below 64 MB: its bytes. Else names and sizes, with the bytes of annotation files below 64 MB. A file that
    lists images stands for those below its folder, too.
    """
    digest = hashlib.sha256()
    if kind_of(path) == "file" and (size := size_of(path)) < HASHED_WHOLE_BYTES:
        content = read_range(str(path), 0, size)
        digest.update(content)
        if not (path.name.lower().endswith(LIST_SUFFIXES) and IMAGE_NAME.search(content)):
            return digest.hexdigest()
    tree, only = _tree_and_file(path)
    if not only and is_divided(tree):
        digest.update(b"by split and folder\n")  # before, such data was read as a whole, or its first folder alone
    for name, found in tree.files.items():
        if only and name != only and not name.lower().endswith(IMAGE_SUFFIXES):
            continue
        digest.update(f"{name}\0{found.size}\n".encode())
        if name.lower().endswith(ANNOTATION_SUFFIXES) and found.size < HASHED_WHOLE_BYTES:
            digest.update(found.read())
    return digest.hexdigest()


def image_ranges(part: Part, walks: dict[str, TarWalk] | None = None) -> Iterator[tuple[str, ByteRange]]:
    """(key, where the image is) of the rows of a part that have an image; `walks` is kept from part to part."""
    if part.kind == "parquet":
        raise ValueError(
            f"{part.name} is Parquet, whose single images cannot be read in any order: train on stored embeddings, or "
            "convert it to WebDataset tars"
        )
    if part.kind == "rows":
        yield from ((row.key, row.image) for row in part.rows if row.image is not None and not row.problem)
        return
    yield from ((key, files["image"]) for key, files in tar_samples(part, walks) if not isinstance(files, Reject))
