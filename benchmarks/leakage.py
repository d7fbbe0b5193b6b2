"""The search for evaluation images in a large pool: CPU seconds, memory, and whether it finds what
was hidden there.

Vectors lie around random centers and hashes are random bits. Among the rows of the pool are copies
of evaluation images: one kind with a hash of which ten bits differ and another vector, one with the
same vector and another hash. The memory is the anonymous memory of this process at its peak, beyond
that before the search; what the kernel maps of the shards is not counted.

    python -m benchmarks.leakage --rows 1000000 --images 50000
"""

import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
import tyro
from jaxtyping import Float32, UInt8

from benchmarks.cost import device_name
from cluster.threads import limit_threads
from curation.choice.config import LeakageConfig
from curation.choice.leakage import find_leakage
from curation.clusters.scan import InProcess, Points
from curation.clusters.vectors import ShardVectors, to_unit
from curation.shards.manifest import Manifest, write_manifest
from curation.shards.reader import EmbeddingShards
from curation.shards.schema import (
    BYTES_HASH,
    CAPTIONS,
    CLS,
    KEY,
    PATCHES,
    PERCEPTUAL_BYTES,
    PERCEPTUAL_HASH,
    PIXEL_HASH,
    SOURCE,
    THUMBNAIL,
    EmbeddingSpec,
)
from curation.shards.writer import write_shard

SHARD_ROWS = 1 << 14
CENTERS = 2000
HIDDEN = 500  # of each kind
NEAR_BITS = 10
NUM_HASHES = 2  # of an image and of one form, to keep the shards small
SAMPLE_S = 0.05


@dataclass(frozen=True)
class LeakageBenchmarkConfig:
    """What is searched."""

    rows: int = 100_000
    """Images of the pool."""
    images: int = 5_000
    """Evaluation images."""
    dim: int = 384
    """Width of the vectors."""
    threads: int = 1
    """Threads."""


@dataclass(frozen=True)
class Images:
    """Vectors and hashes of some images."""

    vectors: Float32[np.ndarray, "n d"]
    hashes: UInt8[np.ndarray, "n bytes"]

    def __len__(self) -> int:
        return len(self.vectors)


def main(config: LeakageBenchmarkConfig) -> None:
    """Print the time and memory of the search, and how many of the hidden copies it found."""
    limit_threads(config.threads)
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((CENTERS, config.dim), dtype=np.float32)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images = _draw(rng, centers, config.images)
        other = _write(folder / "evaluation", images, 0)
        pool = _draw(rng, centers, config.rows)
        by_hash, by_vector = np.split(rng.permutation(config.rows)[: 2 * HIDDEN], 2)
        pool.hashes[by_hash] = _near(rng, images.hashes[:HIDDEN])
        pool.vectors[by_vector] = images.vectors[:HIDDEN]
        shards = _write(folder / "pool", pool, config.images)
        del pool, images

        points = Points(ShardVectors(shards.folder, CLS, unit=True), InProcess())
        with PeakMemory() as memory:
            cpu_s = time.process_time()
            leaks = find_leakage(shards, points, np.arange(config.rows), other, LeakageConfig())
            cpu_s = time.process_time() - cpu_s

    rows = np.concatenate([finding.pairs.right for finding in leaks.findings])
    hidden = np.concatenate([by_hash, by_vector])
    print(
        f"{config.rows:,} images of the pool, {config.images:,} evaluation images, width "
        f"{config.dim}: {cpu_s:.1f} CPU s, {memory.peak_mb:.0f} MB; {np.isin(hidden, rows).mean():.1%} "
        f"of {len(hidden):,} hidden copies, {len(np.setdiff1d(rows, hidden))} others; "
        f"{device_name(torch.device('cpu'))}"
    )


def _draw(rng: np.random.Generator, centers: Float32[np.ndarray, "c d"], num: int) -> Images:
    vectors = rng.standard_normal((num, centers.shape[1]), dtype=np.float32)
    vectors += centers[rng.integers(0, len(centers), num)]
    return Images(to_unit(vectors), rng.integers(0, 256, (num, PERCEPTUAL_BYTES), np.uint8))


def _near(rng: np.random.Generator, hashes: UInt8[np.ndarray, "n bytes"]) -> np.ndarray:
    """The hashes with some bits changed."""
    bits = np.unpackbits(hashes, axis=1)
    changed = rng.random(bits.shape).argsort(axis=1)[:, :NEAR_BITS]
    np.put_along_axis(bits, changed, 1 - np.take_along_axis(bits, changed, axis=1), axis=1)
    return np.packbits(bits, axis=1)


def _write(folder: Path, images: Images, first_number: int) -> EmbeddingShards:
    """The images as embedding shards, with numbers as their keys, bytes and pixels."""
    folder.mkdir()
    dim = images.vectors.shape[1]
    spec = EmbeddingSpec(
        "synthetic", "0" * 64, "mixture", 14, dim, 0, (1, 1), "pooled", "float16", "", 0, NUM_HASHES
    )
    entries = []
    for start in range(0, len(images), SHARD_ROWS):
        rows = np.arange(start, min(start + SHARD_ROWS, len(images)))
        numbers = (first_number + rows).astype(np.uint64)
        vectors = images.vectors[rows]
        hashes = np.repeat(images.hashes[rows][:, None], NUM_HASHES, axis=1)
        columns: dict[str, object] = {
            KEY: [str(number) for number in numbers],
            SOURCE: [""] * len(rows),
            CAPTIONS: [[]] * len(rows),
            CLS: vectors,
            PATCHES: vectors,
            BYTES_HASH: numbers,
            PIXEL_HASH: numbers,
            PERCEPTUAL_HASH: [row.tobytes() for row in hashes],
            THUMBNAIL: [b""] * len(rows),
        }
        entries.append(write_shard(folder / f"shard-{start:09d}.arrow", spec, [columns]))

    write_manifest(folder, Manifest(spec, tuple(entries)))
    return EmbeddingShards(folder)


class PeakMemory:
    """The peak of this process's anonymous memory inside a context, beyond that at its start."""

    peak_mb = 0.0

    def __enter__(self) -> "PeakMemory":
        self._process = psutil.Process()
        self._before = self._anonymous()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            self.peak_mb = max(self.peak_mb, (self._anonymous() - self._before) / 2**20)

    def _anonymous(self) -> int:
        memory = self._process.memory_info()
        return memory.rss - memory.shared


if __name__ == "__main__":
    main(tyro.cli(LeakageBenchmarkConfig))
