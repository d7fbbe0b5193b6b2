"""Parquet files with images as bytes, as Hugging Face structs, as base64 or as paths: consecutive
rows are a part.

Keys are file name and row number, or the user's key column, of which a part reads the rows before
it, too, so that a repeated key is seen. Row groups can only be read from their first row, so parts
are cut between them where they can be.
"""

import base64
import binascii
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage import BLOCK_BYTES, is_remote, kind_of, open_arrow, read_range, size_of
from curation.pairs.config import SourceConfig
from curation.pairs.fields import (
    Fields,
    FieldsError,
    captions_in,
    image_name,
    resolve_fields,
    values_at,
)
from curation.pairs.images import has_image_mark
from curation.pairs.sample import Part, Problem, Reject, Sample
from curation.pairs.text import clean_captions, undecodable

READ_ROWS = 256
FIRST_ROWS = 8
MOST_PATHS = 2_000_000
SHORTEST_BASE64 = 64
BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]+={0,2}\s*")
DATA_URI = re.compile(r"data:[^,]{0,100};base64,")


class ParquetFile(NamedTuple):
    """What the footer and the first rows of a Parquet file say."""

    name: str
    path: Path
    key_prefix: str
    names: tuple[str, ...]
    """Its columns."""
    fields: Fields
    group_rows: list[int]
    """Rows of each row group."""
    has_paths: bool
    """Whether images are named, not held."""


def open_parquet(name: str, path: Path, key_prefix: str, config: SourceConfig) -> ParquetFile:
    """The columns of a Parquet file; FieldsError names a missing one, ValueError a file that is
    none.
    """
    try:
        with open_arrow(path) as opened, pq.ParquetFile(opened, pre_buffer=False) as file:
            names = tuple(file.schema_arrow.names)
            metadata = file.metadata
            fields = resolve_fields(name, names, _first_records(file), config)
            image = fields.image.partition(".")[0]
            kind = file.schema_arrow.field(image if image in names else fields.image).type
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{path} is not a readable Parquet file ({error}): download it again, or remove it"
        ) from error

    group_rows = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    has_paths = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return ParquetFile(name, path, key_prefix, names, fields, group_rows, has_paths)


def _first_records(file: pq.ParquetFile) -> list[dict]:
    """The first rows, of which values tell an image's column; none of an empty file."""
    batch = next(file.iter_batches(FIRST_ROWS), None)
    return [] if batch is None else batch.to_pylist()


def image_paths(file: ParquetFile) -> list[str]:
    """The names of all images, where a file of reasonable length holds names alone."""
    if not file.has_paths or sum(file.group_rows) > MOST_PATHS:
        return []
    column = file.fields.image.partition(".")[0]
    with open_arrow(file.path) as opened:
        values = pq.read_table(opened, columns=[column])[column].to_pylist()
    return [name for value in values if (name := image_name(value).name)]


def parquet_parts(file: ParquetFile, config: SourceConfig) -> Iterator[Part]:
    """Parts of at most `part_rows` rows, cut between row groups where they can be."""
    row_bytes = size_of(file.path) / max(1, sum(file.group_rows))
    for start, stop in _cuts(file.group_rows, config.part_rows):
        label = f"{file.name}:{start}-{stop}"
        num_bytes = round(row_bytes * (stop - start))
        yield Part(
            label,
            "parquet",
            (),
            str(file.path),
            start,
            stop,
            file.key_prefix,
            stop - start,
            num_bytes,
        )


def _cuts(group_rows: Sequence[int], part_rows: int) -> Iterator[tuple[int, int]]:
    """Ranges of at most `part_rows` rows, cut between row groups but for those that are longer."""
    start = 0
    stop = 0
    pieces = (
        min(part_rows, rows - first) for rows in group_rows for first in range(0, rows, part_rows)
    )

    for rows in pieces:
        if stop + rows - start > part_rows:
            yield start, stop
            start = stop
        stop += rows

    if stop > start:
        yield start, stop


def read_parquet_part(config: SourceConfig, part: Part) -> Iterator[Sample | Reject]:
    """The samples of a Parquet part, in row order; the first of a key in the file is read."""
    with (
        open_arrow(part.path) as opened,
        pq.ParquetFile(opened, buffer_size=BLOCK_BYTES, pre_buffer=False) as file,
    ):
        fields = _fields_of(file, part, config)
        columns = [fields.image, *fields.captions, *([fields.key] if fields.key else [])]
        seen = _keys_before(file, fields, config, part)
        for number, record in _records(file, columns, fields, config, part):
            key = _key(fields, part, number, record)
            if key in seen:
                yield Reject(key, part.name, "duplicate key", "the key occurs twice in this file")
                continue
            seen.add(key)
            yield _sample(key, part, record, fields)


