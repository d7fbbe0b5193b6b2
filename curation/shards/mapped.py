"""One shard file, memory-mapped: its record batches as NumPy views without a copy.

Opening reads the footer and the schema only. Vectors stay on disk until they are used. The views
are read-only.
"""

import dataclasses
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64, Shaped

from curation.shards.schema import EmbeddingSpec, arrow_schema, scale_column, spec_of

REMEDY = (
    "delete that file and run the embed step again (only that shard is made again), or restore it"
)
MAPS_REMEDY = "embed again with larger source.part_rows, or raise that limit"
MOST_MAPS = Path("/proc/sys/vm/max_map_count")
MAPS = Path("/proc/self/maps")


class ShardError(ValueError):
    """A shard or manifest that cannot be used. The message has file, rule and remedy."""


class MappedShard:
    """The record batches of one shard.

    Raises ShardError when the file is not the shard that the manifest describes.
    """

    def __init__(self, path: Path, spec: EmbeddingSpec, rows: int) -> None:
        self.spec = spec
        self.batches = _open_batches(path, spec)
        sizes = [batch.num_rows for batch in self.batches]
        self.offsets: Int64[np.ndarray, " batches_plus_1"] = np.cumsum([0, *sizes], dtype=np.int64)
        if self.offsets[-1] != rows:
            raise ShardError(
                f"{path} has {self.offsets[-1]} rows: the manifest says {rows}; {REMEDY}"
            )
        self._views: dict[str, list[np.ndarray]] = {}

    def column(self, name: str, start: int, stop: int) -> Iterator[pa.Array]:
        """Slices of a column that together are the rows `start` to `stop`, as far as they exist.

        Rows are numbered from 0 in this shard; `start` may be negative.
        """
        for before, batch in zip(self.offsets[:-1].tolist(), self.batches, strict=True):
            first = max(start - before, 0)
            last = min(stop - before, batch.num_rows)
            if first < last:
                yield batch.column(name).slice(first, last - first)

    def views(self, column: str) -> list[Shaped[np.ndarray, "n t d"]]:
        """One view per record batch of a vector column, in the stored format, read-only."""
        shape = (-1, self.spec.num_tokens(column), self.spec.width(column))
        return self._cached_views(column, shape)

    def scales(self, column: str) -> list[Float32[np.ndarray, "n t"]]:
        """One view per record batch of the int8 scales of a column."""
        return self._cached_views(scale_column(column), (-1, self.spec.num_tokens(column)))

    def _cached_views(self, column: str, shape: tuple[int, ...]) -> list[np.ndarray]:
        if column not in self._views:
            self._views[column] = [_view(batch.column(column), shape) for batch in self.batches]
        return self._views[column]


def check_maps(folder: Path, num_shards: int, maps_to_come: int) -> None:
    """Raise ShardError when this process may not map that many shards more.

    The kernel limits the number of memory maps of a process. `maps_to_come` are the shards that
    readers of other folders will still map.
    """
    used, most = _num_maps()
    if used + maps_to_come + num_shards > most:
        raise ShardError(
            f"{folder} has {num_shards} shards, each a memory map; this process has {used} maps "
            f"and {maps_to_come} shards of other folders to map: the kernel allows {most} maps "
            f"(vm.max_map_count); {MAPS_REMEDY}"
        )


def _num_maps() -> tuple[int, int]:
    """(number of memory maps of this process, number that the kernel allows)."""
    return MAPS.read_bytes().count(b"\n"), int(MOST_MAPS.read_text())


def _open_batches(path: Path, spec: EmbeddingSpec) -> list[pa.RecordBatch]:
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    except (OSError, pa.ArrowInvalid) as error:
        # Arrow does not set errno, so the text of the error has to tell.
        if os.strerror(errno.ENOMEM) in str(error):
            used, most = _num_maps()
            raise ShardError(
                f"{path} cannot be mapped ({error}); this process has {used} memory maps: the "
                f"kernel allows {most} (vm.max_map_count), and an address space as large as all "
                f"shards (ulimit -v); {MAPS_REMEDY}"
            ) from error
        raise ShardError(f"{path} is not a readable Arrow file ({error}): {REMEDY}") from error

    expected = arrow_schema(spec)
    missing = [name for name in expected.names if name not in reader.schema.names]
    if missing:
        raise ShardError(
            f"{path} has no column {missing} (columns {reader.schema.names}): {REMEDY}"
        )
    if differing := _differing(spec_of(reader.schema), spec):
        raise ShardError(
            f"{path} is not what the manifest describes ({', '.join(differing)}): {REMEDY}"
        )
    if not reader.schema.equals(expected):
        raise ShardError(
            f"{path} has columns of other types than the manifest describes ({reader.schema}): "
            f"{REMEDY}"
        )

    return batches


def _differing(own: EmbeddingSpec, described: EmbeddingSpec) -> list[str]:
    """One phrase per field in which a shard's own spec is not the one of its manifest."""
    of_shard = dataclasses.asdict(own)
    return [
        f"{name} is {of_shard[name]!r} and not {value!r}"
        for name, value in dataclasses.asdict(described).items()
        if value != of_shard[name]
    ]


def _view(column: pa.Array, shape: tuple[int, ...]) -> np.ndarray:
    """A column as a NumPy view without a copy."""
    # `flatten` respects the offset of a sliced column; `.values` does not.
    flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
    return flat.to_numpy(zero_copy_only=True).reshape(shape)
