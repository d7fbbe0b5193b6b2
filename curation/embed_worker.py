"""One process of the embed step: loads the backbone once, then turns parts into shards.

Decoding runs in threads beside the forward pass when the worker has a GPU or several CPUs; on one CPU it runs in line,
which is faster there. Rows keep their order either way, so the bytes of a shard depend on its part alone.
"""

import json
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from cluster.files import write_atomic
from cluster.machine import settled_precision
from curation.config import EmbedConfig
from curation.encoders.backbone import Backbone, load_backbone, pool_patches
from curation.encoders.captions import CaptionEncoder
from curation.encoders.views import draft_px, random_view
from curation.pairs.images import ImageError, bytes_hash, decode, perceptual_hash, pixel_hash, thumbnail
from curation.pairs.sources import Part, Reject, Sample, read_part
from curation.pairs.webdataset import TarWalk
from curation.shards.schema import (
    BYTES_HASH,
    CAPTION_EMBEDDING,
    CAPTIONS,
    CLS,
    KEY,
    PATCHES,
    PERCEPTUAL_HASH,
    PIXEL_HASH,
    REGISTERS,
    SOURCE,
    THUMBNAIL,
    EmbeddingSpec,
)
from curation.shards.writer import write_shard

EARLY_PARTS = 8
EARLY_ROWS = 256


@dataclass(frozen=True)
class Task:
    """One part of the source and the shard it becomes; the digest says with which data and settings."""

    index: int
    part: Part
    digest: str

    @property
    def shard(self) -> str:
        return f"shard-{self.index:05d}.arrow"

    @property
    def sidecar(self) -> str:
        return f"shard-{self.index:05d}.json"


@dataclass(frozen=True)
class Prepared:
    """A decoded pair, ready for the backbone."""

    sample: Sample
    pixels: Float[Tensor, "3 s s"]
    hashes: tuple[int, int, int]
    thumbnail: bytes


class EmbedWorker:
    """Turns parts into shards and their sidecars."""

    def __init__(self, config: EmbedConfig, out: Path) -> None:
        self.config = config
        self.out = out
        self.backbone = load_backbone(config.backbone, settled_precision(config.precision))
        self.encoder = CaptionEncoder(config.captions)
        self.spec = embedding_spec(config, self.backbone, self.encoder)
        self.walks = dict[str, TarWalk]()

    def embed(self, task: Task) -> dict[str, Any]:
        """Write the task's shard, then its sidecar, which is returned; a part that is mostly bad is left unfinished."""
        reading = _Reading(self, task)
        record: dict[str, Any] = {"task": task.digest, "part": task.part.name, "is_stopped": False}
        try:
            entry = write_shard(self.out / task.shard, self.spec, reading.batches())
        except _TooManyRejects:
            return record | reading.counts() | {"is_stopped": True}
        record |= reading.counts() | {"entry": asdict(entry), "spec": asdict(self.spec)}
        write_atomic(self.out / task.sidecar, json.dumps(record, indent=1))
        return record

    def prepare(self, sample: Sample) -> Prepared | Reject:
        """Decode one image; a bad one is a reject."""
        side, view = self.config.backbone.image_size, self.config.view
        try:
            image = decode(sample.image, draft_px=draft_px(side, self.config.augment.least_area if view else 1.0))
        except ImageError as error:
            return Reject(sample.key, sample.source, error.reason, error.detail)
        hashes = bytes_hash(sample.image), pixel_hash(image), perceptual_hash(image)
        if view:
            draw = bytes_hash(f"{view} {sample.key}".encode())
            pixels = self.backbone.normalize(random_view(image, side, self.config.augment, draw))
        else:
            pixels = self.backbone.preprocess(image)
        return Prepared(sample, pixels, hashes, thumbnail(image, self.config.thumbnail_px))

    def columns(self, batch: Sequence[Prepared]) -> dict[str, Any]:
        """The columns of one batch of rows."""
        samples = [row.sample for row in batch]
        hashes = np.array([row.hashes for row in batch], np.uint64)
        columns: dict[str, Any] = {
            KEY: [sample.key for sample in samples],
            SOURCE: [sample.source for sample in samples],
            CAPTIONS: [list(sample.captions) for sample in samples],
            THUMBNAIL: [row.thumbnail for row in batch],
            BYTES_HASH: hashes[:, 0],
            PIXEL_HASH: hashes[:, 1],
            PERCEPTUAL_HASH: hashes[:, 2],
            CAPTION_EMBEDDING: _mean_embeddings(self.encoder, [sample.captions for sample in samples]),
        }
        return columns | self._features(torch.stack([row.pixels for row in batch]))

    @torch.inference_mode()
    def _features(self, images: Float[Tensor, "b 3 s s"]) -> dict[str, Float32[np.ndarray, "b t d"]]:
        cls, registers, patches = self.backbone(images)
        grid = self.backbone.geometry.grid
        if self.spec.grid != grid:
            patches = pool_patches(patches, grid, self.spec.grid)
        named = {CLS: cls[:, None], REGISTERS: registers, PATCHES: patches}
        return {name: named[name].cpu().numpy() for name in named if name in self.spec.vector_columns()}


