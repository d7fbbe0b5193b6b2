"""Write one Arrow shard: rows in, a file out, committed by a rename.

The bytes depend on the rows alone, never on how they were batched.
"""

import errno
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.files import replacing, sha256_file
from curation.shards.manifest import ShardEntry
from curation.shards.schema import KEY, EmbeddingSpec, arrow_schema, record_batch

BATCH_BYTES = 12_000_000
BATCH_ROWS = 8192


def write_shard(path: Path, spec: EmbeddingSpec, batches: Iterable[Mapping[str, Any]]) -> ShardEntry:
    """Write one shard atomically and return its manifest entry.

    A batch maps every column to its values: vectors as float32 "n t d" (caption embeddings "n d"), encoded here;
    strings, captions and thumbnails as lists; hashes as uint64. The bytes depend on the rows only, never on how they
    were batched.
    """
    try:
        with replacing(path) as temporary:
            with temporary.open("wb") as file:
                rows = _write_batches(file, spec, batches)
            return ShardEntry(path.name, rows, temporary.stat().st_size, sha256_file(temporary))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        message = (
            f"no space left on the disk of {path.parent} while writing {path.name}: a row needs about "
            f"{spec.row_bytes()} bytes; free space or choose another workspace, then run again (finished shards stay)"
        )
        raise OSError(errno.ENOSPC, message) from error


def _write_batches(file: Any, spec: EmbeddingSpec, batches: Iterable[Mapping[str, Any]]) -> int:
    rows, rows_per_batch = 0, max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, spec.row_bytes())))
    with pa.ipc.new_file(file, arrow_schema(spec)) as writer:
        for batch in _regroup(batches, rows_per_batch):
            writer.write_batch(record_batch(spec, batch))
            rows += len(batch[KEY])
    return rows


def _regroup(batches: Iterable[Mapping[str, Any]], size: int) -> Iterator[dict[str, Any]]:
    """Batches of `size` rows, the last one shorter, cut before Arrow: its slices keep neighbours as padding."""
    pending: list[Mapping[str, Any]] = []
    waiting = 0
    for batch in batches:
        pending.append(batch)
        waiting += len(batch[KEY])
        if waiting >= size:
            joined = _joined(pending)
            for start in range(0, waiting - size + 1, size):
                yield {name: values[start : start + size] for name, values in joined.items()}
            waiting %= size
            pending = [{name: values[len(values) - waiting :] for name, values in joined.items()}]
    if waiting:
        yield _joined(pending)


def _joined(batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    joined = {}
    for name, first in batches[0].items():
        parts = [batch[name] for batch in batches]
        joined[name] = np.concatenate(parts) if isinstance(first, np.ndarray) else list(chain.from_iterable(parts))
    return joined
