"""Reading a folder of shards: vectors by row, keys, captions, hashes and thumbnails.

Rows are numbered in the order of the manifest. Shards are memory-mapped, and vectors are viewed one
record batch at a time. A gather copies rows grouped by record batch, because `Table.take` on
chunked fixed-size lists is more than a thousand times slower.
"""

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, no_type_check
from weakref import WeakValueDictionary

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64, Shaped, UInt8, UInt64

from cluster.compilation import compiled
from curation.shards.codec import STORED_TYPES, decode_tokens
from curation.shards.manifest import MANIFEST, check_size, read_manifest
from curation.shards.mapped import MappedShard, check_maps
from curation.shards.schema import (
    CAPTIONS,
    KEY,
    PERCEPTUAL_BYTES,
    PERCEPTUAL_HASH,
    THUMBNAIL,
    arrow_schema,
)

# Readers of this process, which hold memory maps and are therefore shared; an entry disappears with
# the last use of its reader.
_opened: "WeakValueDictionary[tuple[object, ...], EmbeddingShards]" = WeakValueDictionary()

# Types with 64-bit offsets for columns that are combined: 32-bit offsets end at 2 GiB of text.
LARGE = {pa.string(): pa.large_string(), pa.list_(pa.string()): pa.large_list(pa.large_string())}


def open_shards(folder: Path) -> "EmbeddingShards":
    """The reader of a finished folder: the same object in all of a process.

    A folder whose manifest has changed gets a new reader. Raises ShardError for a folder that is
    not finished, or has more shards than this process can map.
    """
    # A manifest that was written again has another inode, time or size.
    manifest = folder.resolve() / MANIFEST
    state = manifest.stat() if manifest.is_file() else None
    key = manifest, *((state.st_ino, state.st_mtime_ns, state.st_size) if state else ())
    shards = _opened.get(key)
    if shards is None:
        unmapped = sum(reader.num_unmapped() for reader in list(_opened.values()))
        shards = _opened[key] = EmbeddingShards(folder, unmapped)
    return shards


