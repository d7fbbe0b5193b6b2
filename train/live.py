"""The frozen backbone in the training loop: new crops of the images each epoch, no stored tokens.

It serves augmentation, and machines that read tokens more slowly than they compute them. The
loader's thread reads and crops; the backbone runs in the training step. A crop is a function of
(seed, epoch, key), so that a resumed run uses the same crops. Held-out pairs are cropped at the
center, as embeddings are.
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
"""A batch with pixels to a batch with tokens."""


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

        # CLS gets an axis of one token, as in stored batches.
        return replace(batch, vision=(Stored(cls[:, None]), Stored(registers), Stored(patches)))


def identity(batch: Batch) -> Batch:
    """The batch itself: its vectors are stored, and nothing is left to encode."""
    return batch


def live_spec(config: LiveConfig, spec: EmbeddingSpec) -> EmbeddingSpec:
    """The format of live tokens: all tokens of the backbone, whatever the embeddings hold."""
    tokens = EmbeddingSpec.for_content(geometry_of(backbone_of(config, spec)), "tokens", 0)
    return replace(
        spec,
        content="tokens",
        grid=tokens.grid,
        num_registers=tokens.num_registers,
        dtype=tokens.dtype,
    )


def backbone_of(config: LiveConfig, spec: EmbeddingSpec) -> BackboneConfig:
    """The backbone that made the embeddings."""
    return BackboneConfig(spec.backbone, config.weights, spec.digest, spec.image_size)
