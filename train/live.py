"""The frozen backbone in the training loop: other crops of the images in each epoch, instead of
stored tokens.

For augmentation, or where reading tokens is slower than computing them. The loader's thread reads
and crops; the backbone runs in the training step. A crop is a function of (seed, epoch, key), so
that a resumed run uses the same ones. Held-out pairs are cropped at the center, as embeddings are.
"""

from collections.abc import Callable
from dataclasses import replace

from cluster.machine import settled_precision
from curation.encoders.backbone import Backbone, load_backbone
from curation.encoders.config import BackboneConfig, backbone_flop, geometry_of
from curation.shards.schema import EmbeddingSpec
from train.batch import Batch, Stored
from train.config import LiveConfig

EncodeImages = Callable[[Batch], Batch]
"""A batch with pixels to one with tokens."""


class LiveBackbone:
    """The frozen backbone on a rank's device."""

    def __init__(self, config: LiveConfig, spec: EmbeddingSpec) -> None:
        named = backbone_of(config, spec)
        self.backbone: Backbone = load_backbone(named, settled_precision(config.precision))
        self.flop = backbone_flop(named)
        """Forward FLOP for one image."""

    def encode(self, batch: Batch) -> Batch:
        """The batch with the backbone's tokens in place of its pixels, on the backbone's device."""
        batch = batch.to(self.backbone.device)
        pixels = batch.vision[0].values.float() / 255.0
        cls, registers, patches = self.backbone(self.backbone.normalize_batch(pixels))
        return replace(batch, vision=(Stored(cls[:, None]), Stored(registers), Stored(patches)))


def identity(batch: Batch) -> Batch:
    """The batch itself, where it holds stored vectors."""
    return batch


def live_spec(config: LiveConfig, spec: EmbeddingSpec) -> EmbeddingSpec:
    """What the model is trained on: all tokens of the backbone that the embeddings were made
    with.
    """
    seen = EmbeddingSpec.for_content(geometry_of(backbone_of(config, spec)), "tokens", 0)
    return replace(
        spec, content="tokens", grid=seen.grid, num_registers=seen.num_registers, dtype=seen.dtype
    )


def backbone_of(config: LiveConfig, spec: EmbeddingSpec) -> BackboneConfig:
    """The backbone that the embeddings were made with."""
    return BackboneConfig(spec.backbone, config.weights, spec.digest, spec.image_size)