class EmbeddingShards:
    """A finished folder of shards, each memory-mapped on first use. It is pickled as its folder."""

    def __init__(self, folder: Path, maps_to_come: int = 0) -> None:
        """Raises ShardError if this process cannot map all shards beside the `maps_to_come`."""
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self.spec = self.manifest.spec
        self.num_rows = self.manifest.num_rows
        self.num_shards = len(self.manifest.shards)
        self.offsets: Int64[np.ndarray, " shards_plus_1"] = np.cumsum(
            [0, *(entry.rows for entry in self.manifest.shards)], dtype=np.int64
        )
        check_maps(self.folder, self.num_shards, maps_to_come)
        for entry in self.manifest.shards:
            check_size(self.folder, entry)

        self._mapped: dict[int, MappedShard] = {}

    def __reduce__(self) -> tuple[Callable[[Path], "EmbeddingShards"], tuple[Path]]:
        return open_shards, (self.folder,)

    def __len__(self) -> int:
        return self.num_rows

    def shard(self, index: int) -> MappedShard:
        """One shard, opened on first use."""
        if index not in self._mapped:
            entry = self.manifest.shards[index]
            self._mapped[index] = MappedShard(self.folder / entry.file, self.spec, entry.rows)
        return self._mapped[index]

    def num_unmapped(self) -> int:
        """The number of shards that are not mapped yet."""
        return self.num_shards - len(self._mapped)

    def keys(self) -> pa.ChunkedArray:
        """Every key, in row order."""
        return self.strings(KEY)

    def strings(self, column: str, span: tuple[int, int] | None = None) -> pa.ChunkedArray:
        """A column, or a range of its rows, in row order, with one chunk per record batch.

        Text has 64-bit offsets, so that more than 2 GiB can be combined.
        """
        kind = arrow_schema(self.spec).field(column).type
        start, stop = span or (0, self.num_rows)
        # The shards with the first and behind the last row of the range.
        first = np.searchsorted(self.offsets, start, side="right") - 1
        last = np.searchsorted(self.offsets, stop)
        places = ((index, int(self.offsets[index])) for index in range(first, last))
        parts = (
            self.shard(index).column(column, start - before, stop - before)
            for index, before in places
        )
        return pa.chunked_array(list(chain.from_iterable(parts)), kind).cast(LARGE.get(kind, kind))

    def keys_of(self, rows: Int64[np.ndarray, " n"]) -> list[str]:
        """The keys of some rows, in the order of `rows`."""
        return self._take_objects(rows, KEY)

    def hashes(self, column: str) -> UInt64[np.ndarray, " rows"]:
        """A whole hash column in row order."""
        return self.strings(column).to_numpy()

    def perceptual_hashes(
        self, rows: Int64[np.ndarray, " n"], num_hashes: int
    ) -> UInt8[np.ndarray, "n hashes bytes"]:
        """The first `num_hashes` perceptual hashes of some rows, in the order of `rows`.

        The first hash is that of the image, the others are those of its altered forms.
        """
        width = self.spec.num_hashes * PERCEPTUAL_BYTES
        out = np.empty((len(rows), num_hashes, PERCEPTUAL_BYTES), np.uint8)

        for shard, batch, local, positions in self._groups(rows):
            # A column of fixed-size binary values has one buffer with all bytes (the other one says
            # which values are null).
            column = self.shard(shard).batches[batch].column(PERCEPTUAL_HASH)
            data = np.frombuffer(
                column.buffers()[1], np.uint8, len(column) * width, column.offset * width
            )
            stored = data.reshape(len(column), -1, PERCEPTUAL_BYTES)
            out[positions] = stored[local, :num_hashes]

        return out

    def captions(self, rows: Int64[np.ndarray, " n"]) -> list[list[str]]:
        """The captions of some rows, in the order of `rows`."""
        return self._take_objects(rows, CAPTIONS)

    def thumbnails(self, rows: Int64[np.ndarray, " n"]) -> list[bytes]:
        """The JPEG thumbnails of some rows, in the order of `rows`; b"" if none is stored."""
        return self._take_objects(rows, THUMBNAIL)

    def _take_objects(self, rows: Int64[np.ndarray, " n"], column: str) -> list:
        values_of_rows: list[Any] = [None] * len(rows)
        for shard, batch, local, positions in self._groups(rows):
            values = self.shard(shard).batches[batch].column(column).take(pa.array(local))
            for position, value in zip(positions, values.to_pylist(), strict=True):
                values_of_rows[position] = value
        return values_of_rows

    def gather(self, rows: Int64[np.ndarray, " n"], column: str) -> Float32[np.ndarray, "n t d"]:
        """Some rows of a vector column in float32, in the order of `rows`, which may repeat."""
        stored, scale = self.gather_stored(rows, column)
        return decode_tokens(stored, scale, self.spec.dtype_of(column))

    def gather_stored(
        self,
        rows: Int64[np.ndarray, " n"],
        column: str,
        out: Shaped[np.ndarray, "n t d"] | None = None,
    ) -> tuple[Shaped[np.ndarray, "n t d"], Float32[np.ndarray, "n t"] | None]:
        """(rows in the stored format, their int8 scales or None), in the order of `rows`.

        The rows are copied into `out` if it is not None.
        """
        spec = self.spec
        num_tokens = spec.num_tokens(column)
        dtype = spec.dtype_of(column)
        if out is None:
            out = np.empty((len(rows), num_tokens, spec.width(column)), STORED_TYPES[dtype])

        scale = np.empty((len(rows), num_tokens), np.float32) if dtype == "int8" else None
        for shard, batch, local, positions in self._groups(rows):
            _copy_rows(self.shard(shard).views(column)[batch], local, out, positions)
            if scale is not None:
                scale[positions] = self.shard(shard).scales(column)[batch][local]

        return out, scale

    def _groups(
        self, rows: Int64[np.ndarray, " n"]
    ) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
        """(shard, record batch, rows inside it, positions in `rows`) per record batch with rows.

        Each record batch occurs once, in the order of the files. Raises IndexError for rows that do
        not exist.
        """
        if len(rows) and (rows.min() < 0 or rows.max() >= self.num_rows):
            raise IndexError(
                f"rows {rows.min()} to {rows.max()} are asked for: {self.folder} holds rows 0 to "
                f"{self.num_rows - 1}"
            )

        # In sorted order, the rows of a shard lie together, and in it those of a record batch:
        # searching the offsets gives where each begins. `order` leads back to the caller's order.
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        cuts = np.searchsorted(ordered, self.offsets)

        for shard in np.flatnonzero(np.diff(cuts)).tolist():
            inside = slice(cuts[shard], cuts[shard + 1])
            local = ordered[inside] - self.offsets[shard]
            positions = order[inside]
            offsets = self.shard(shard).offsets
            ends = np.searchsorted(local, offsets)
            for batch in np.flatnonzero(np.diff(ends)).tolist():
                part = slice(ends[batch], ends[batch + 1])
                yield shard, batch, local[part] - offsets[batch], positions[part]


def _copy_rows(view: np.ndarray, local: np.ndarray, out: np.ndarray, positions: np.ndarray) -> None:
    """Copy rows of a view to positions of `out`: consecutive rows at once, others one by one."""
    assert out.flags.c_contiguous
    assert out.dtype == view.dtype
    if (np.diff(local) == 1).all() and (np.diff(positions) == 1).all():
        out[positions[0] : positions[-1] + 1] = view[local[0] : local[-1] + 1]
    elif out.size:
        _copy_bytes(
            view.reshape(len(view), -1).view(np.uint8),
            local,
            out.reshape(len(out), -1).view(np.uint8),
            positions,
        )


@compiled()
@no_type_check
def _copy_bytes(
    source: UInt8[np.ndarray, "n bytes"],
    rows: Int64[np.ndarray, " m"],
    target: UInt8[np.ndarray, "t bytes"],
    places: Int64[np.ndarray, " m"],
) -> None:
    """Copy some rows to places of another array.

    Each byte is copied once. NumPy would need a temporary array, or one call per row.
    """
    for index in range(len(rows)):
        row = source[rows[index]]
        place = target[places[index]]
        for i in range(len(row)):
            place[i] = row[i]
