"""Parquet files with images as bytes, Hugging Face structs, base64 text or paths.

A part is a range of consecutive rows. Row groups can only be read from their first row, so parts
are cut between row groups where possible. A key is the file's name and the row's number, or a value
of the user's key column. A part also reads the keys of all rows before it, to find repeated ones.
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
from curation.pairs.fields import Fields, FieldsError, resolve_fields
from curation.pairs.images import has_image_mark
from curation.pairs.sample import Part, Problem, Reject, Sample
from curation.pairs.text import clean_captions, undecodable
from curation.pairs.values import captions_in, image_name, values_at

READ_ROWS = 256
FIRST_ROWS = 8
MOST_PATHS = 2_000_000
SHORTEST_BASE64 = 64  # characters, that is 48 bytes: hardly any image is smaller, and names are
BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]+={0,2}\s*")
DATA_URI = re.compile(r"data:[^,]{0,100};base64,")


class ParquetFile(NamedTuple):
    """A Parquet file as its footer and its first rows describe it."""

    name: str
    path: Path
    key_prefix: str
    names: tuple[str, ...]
    """Names of its columns."""
    fields: Fields
    group_rows: list[int]
    """Number of rows per row group."""
    has_paths: bool
    """Whether the image column has text, such as paths, and not bytes."""


def open_parquet(name: str, path: Path, key_prefix: str, config: SourceConfig) -> ParquetFile:
    """A Parquet file from its footer and first rows.

    Raises FieldsError when a column is missing or ambiguous, and ValueError when the file is not
    readable as Parquet.
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
    """The first rows, whose values show which column has images; empty for an empty file."""
    batch = next(file.iter_batches(FIRST_ROWS), None)
    return [] if batch is None else batch.to_pylist()


def image_paths(file: ParquetFile) -> list[str]:
    """The names of all images, if the file has names and not too many rows; else empty."""
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
    """Ranges (start, stop) of at most `part_rows` rows, cut between row groups where possible.

    Row groups of 60, 60 and 250 rows with 100 rows per part: (0, 60), (60, 120), (120, 220),
    (220, 320), (320, 370).
    """
    start = 0
    stop = 0
    # Row groups that are longer than a part, in pieces of at most one part.
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
    """The rows of a Parquet part in order; rows with the key of an earlier row are rejects."""
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
    """The fields of a file: by the names of its columns, else also by its first values.

    Names come from the footer; values must be read.
    """
    names = file.schema_arrow.names
    try:
        return resolve_fields(part.name, names, (), config)
    except FieldsError:
        return resolve_fields(part.name, names, _first_records(file), config)


def _keys_before(
    file: pq.ParquetFile, fields: Fields, config: SourceConfig, part: Part
) -> set[str]:
    """The keys of all rows before the part, read without the images.

    Empty if keys are row numbers, which cannot repeat.
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
    """(row number in the file, record) of the rows of a part that belong to the wanted split.

    `paths` are the fields to read. A row group is read from its first row.
    """
    metadata = file.metadata
    ends = list(
        accumulate(metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))
    )
    # The row groups that hold the part's first and last row; `number` is the first row that is
    # read, which may lie before the part.
    first = bisect_right(ends, part.start)
    last = bisect_left(ends, part.stop)
    number = ends[first - 1] if first else 0

    # Of a path, the column it leads into; a field that the file does not have is not read.
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
    """The encoded image from bytes, a struct with bytes, base64 text, or the name of a file.

    A name is relative to `folder`.
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
    """The bytes of a data: URI or of base64 text; None for anything else, such as a name."""
    # A name can look like base64 (letters, digits, slashes): base64 text must be long, without a
    # suffix, and decode to what begins like an image.
    marked = DATA_URI.match(text)
    if marked is None and (
        len(text) < SHORTEST_BASE64 or "." in text[-6:] or not BASE64.fullmatch(text)
    ):
        return None

    # The variant of base64 for addresses has - and _ in place of + and /.
    encoded = text[marked.end() :] if marked else text
    try:
        data = base64.b64decode(
            encoded, altchars=b"-_" if "-" in encoded or "_" in encoded else None
        )
    except (binascii.Error, ValueError):
        return None

    return data if marked or has_image_mark(data) else None
