"""Parquet files with images as bytes, as Hugging Face structs or as paths: consecutive rows are a part.

Keys are file name and row number, or the user's key column, of which a part reads the rows before it, too, so that a
repeated key is seen. Row groups can only be read from their first row, so parts are cut between them where they can be.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage import BLOCK_BYTES, is_remote, kind_of, open_arrow, read_range, size_of
from curation.pairs.sample import Part, Reject, Sample, SourceConfig
from curation.pairs.splits import of_split
from curation.pairs.text import clean_captions
from curation.pairs.tree import Tree

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
    for start, stop in _cuts(_group_rows(metadata), config.part_rows):
        yield Part(f"{name}:{start}-{stop}", "parquet", (), str(path), start, stop, key_prefix, stop - start)


def _group_rows(metadata: pq.FileMetaData) -> list[int]:
    return [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]


def _cuts(group_rows: Sequence[int], part_rows: int) -> Iterator[tuple[int, int]]:
    """Ranges of at most `part_rows` rows, cut between row groups but for those that are longer."""
    start = stop = 0
    pieces = (min(part_rows, rows - first) for rows in group_rows for first in range(0, rows, part_rows))
    for rows in pieces:
        if stop + rows - start > part_rows:
            yield start, stop
            start = stop
        stop += rows
    if stop > start:
        yield start, stop


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
    """The samples of a Parquet part, in row order; the first of a key in the file is taken."""
    with (
        open_arrow(part.path) as opened,
        pq.ParquetFile(opened, buffer_size=BLOCK_BYTES, pre_buffer=False) as file,
    ):
        image_column, caption_column = _columns(file.schema_arrow, config, part.name)
        seen = _keys_before(file, config, part)
        for number, record in _records(file, (image_column, caption_column, config.key_column), config, part):
            key = _key(config, part, number, record)
            if key in seen:
                yield Reject(key, part.name, "duplicate key", "the key occurs twice in this file")
            else:
                seen.add(key)
                yield _sample(key, part, record[image_column], record[caption_column])


def _keys_before(file: pq.ParquetFile, config: SourceConfig, part: Part) -> set[str]:
    """Keys that the file has before the part, read without the images; row numbers do not repeat."""
    if not config.key_column or not part.start:
        return set()
    before = replace(part, start=0, stop=part.start)
    return {_key(config, part, *row) for row in _records(file, (config.key_column,), config, before)}


def _key(config: SourceConfig, part: Part, number: int, record: dict) -> str:
    return f"{part.key_prefix}/{record[config.key_column] if config.key_column else f'{number:08d}'}"


def _records(
    file: pq.ParquetFile, columns: Iterable[str], config: SourceConfig, part: Part
) -> Iterator[tuple[int, dict]]:
    """(row number in the file, record) of the part's rows of the split; a row group is read from its first row."""
    ends = list(accumulate(_group_rows(file.metadata)))
    first, last = bisect_right(ends, part.start), bisect_left(ends, part.stop)
    number = ends[first - 1] if first else 0
    wanted = sorted({*columns, SPLIT_COLUMN} & set(file.schema_arrow.names))
    for batch in file.iter_batches(READ_ROWS, row_groups=range(first, last + 1), columns=wanted):
        begin, end = max(0, part.start - number), min(len(batch), part.stop - number)
        for place, record in enumerate(batch[begin:end].to_pylist(), start=number + begin):
            if config.wants_split(record.get(SPLIT_COLUMN)):
                yield place, record
        number += len(batch)
        if number >= part.stop:
            return


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