def embedding_spec(config: EmbedConfig, backbone: Backbone, encoder: CaptionEncoder) -> EmbeddingSpec:
    """What the shards of this config hold; ValueError when the grid asked for is finer than the backbone's."""
    geometry = backbone.geometry
    if config.content == "grid" and config.grid > min(geometry.grid):
        raise ValueError(
            f"grid={config.grid} is finer than the backbone's {geometry.grid}: lower it, use content=tokens, or raise "
            "backbone.image_size"
        )
    stored_grid = {"pooled": (1, 1), "grid": (config.grid, config.grid), "tokens": geometry.grid}[config.content]
    return EmbeddingSpec(
        backbone=config.backbone.name,
        digest=config.backbone.digest,
        description=backbone.description,
        image_size=geometry.image_size,
        dim=geometry.dim,
        num_registers=0 if config.content == "pooled" else geometry.num_registers,
        grid=stored_grid,
        content=config.content,
        dtype=config.dtype,
        caption_encoder=encoder.name,
        caption_dim=encoder.dim,
    )


def _mean_embeddings(encoder: CaptionEncoder, captions: Sequence[tuple[str, ...]]) -> Float32[np.ndarray, "b d"]:
    """One unit vector a row: the mean of its captions' vectors."""
    vectors = encoder.encode([caption for row in captions for caption in row])
    starts = np.cumsum([0, *(len(row) for row in captions[:-1])])
    sums = np.add.reduceat(vectors, starts, axis=0)
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), np.float32(1e-12))


class _TooManyRejects(Exception):
    """Most of a part is bad: not worth going on."""


class _Reading:
    """One pass over a part: batches of columns come out, rejects are counted on the way."""

    def __init__(self, worker: EmbedWorker, task: Task) -> None:
        self.worker = worker
        self.task = task
        self.read = 0
        self.captions = 0
        self.rejects: list[Reject] = []

    def counts(self) -> dict[str, Any]:
        rejects = [asdict(reject) for reject in self.rejects]
        return {"read": self.read, "captions": self.captions, "num_rejects": len(rejects), "rejects": rejects}

    def batches(self) -> Iterator[dict[str, Any]]:
        batch: list[Prepared] = []
        for row in self._rows():
            self.read += 1
            if isinstance(row, Reject):
                self.rejects.append(row)
                self._check_early()
                continue
            self.captions += len(row.sample.captions)
            batch.append(row)
            if len(batch) == self.worker.config.batch_size:
                yield self.worker.columns(batch)
                batch = []
        if batch:
            yield self.worker.columns(batch)

    def _check_early(self) -> None:
        """In the first parts, stop at the square root of the budget (10 % for 1 %): wrong data shows at once."""
        limit = math.sqrt(self.worker.config.error_budget) * self.read
        if self.task.index < EARLY_PARTS and self.read >= EARLY_ROWS and len(self.rejects) > limit:
            raise _TooManyRejects

    def _rows(self) -> Iterator[Prepared | Reject]:
        worker = self.worker
        items = read_part(worker.config.source, self.task.part, worker.walks)
        threads = worker.config.resources.threads
        if worker.backbone.device.type == "cpu" and threads == 1:
            return (item if isinstance(item, Reject) else worker.prepare(item) for item in items)
        return _in_threads(worker, items, threads)


def _in_threads(worker: EmbedWorker, items: Iterable[Sample | Reject], threads: int) -> Iterator[Prepared | Reject]:
    """Decode two batches ahead of the forward pass, in order."""
    ahead: deque[Reject | Future[Prepared | Reject]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as executor:
        for item in items:
            ahead.append(item if isinstance(item, Reject) else executor.submit(worker.prepare, item))
            if len(ahead) > 2 * worker.config.batch_size:
                yield _result(ahead.popleft())
        while ahead:
            yield _result(ahead.popleft())


def _result(item: Reject | Future[Prepared | Reject]) -> Prepared | Reject:
    return item if isinstance(item, Reject) else item.result()