def _fields_of(file: pq.ParquetFile, part: Part, config: SourceConfig) -> Fields:
    """The fields by the names of the columns, and by values only where names do not tell: those
    must be read.
    """
    names = file.schema_arrow.names
    try:
        return resolve_fields(part.name, names, (), config)
    except FieldsError:
        return resolve_fields(part.name, names, _first_records(file), config)


def _keys_before(
    file: pq.ParquetFile, fields: Fields, config: SourceConfig, part: Part
) -> set[str]:
    """Keys that the file has before the part, read without the images; row numbers do not
    repeat.
    """
    if not fields.key or not part.start:
        return set()
    before = replace(part, start=0, stop=part.start)
    return {
        _key(fields, part, *row) for row in _records(file, (fields.key,), fields, config, before)
    }


def _key(fields: Fields, part: Part, number: int, record: dict) -> str:
    value = next(iter(values_at(record, fields.key)), None) if fields.key else f"{number:08d}"
    return f"{part.key_prefix}/{value}"


def _records(
    file: pq.ParquetFile, paths: Iterable[str], fields: Fields, config: SourceConfig, part: Part
) -> Iterator[tuple[int, dict]]:
    """(row number in the file, record) of the part's rows of the split; a row group is read from
    its first row.
    """
    metadata = file.metadata
    ends = list(
        accumulate(metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))
    )
    first = bisect_right(ends, part.start)
    last = bisect_left(ends, part.stop)
    number = ends[first - 1] if first else 0

    names = set(file.schema_arrow.names)
    wanted = sorted(
        {path if path in names else path.partition(".")[0] for path in (*paths, fields.split)}
        & names
    )

    for batch in file.iter_batches(READ_ROWS, row_groups=range(first, last + 1), columns=wanted):
        begin = max(0, part.start - number)
        end = min(len(batch), part.stop - number)
        for place, record in enumerate(batch[begin:end].to_pylist(), start=number + begin):
            if config.wants_split(next(iter(values_at(record, fields.split)), None)):
                yield place, record
        number += len(batch)
        if number >= part.stop:
            return


def _sample(key: str, part: Part, record: dict, fields: Fields) -> Sample | Reject:
    image = _image_bytes(next(iter(values_at(record, fields.image)), None), Path(part.path).parent)
    if isinstance(image, Problem):
        return Reject(key, part.name, image.reason, image.detail)

    captions = captions_in(record, fields.captions)
    if bad := next(filter(None, map(undecodable, captions)), ""):
        return Reject(key, part.name, "undecodable text", bad)
    texts = clean_captions(captions)
    if not texts:
        return Reject(key, part.name, "empty caption", f"no text in {', '.join(fields.captions)}")
    return Sample(key, image, texts, part.name)


def _image_bytes(value: object, folder: Path) -> bytes | Problem:
    """The encoded image: bytes, those of a struct, base64 text, or those of the file that a name
    leads to.
    """
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return value["bytes"]
    if isinstance(value, bytes):
        return value
    if isinstance(value, list) and len(value) == 1:
        return _image_bytes(value[0], folder)

    name, kind = image_name(value)
    if kind == "none":
        return Problem("missing file", f"image is {value!r:.60}")
    if kind == "address":
        return Problem(
            "image is an address", f"{name[:100]}: download it first, as with img2dataset"
        )
    if (decoded := _from_base64(name)) is not None:
        return decoded

    path = Path(name) if is_remote(name) else folder / name
    try:
        if kind_of(path) == "file":
            return read_range(str(path), 0, size_of(path))
    except (OSError, ValueError):  # a name that no file can have
        pass

    return Problem("missing file", f"{name[:100]}")


def _from_base64(text: str) -> bytes | None:
    """The bytes of a data: URI or of base64 text; None for what is a name."""
    marked = DATA_URI.match(text)
    if marked is None and (
        len(text) < SHORTEST_BASE64 or "." in text[-6:] or not BASE64.fullmatch(text)
    ):
        return None

    encoded = text[marked.end() :] if marked else text
    try:
        data = base64.b64decode(
            encoded, altchars=b"-_" if "-" in encoded or "_" in encoded else None
        )
    except (binascii.Error, ValueError):
        return None

    return data if marked or has_image_mark(data) else None
