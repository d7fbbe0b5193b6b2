"""Parquet files with images as bytes, as Hugging Face structs or as paths: consecutive row groups are a part.

Keys are file name and row number, or the user's key column, which makes a whole file one part so that a repeated key is
seen.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage import is_remote, kind_of, open_arrow, read_range, size_of
from curation.layouts import of_split
from curation.pairs import Part, Reject, Sample, SourceConfig, clean_captions
from curation.tree import Tree

IMAGE_COLUMNS = ("image", "jpg", "png", "webp", "image_bytes", "bytes", "image_path", "path", "file_name", "filename")
CAPTION_COLUMNS = ("captions", "caption", "text", "txt", "sentences", "title", "TEXT")
SPLIT_COLUMN = "split"
READ_ROWS = 256


def parquet_parts(tree: Tree, config: SourceConfig) -> list[Part]:
    """Parts of a folder's Parquet files of the split, or of one file given alone; ValueError names a missing column."""
    if tree.is_file:
        return list(_split(tree.name, tree.root, PurePosixPath(tree.name).stem, config))
    names = of_split(tree.with_suffix(".parquet"), config.split)
    return [part for name in names for part in _split(name, Path(tree.files[name].path), name[:-8], config)]


def _split(name: str, path: Path, key_prefix: str, config: SourceConfig) -> Iterator[Part]:
    try:
        with open_arrow(path) as opened, pq.ParquetFile(opened) as file:
            schema, metadata = file.schema_arrow, file.metadata
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a readable Parquet file ({error}): fetch it again, or remove it") from error
    _columns(schema, config, name)
    groups = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    most = sum(groups) if config.key_column else config.part_rows
    start, rows = 0, 0
    for index, group_rows in enumerate(groups):
        if rows and rows + group_rows > most:
            yield Part(f"{name}:{start}-{index}", "parquet", (), str(path), start, index, key_prefix, rows)
            start, rows = index, 0
        rows += group_rows
    if rows:
        yield Part(f"{name}:{start}-{len(groups)}", "parquet", (), str(path), start, len(groups), key_prefix, rows)


def _columns(schema: pa.Schema, config: SourceConfig, name: str) -> tuple[str, str]:
    """Names of the image and the caption column."""
    chosen = []
    for what, given, known in (
        ("image", config.image_column, IMAGE_COLUMNS),
        ("caption", config.caption_column, CAPTION_COLUMNS),
    ):
        found = next((column for column in ([given] if given else known) if column in schema.names), None)
        if found is None:
            looked_for = given or " or ".join(known)
            raise ValueError(
                f"{name} has no {what} column {looked_for} (its columns: {', '.join(schema.names)}): "
                f"set source.{what}_column to one of them"
            )
        chosen.append(found)
    if config.key_column and config.key_column not in schema.names:
        raise ValueError(f"{name} has no key column {config.key_column!r} (its columns: {', '.join(schema.names)})")
    return chosen[0], chosen[1]


def read_parquet_part(config: SourceConfig, part: Part) -> Iterator[Sample | Reject]:
    """The samples of a Parquet part, in row order."""
    seen: set[str] = set()
    with open_arrow(part.path) as opened, pq.ParquetFile(opened) as file:
        image_column, caption_column = _columns(file.schema_arrow, config, part.name)
        wanted = {image_column, caption_column, config.key_column, SPLIT_COLUMN} & set(file.schema_arrow.names)
        number = sum(file.metadata.row_group(index).num_rows for index in range(part.start))
        batches = file.iter_batches(READ_ROWS, row_groups=range(part.start, part.stop), columns=sorted(wanted))
        for record in (record for batch in batches for record in batch.to_pylist()):
            name = str(record[config.key_column]) if config.key_column else f"{number:08d}"
            number += 1
            if not config.wants_split(record.get(SPLIT_COLUMN)):
                continue
            key = f"{part.key_prefix}/{name}"
            if key in seen:
                yield Reject(key, part.name, "duplicate key", "the key occurs twice in this file")
            else:
                seen.add(key)
                yield _sample(key, part, record[image_column], record[caption_column])


def _sample(key: str, part: Part, image: object, captions: object) -> Sample | Reject:
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str):
        path = Path(image) if is_remote(image) else Path(part.path).parent / image
        if kind_of(path) != "file":
            return Reject(key, part.name, "missing file", image)
        image = read_range(str(path), 0, size_of(path))
    if not isinstance(image, bytes):
        return Reject(key, part.name, "missing file", f"image is {image!r:.60}")
    texts = clean_captions(captions if isinstance(captions, list) else [captions])
    if not texts:
        return Reject(key, part.name, "empty caption", f"{captions!r:.60}")
    return Sample(key, image, texts, part.name)
