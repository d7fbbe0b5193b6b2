"""One process of the embed step: it loads the backbone once, then turns parts into shards.

If the worker has a GPU or several cores, threads decode images during the forward pass. On one core
it decodes them in turn, which is faster there. Rows keep their order in both cases: the bytes of a
shard depend on its part alone.
"""

import json
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from cluster.files import write_atomic
from cluster.machine import settled_precision
from curation.config import EmbedConfig
from curation.embedded import EarlierShard, EmbeddedRows, interleaved
from curation.encoders.backbone import Backbone, load_backbone, store_features
from curation.encoders.captions import CaptionEncoder
from curation.encoders.views import draft_px, random_view
from curation.pairs.images import ImageError, bytes_hash, decode, pixel_hash, thumbnail
from curation.pairs.pdq import NUM_HASHES, pdq_hashes
from curation.pairs.sample import Part, Reject, Sample
from curation.pairs.sources import read_part
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
from curation.shards.writer import ShardWriter

ROWS_VERSION = 2
"""Version of the meaning of a row's columns. Raise it when rows of earlier versions must not be
copied any more.
"""

# Wrong settings show in the first rows: each of the first 8 parts stops early if too many of at
# least 256 rows are rejected.
EARLY_PARTS = 8
EARLY_ROWS = 256

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """One part of the source, and the shard that it becomes."""

    index: int
    part: Part
    digest: str
    """Digest of the part's data and of the settings of the shard."""
    settings: str = ""
    """Digest of the settings that the columns of a row depend on."""
    earlier: EarlierShard | None = None
    """The shard of this part from an earlier run with the same settings, whose unchanged rows are
    copied.
    """

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
    hashes: tuple[int, int]
    perceptual: UInt8[np.ndarray, "hashes bytes"]
    thumbnail: bytes


@dataclass(frozen=True)
class TakenOver:
    """A pair that an earlier run has embedded, and its row in the shard of that run."""

    sample: Sample
    row: int


@dataclass
class Account:
    """Counts of the rows of a part that were read so far, and the rejects among them."""

    read: int = 0
    captions: int = 0
    taken_over: int = 0
    rejects: list[Reject] = field(default_factory=list)

    def add(self, row: Prepared | TakenOver | Reject) -> None:
        """Count one row."""
        self.read += 1
        if isinstance(row, Reject):
            self.rejects.append(row)
        else:
            self.captions += len(row.sample.captions)
            self.taken_over += isinstance(row, TakenOver)

    def is_hopeless(self, error_budget: float) -> bool:
        """Whether so many rows were rejected that the data or the settings must be wrong.

        That is more than the square root of the budget: 10 % for a budget of 1 %.
        """
        return self.read >= EARLY_ROWS and len(self.rejects) > math.sqrt(error_budget) * self.read

    def as_json(self) -> dict[str, Any]:
        """The counts and all rejects, as the sidecar stores them."""
        rejects = [asdict(reject) for reject in self.rejects]
        return {
            "read": self.read,
            "captions": self.captions,
            "num_rejects": len(rejects),
            "rejects": rejects,
        }


