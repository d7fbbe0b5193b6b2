"""The frozen backbone in the training loop: images of the selected pairs, cropped anew each epoch, not stored tokens.

For augmentation, or where disks are slower than recomputing. The loader's thread reads and crops, the step sees; the
crop is a function of (seed, epoch, key), so that a resumed run sees the same. Held-out pairs are seen as embeddings are
made: the centre.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from cluster.resources import MACHINE_FACT
from curation.augment import AugmentConfig, centre_view, draft_px, random_view
from curation.backbone import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Backbone,
    BackboneConfig,
    Precision,
    geometry_of,
    load_backbone,
)
from curation.images import decode
from curation.locate import ImageFiles
from curation.pairs import SourceConfig
from curation.schema import EmbeddingSpec
from curation.shards import EmbeddingShards
from train.batch import Batch, Stored
from train.flop import backbone_flop

See = Callable[[Batch], Batch]


@dataclass(frozen=True)
class LiveConfig:
    """Whether, and how, images are seen during training."""

    enabled: bool = False
    """Run the frozen backbone on the images instead of reading stored tokens; embeddings then serve curation only."""
    augment: AugmentConfig = AugmentConfig()
    source: SourceConfig = SourceConfig()
    """How the pairs are stored; a recipe takes the embed step's."""
    precision: Precision = "bfloat16"
    """Arithmetic of the backbone's matmuls; a recipe takes the embed step's."""
    weights: str = field(default="", metadata=MACHINE_FACT)
    """Weights of the backbone, as in embed.backbone.weights; a recipe takes the embed step's."""


class Images:
    """The images of the selected pairs as pixels, read and cropped on the CPU."""

    def __init__(
        self, config: LiveConfig, source: Path, shards: EmbeddingShards, rows: Int64[np.ndarray, " n"]
    ) -> None:
        self.config, self.side, self.spec = config, shards.spec.image_size, live_spec(config, shards.spec)
        self.files = ImageFiles(config.source, source, shards, rows)
        self.threads = ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="decode")

    def pixels(self, places: Int64[np.ndarray, " b"], draws: Sequence[int] | None) -> UInt8[Tensor, "b 3 s s"]:
        """The images at some places, cropped by their draws; the centre without draws."""
        given: Sequence[int | None] = draws or [None] * len(places)
        views = list(self.threads.map(self._view, places.tolist(), given))
        pixels = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).contiguous()
        return pixels.pin_memory() if torch.cuda.is_available() else pixels

    def _view(self, place: int, draw: int | None) -> UInt8[np.ndarray, "s s 3"]:
        augment = self.config.augment
        if draw is None:
            return np.asarray(centre_view(decode(self.files.read(place), draft_px=self.side), self.side))
        image = decode(self.files.read(place), draft_px=draft_px(self.side, augment.least_area))
        return np.asarray(random_view(image, self.side, augment, draw))


class Sight:
    """The frozen backbone on a rank's device."""

    def __init__(self, config: LiveConfig, spec: EmbeddingSpec) -> None:
        named = backbone_of(config, spec)
        self.backbone: Backbone = load_backbone(named, config.precision)
        self.flop = backbone_flop(named) or 0.0
        """FLOP of an image; 0 where it is not known."""

    def see(self, batch: Batch) -> Batch:
        """The batch with the backbone's tokens of its pixels, on the backbone's device."""
        batch = batch.to(self.backbone.device)
        pixels = batch.vision[0].values.float() / 255.0
        mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        cls, registers, patches = self.backbone((pixels - mean) / std)
        return replace(batch, vision=(Stored(cls[:, None]), Stored(registers), Stored(patches)))


def as_stored(batch: Batch) -> Batch:
    """A batch of stored vectors is seen already."""
    return batch


def live_spec(config: LiveConfig, spec: EmbeddingSpec) -> EmbeddingSpec:
    """What the model is trained on: all tokens of the backbone that the embeddings were made with."""
    geometry = geometry_of(backbone_of(config, spec))
    return replace(spec, content="tokens", grid=geometry.grid, num_registers=geometry.num_registers, dtype="float16")


def backbone_of(config: LiveConfig, spec: EmbeddingSpec) -> BackboneConfig:
    """The backbone that the embeddings were made with."""
    return BackboneConfig(spec.backbone, config.weights, spec.digest, spec.image_size)
