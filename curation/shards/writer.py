"""Writing one Arrow shard: batches in, a file out, committed by a rename.

The bytes of the file depend on the rows alone, never on how the rows were batched.
"""

import errno
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.files import put_in_place, sha256_file, temporary_beside
from curation.shards.manifest import ShardEntry
from curation.shards.schema import KEY, EmbeddingSpec, arrow_schema, record_batch

# Size of a record batch, whichever comes first. Reading was fastest with about 12 MB for tokens and
# 8,000 rows for pooled vectors.
BATCH_BYTES = 12_000_000
BATCH_ROWS = 8192


def write_shard(
    path: Path, spec: EmbeddingSpec, batches: Iterable[Mapping[str, Any]]
) -> ShardEntry:
    """Write all batches as one shard and return its manifest entry."""
    with ShardWriter(path, spec) as writer:
        for batch in batches:
            writer.append(batch)
        return writer.commit()


class ShardWriter:
    """Writes the batches of one shard. `commit` gives the file its name; without it, none remains.

    A batch maps every column to its values: vectors as float32 "n t d" (caption embeddings "n d"),
    which are encoded here; strings, captions and thumbnails as lists; hashes as uint64. A full disk
    raises an OSError that names the remedy.
    """

    def __init__(self, path: Path, spec: EmbeddingSpec) -> None:
        self._path = path
        self._spec = spec
        self._temporary = temporary_beside(path)
        self._rows_per_batch = max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, spec.row_bytes())))
        self._num_rows = 0
        self._pending: list[Mapping[str, Any]] = []
        self._num_pending = 0
        self._is_committed = False

    def __enter__(self) -> "ShardWriter":
        with self._full_disk_named():
            self._file = self._temporary.open("wb")
            self._arrow = pa.ipc.new_file(self._file, arrow_schema(self._spec))
        return self

    def append(self, batch: Mapping[str, Any]) -> None:
        """Add rows. They are written as soon as there are enough of them for a record batch."""
        self._pending.append(batch)
        self._num_pending += len(batch[KEY])
        if self._num_pending < self._rows_per_batch:
            return

        # Rows are cut into record batches before they become Arrow arrays: a slice of an Arrow
        # array is written with parts of its neighbors.
        size = self._rows_per_batch
        joined = _joined(self._pending)
        num_left = self._num_pending % size
        for start in range(0, self._num_pending - num_left, size):
            self._write({name: values[start : start + size] for name, values in joined.items()})

        self._pending = [
            {name: values[len(values) - num_left :] for name, values in joined.items()}
        ]
        self._num_pending = num_left

    def commit(self) -> ShardEntry:
        """Write the remaining rows, give the file its name, and return its manifest entry."""
        if self._num_pending:
            self._write(_joined(self._pending))

        with self._full_disk_named():
            self._arrow.close()
            self._file.close()
            entry = ShardEntry(
                self._path.name,
                self._num_rows,
                self._temporary.stat().st_size,
                sha256_file(self._temporary),
            )
            put_in_place(self._temporary, self._path)

        self._is_committed = True
        return entry

    def __exit__(self, *error: object) -> None:
        if self._is_committed:
            return
        # On a full disk, closing fails too. The temporary file is removed in any case.
        with suppress(OSError):
            self._arrow.close()
        with suppress(OSError):
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _write(self, batch: Mapping[str, Any]) -> None:
        with self._full_disk_named():
            self._arrow.write_batch(record_batch(self._spec, batch))
        self._num_rows += len(batch[KEY])

    @contextmanager
    def _full_disk_named(self) -> Iterator[None]:
        """Turn the error of a full disk into one that names the remedy."""
        try:
            yield
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            message = (
                f"no space left on the disk of {self._path.parent} while writing "
                f"{self._path.name}: a row needs about {self._spec.row_bytes()} bytes; free space "
                "or choose another workspace, then run again (finished shards stay)"
            )
            raise OSError(errno.ENOSPC, message) from error


def _joined(batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows of all batches as one batch."""
    joined = {}
    for name, first in batches[0].items():
        parts = [batch[name] for batch in batches]
        joined[name] = (
            np.concatenate(parts)
            if isinstance(first, np.ndarray)
            else list(chain.from_iterable(parts))
        )
    return joined
