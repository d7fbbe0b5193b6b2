"""Rows that an earlier run has embedded, so that repaired data need not be computed in full again.

A row is copied if its key, its captions and the bytes of its image are the same. It does not matter
what was repaired, or how: a stale row cannot be copied.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from curation.pairs.images import bytes_hash
from curation.pairs.sample import Sample
from curation.shards.codec import decode_tokens
from curation.shards.mapped import MappedShard
from curation.shards.schema import (
    BYTES_HASH,
    CAPTION_EMBEDDING,
    CAPTIONS,
    HASHES,
    KEY,
    PERCEPTUAL_BYTES,
    PERCEPTUAL_HASH,
    THUMBNAIL,
    EmbeddingSpec,
)


class EarlierShard(NamedTuple):
    """Where the shard of an earlier run lies."""

    path: Path
    num_rows: int


def earlier_shards(out: Path, settings: str) -> dict[str, EarlierShard]:
    """Shards with rows of these settings, in `out` and in the folders beside it, by part name.

    Of several shards of a part, the one in `out` comes first, then the newest.
    """
    folders = [folder for folder in out.parent.iterdir() if folder.is_dir() and folder != out]
    newest_first = sorted(folders, key=lambda folder: folder.stat().st_mtime_ns, reverse=True)
    by_part: dict[str, EarlierShard] = {}

    for folder in (out, *newest_first):
        for sidecar in sorted(folder.glob("shard-*.json")):
            record = json.loads(sidecar.read_text())
            shard = sidecar.with_suffix(".arrow")
            # Folders come in order of preference, so the first shard of a part stays.
            is_whole = shard.is_file() and shard.stat().st_size == record["entry"]["bytes"]
            if record.get("settings") == settings and is_whole:
                by_part.setdefault(record["part"], EarlierShard(shard, record["entry"]["rows"]))

    return by_part


class EmbeddedRows:
    """The rows of one earlier shard."""

    def __init__(self, shard: EarlierShard, spec: EmbeddingSpec) -> None:
        """Raises ShardError when the file is damaged."""
        self.spec = spec
        self._shard = MappedShard(shard.path, spec, shard.num_rows)
        self._row_of = {key: row for row, key in enumerate(self._column(KEY))}

    def find(self, sample: Sample) -> int | None:
        """The row of a sample; None if it is new or has changed."""
        row = self._row_of.get(sample.key)
        if row is None or self._captions[row] != list(sample.captions):
            return None
        return row if self._hashes[BYTES_HASH][row] == bytes_hash(sample.image) else None

    def columns(self, rows: Int64[np.ndarray, " n"]) -> dict[str, Any]:
        """The columns of these rows except key, source and captions, as ShardWriter takes them."""
        thumbnails = self._thumbnails
        columns: dict[str, Any] = {THUMBNAIL: [thumbnails[row] for row in rows]}
        columns |= {name: values[rows] for name, values in self._hashes.items()}
        columns[PERCEPTUAL_HASH] = self._perceptual_hashes[rows]

        vectors = {name: self._vectors(name, rows) for name in self.spec.vector_columns()}
        return columns | vectors | {CAPTION_EMBEDDING: vectors[CAPTION_EMBEDDING][:, 0]}

    def _vectors(self, name: str, rows: Int64[np.ndarray, " n"]) -> np.ndarray:
        """Vectors of a column as float32 "n t d"; storing them again gives the same bits."""
        # The record batch of each row, by its offsets. int8 has a scale per token, others none.
        dtype = self.spec.dtype_of(name)
        views = self._shard.views(name)
        scales = self._shard.scales(name) if dtype == "int8" else [None] * len(views)
        batches = np.searchsorted(self._shard.offsets, rows, side="right") - 1
        parts = []

        for row, batch in zip(rows.tolist(), batches.tolist(), strict=True):
            local = slice(row - self._shard.offsets[batch], row - self._shard.offsets[batch] + 1)
            scale = scales[batch]
            parts.append(
                decode_tokens(views[batch][local], None if scale is None else scale[local], dtype)
            )

        return np.concatenate(parts)

    @cached_property
    def _captions(self) -> list[list[str]]:
        return self._column(CAPTIONS)

    @cached_property
    def _thumbnails(self) -> list[bytes]:
        return self._column(THUMBNAIL)

    @cached_property
    def _hashes(self) -> dict[str, np.ndarray]:
        return {name: np.array(self._column(name), np.uint64) for name in HASHES}

    @cached_property
    def _perceptual_hashes(self) -> UInt8[np.ndarray, "rows hashes bytes"]:
        """The hashes of each image and of its altered forms, as many as the spec says."""
        num_hashes = self.spec.num_hashes
        stored = b"".join(self._column(PERCEPTUAL_HASH)) if num_hashes else b""
        return np.frombuffer(stored, np.uint8).reshape(
            len(self._row_of), num_hashes, PERCEPTUAL_BYTES
        )

    def _column(self, name: str) -> list[Any]:
        return [value for batch in self._shard.batches for value in batch.column(name).to_pylist()]


def interleaved(
    parts: Sequence[tuple[Int64[np.ndarray, " n"], dict[str, Any]]],
) -> dict[str, Any]:
    """The columns of several groups of rows as those of one batch.

    `parts` has the places of each group's rows in the batch, and their columns.

    >>> interleaved([([0, 2], {"key": ["a", "c"]}), ([1], {"key": ["b"]})])
    {"key": ["a", "b", "c"]}
    """
    # Places are a permutation; argsort inverts it: the row of each place among the groups' rows.
    order = np.argsort(np.concatenate([places for places, _ in parts]), kind="stable")
    joined: dict[str, Any] = {}
    for name, first in parts[0][1].items():
        values = [columns[name] for _, columns in parts]
        if isinstance(first, np.ndarray):
            joined[name] = np.concatenate(values)[order]
        else:
            flat = [value for group in values for value in group]
            joined[name] = [flat[index] for index in order]

    return joined
