"""Measures on this machine whether to store tokens or to run the backbone in each epoch.

The records have the recipe's content. The embed step's writer writes them and the loader's function
reads them, so that the rates are those of training. The backbone has random weights, which take the
same time. All of it takes some seconds.
"""

import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from rich.console import Console

from cluster.machine import choose_precision, measure_device, settle, settled_precision
from curation.config import EmbedConfig
from curation.embed_worker import embedding_spec
from curation.encoders.backbone import Backbone, random_backbone
from curation.encoders.captions import CaptionEncoder
from curation.encoders.config import CaptionConfig
from curation.shards.manifest import Manifest, write_manifest
from curation.shards.reader import EmbeddingShards
from curation.shards.schema import (
    CAPTIONS,
    CLS,
    HASHES,
    KEY,
    PATCHES,
    PERCEPTUAL_BYTES,
    PERCEPTUAL_HASH,
    REGISTERS,
    SOURCE,
    THUMBNAIL,
    EmbeddingSpec,
)
from curation.shards.writer import write_shard

SAMPLE_BYTES = 128_000_000  # written and read in a second or so
MOST_ROWS = 32_768  # of small records, which would otherwise take long to make
LEAST_S = 1.0  # a rate is measured for at least this long
READ_ROWS = 256  # per batch


@dataclass(frozen=True)
class Rates:
    """Rows per second of one process on this machine."""

    row_bytes: int
    write: float
    read_disk: float
    """Shuffled rows that are not in the page cache."""
    read_memory: float
    """Shuffled rows that are in the page cache."""
    backbone: float
    """Images per second through the backbone."""

    @property
    def break_even_epochs(self) -> float:
        """Number of epochs from which storing tokens takes less time; infinity: never.

        The backbone runs once in either case, since curation needs its global features. Each epoch
        saves 1 / backbone - 1 / read_disk seconds per pair, and writing costs 1 / write once. At
        100 written, 50 read and 10 encoded pairs per second, that is 0.01 / (0.1 - 0.02) = 0.125.
        """
        saved_s = 1 / self.backbone - 1 / self.read_disk
        return (1 / self.write) / saved_s if saved_s > 0 else math.inf


def print_rates(config: EmbedConfig, workspace: Path, console: Console) -> None:
    """Measure the rates, and print them with the arithmetic."""
    workspace.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".measure-", dir=workspace) as folder:
        rates = measure(config, Path(folder))

    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{torch.get_num_threads()} CPU threads"
    )
    console.print(
        f"\nMeasured here, one process, {device}: the tokens of a pair as {config.content} "
        f"{config.dtype}"
    )

    for name, rate in (
        ("write", rates.write),
        ("read from disk, shuffled", rates.read_disk),
        ("read from memory, shuffled", rates.read_memory),
    ):
        console.print(
            f"   {name:<28}{rate:>12,.0f} pairs/s   {rate * rates.row_bytes / 1e9:.3g} GB/s"
        )

    console.print(
        f"   {'backbone':<28}{rates.backbone:>12,.1f} images/s, without reading and decoding them"
    )
    console.print(verdict(rates), soft_wrap=True)


def verdict(rates: Rates) -> str:
    """Which way is faster, and from how many epochs on, in milliseconds per pair."""
    write, read, encode = (1000 / rate for rate in (rates.write, rates.read_disk, rates.backbone))
    costs = (
        f"   per pair: store {write:.3g} ms once + read {read:.3g} ms per epoch, or run the "
        f"backbone {encode:.3g} ms per epoch"
    )
    if math.isinf(rates.break_even_epochs):
        return (
            f"{costs}\n   the backbone is faster than reading: use --train.live.enabled with "
            "--embed.content pooled"
        )
    return (
        f"{costs}\n   reading is {encode / read:.3g} times faster; storing pays after "
        f"{write:.3g} / ({encode:.3g} - {read:.3g}) = {rates.break_even_epochs:.3g} epochs"
    )


def measure(config: EmbedConfig, folder: Path) -> Rates:
    """The rates of an embed config; a sample is written to `folder`, on the disk to be measured."""
    # The backbone runs in this process, on its GPU if it has one.
    device = measure_device("cuda" if torch.cuda.is_available() else "cpu")
    config = settle(config, {"precision": choose_precision(device).value})
    config = replace(config, captions=CaptionConfig())
    backbone = random_backbone(config.backbone, settled_precision(config.precision))
    spec = embedding_spec(config, backbone, CaptionEncoder(config.captions))
    rows = max(1, min(MOST_ROWS, SAMPLE_BYTES // spec.row_bytes()))
    write = written(spec, folder, rows)

    # First from the disk, then the same rows again, from the page cache.
    order = np.random.default_rng(0).permutation(rows)
    forget(folder)
    cold = gathered(EmbeddingShards(folder), order)
    shards = EmbeddingShards(folder)
    warm = rate_of(lambda: gathered(shards, order), rows)

    return Rates(spec.row_bytes(), write, rows / cold, warm, images_per_s(config, backbone))


def written(spec: EmbeddingSpec, folder: Path, rows: int) -> float:
    """Write a shard of random rows to the disk; rows per second, without the time to make them."""
    values = {
        name: np.random.default_rng(0).standard_normal(
            (rows, spec.num_tokens(name), spec.width(name)), np.float32
        )
        for name in spec.vector_columns()
    }
    columns = values | {
        KEY: [f"{row:09d}" for row in range(rows)],
        SOURCE: [""] * rows,
        CAPTIONS: [[""]] * rows,
        THUMBNAIL: [b""] * rows,
        PERCEPTUAL_HASH: [bytes(PERCEPTUAL_BYTES * spec.num_hashes)] * rows,
        **dict.fromkeys(HASHES, np.zeros(rows, np.uint64)),
    }
    started_s = time.perf_counter()
    entry = write_shard(folder / "shard-00000.arrow", spec, [columns])
    seconds = time.perf_counter() - started_s
    write_manifest(folder, Manifest(spec, (entry,)))

    return rows / seconds


def forget(folder: Path) -> None:
    """Drop a folder's files from the page cache, so that the next read comes from the disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())  # pages that are not yet on the disk cannot be dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def gathered(shards: EmbeddingShards, order: Int64[np.ndarray, " n"]) -> float:
    """Seconds to gather all rows in a given order, one batch at a time, as the loader does."""
    columns = [name for name in (CLS, REGISTERS, PATCHES) if name in shards.spec.vector_columns()]
    started_s = time.perf_counter()
    for start in range(0, len(order), READ_ROWS):
        for column in columns:
            shards.gather_stored(order[start : start + READ_ROWS], column)
    return time.perf_counter() - started_s


def images_per_s(config: EmbedConfig, backbone: Backbone) -> float:
    """Images per second through the backbone, in the embed step's precision."""
    side = config.backbone.image_size
    count = config.batch_size if backbone.device.type == "cuda" else 8
    images = torch.randn(count, 3, side, side, device=backbone.device)

    @torch.inference_mode()
    def encode() -> None:
        float(backbone(images).cls.sum())  # reading a number waits for the device

    encode()  # the first call sets up kernels and memory
    return rate_of(encode, count)


def rate_of(work: Callable[[], object], count: int) -> float:
    """Items per second of work on `count` items, repeated for at least LEAST_S."""
    started_s = time.perf_counter()
    done = 0
    while not done or time.perf_counter() - started_s < LEAST_S:
        work()
        done += count
    return done / (time.perf_counter() - started_s)