class EmbedWorker:
    """Turns parts into shards and their sidecars."""

    def __init__(self, config: EmbedConfig, out: Path) -> None:
        self.config = config
        self.out = out
        self.backbone = load_backbone(config.backbone, settled_precision(config.precision))
        self.encoder = CaptionEncoder(config.captions)
        self.spec = embedding_spec(config, self.backbone, self.encoder)
        self.walks = dict[str, TarWalk]()

    def embed(self, task: Task) -> Generator[int, None, dict[str, Any]]:
        """Write the task's shard, then its sidecar, whose content is returned.

        Yields the number of rows that it has read so far, after each batch. A part of which too
        many rows are rejected is stopped early: it leaves no file, and its record has `is_stopped`.
        """
        record: dict[str, Any] = {
            "task": task.digest,
            "part": task.part.name,
            "precision": self.config.precision,
        }
        record["settings"] = task.settings
        account = Account()
        batch: list[Prepared | TakenOver] = []
        earlier = None if task.earlier is None else EmbeddedRows(task.earlier, self.spec)

        with ShardWriter(self.out / task.shard, self.spec) as writer:
            for row in self._rows(task.part, earlier):
                account.add(row)
                if not isinstance(row, Reject):
                    batch.append(row)
                elif task.index < EARLY_PARTS and account.is_hopeless(self.config.error_budget):
                    return record | account.as_json() | {"is_stopped": True}

                if len(batch) == self.config.batch_size:
                    writer.append(self._batch_columns(batch, earlier))
                    batch = []
                    yield account.read

            if batch:
                writer.append(self._batch_columns(batch, earlier))
            entry = writer.commit()

        record |= account.as_json() | {
            "is_stopped": False,
            "entry": asdict(entry),
            "spec": asdict(self.spec),
        }
        write_atomic(self.out / task.sidecar, json.dumps(record, indent=1))

        # Not in the sidecar, whose bytes depend on the part alone and not on earlier runs.
        return record | {"taken_over": account.taken_over}

    def _rows(
        self, part: Part, earlier: EmbeddedRows | None
    ) -> Iterator[Prepared | TakenOver | Reject]:
        """The rows of the part in order: decoded, copied from an earlier run, or rejected."""
        # On a processor with one core, threads would only take turns.
        samples = read_part(self.config.source, part, self.walks)
        threads = self.config.resources.threads
        if self.backbone.device.type == "cpu" and threads == 1:
            return (self._prepare_new(sample, earlier) for sample in samples)
        prepare = partial(self._prepare_new, earlier=earlier)
        return map_ahead(prepare, samples, threads, 2 * self.config.batch_size)

    def _prepare_new(
        self, sample: Sample | Reject, earlier: EmbeddedRows | None
    ) -> Prepared | TakenOver | Reject:
        """Decode an image that no earlier run has embedded."""
        if (
            earlier is not None
            and isinstance(sample, Sample)
            and (row := earlier.find(sample)) is not None
        ):
            return TakenOver(sample, row)
        return self.prepare(sample)

    def prepare(self, sample: Sample | Reject) -> Prepared | Reject:
        """Decode one image; a bad image becomes a reject. A reject is returned as it is."""
        if isinstance(sample, Reject):
            return sample

        side = self.config.backbone.image_size
        view = self.config.view
        try:
            image = decode(
                sample.image,
                draft_px=draft_px(side, self.config.augment.least_area if view else 1.0),
            )
        except ImageError as error:
            return Reject(sample.key, sample.source, error.reason, error.detail)

        hashes = bytes_hash(sample.image), pixel_hash(image)
        perceptual = pdq_hashes(image, self.spec.num_hashes)

        # A random view depends on its number and the key, not on the order of rows or workers.
        if view:
            draw = bytes_hash(f"{view} {sample.key}".encode())
            pixels = self.backbone.normalize(random_view(image, side, self.config.augment, draw))
        else:
            pixels = self.backbone.preprocess(image)

        return Prepared(
            sample, pixels, hashes, perceptual, thumbnail(image, self.config.thumbnail_px)
        )

    def _batch_columns(
        self, batch: Sequence[Prepared | TakenOver], earlier: EmbeddedRows | None
    ) -> dict[str, Any]:
        """The columns of one batch of rows, some of which may be copied from an earlier run."""
        # The backbone sees the new rows only; then both kinds go back to their places.
        new = [row for row in batch if isinstance(row, Prepared)]
        old = [row for row in batch if isinstance(row, TakenOver)]
        if earlier is None or not old:
            return self.columns(new)

        columns = _text_columns([row.sample for row in old]) | earlier.columns(
            np.array([row.row for row in old])
        )
        is_old = np.array([isinstance(row, TakenOver) for row in batch])
        parts = [(np.flatnonzero(is_old), columns)]
        if new:
            parts.append((np.flatnonzero(~is_old), self.columns(new)))

        return interleaved(parts)

    def columns(self, batch: Sequence[Prepared]) -> dict[str, Any]:
        """The columns of one batch of new rows."""
        samples = [row.sample for row in batch]
        hashes = np.array([row.hashes for row in batch], np.uint64)
        columns = _text_columns(samples) | {
            THUMBNAIL: [row.thumbnail for row in batch],
            BYTES_HASH: hashes[:, 0],
            PIXEL_HASH: hashes[:, 1],
            PERCEPTUAL_HASH: np.stack([row.perceptual for row in batch]),
            CAPTION_EMBEDDING: _mean_embeddings(
                self.encoder, [sample.captions for sample in samples]
            ),
        }

        return columns | self._features(torch.stack([row.pixels for row in batch]))

    @torch.inference_mode()
    def _features(
        self, images: Float[Tensor, "b 3 s s"]
    ) -> dict[str, Float32[np.ndarray, "b t d"]]:
        """The vector columns of images that the shard stores."""
        spec = self.spec
        grid = self.backbone.geometry.grid
        cls, registers, patches = store_features(
            self.backbone(images), grid, spec.num_registers, spec.grid
        )
        named = {CLS: cls[:, None], REGISTERS: registers, PATCHES: patches}
        return {
            name: named[name].cpu().numpy() for name in named if name in self.spec.vector_columns()
        }


def embedding_spec(
    config: EmbedConfig, backbone: Backbone, encoder: CaptionEncoder
) -> EmbeddingSpec:
    """The spec of the shards of this config.

    Raises ValueError when the config's grid is finer than the backbone's.
    """
    # Random views serve training alone, which needs no hashes.
    return EmbeddingSpec.for_content(
        backbone.geometry,
        config.content,
        config.grid,
        dtype=config.dtype,
        backbone=config.backbone.name,
        digest=config.backbone.digest,
        description=backbone.description,
        caption_encoder=encoder.name,
        caption_dim=encoder.dim,
        num_hashes=0 if config.view else NUM_HASHES if config.hash_forms else 1,
    )


def _text_columns(samples: Sequence[Sample]) -> dict[str, Any]:
    """The columns that a row has from its pair as it was read."""
    return {
        KEY: [sample.key for sample in samples],
        SOURCE: [sample.source for sample in samples],
        CAPTIONS: [list(sample.captions) for sample in samples],
    }


def _mean_embeddings(
    encoder: CaptionEncoder, captions: Sequence[tuple[str, ...]]
) -> Float32[np.ndarray, "b d"]:
    """One unit vector per row: the mean of its captions' vectors; zeros without captions."""
    vectors = encoder.encode([caption for row in captions for caption in row])
    owners = np.repeat(np.arange(len(captions)), [len(row) for row in captions])

    # add.at adds all vectors of a row, where `sums[owners] += vectors` would add one of them. The
    # sum has the direction of the mean.
    sums = np.zeros((len(captions), encoder.dim), np.float32)
    np.add.at(sums, owners, vectors)
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), np.float32(1e-12))


def map_ahead(work: Callable[[S], T], items: Iterable[S], threads: int, most: int) -> Iterator[T]:
    """The results of all items in order, which threads compute while the caller uses earlier ones.

    At most `most` results are computed ahead.
    """
    ahead: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as executor:
        for item in items:
            ahead.append(executor.submit(work, item))
            if len(ahead) > most:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
