"""The size of a model by arithmetic, without building it; FLOP are counted in train/flop.py."""

from dataclasses import dataclass

from train.config import ModelConfig, swiglu_hidden
from train.flop import head_matrix_weights, text_matrix_weights

ADAMW_BYTES = 16  # per trained weight: itself, its gradient and two moments, in float32


@dataclass(frozen=True)
class PaperModel:
    """A model by its sizes, to count its weights without building it."""

    config: ModelConfig
    vocab_size: int
    image_dim: int
    """Channels of the backbone's tokens."""

    @property
    def feature_dim(self) -> int:
        """Channels of an image or caption feature."""
        return self.config.feature_dim(self.image_dim)

    @property
    def text_weights(self) -> int:
        """Number of trained weights of the text encoder."""
        text = self.config.text
        embeddings = (self.vocab_size + text.context) * text.width

        # Vectors per block, in widths: the bias of attention's projection (1), of the MLP's layers
        # (4 + 1), and gain and shift of two norms.
        vectors = text.layers * (1 + 5 + 2 * 2) * text.width

        # The last norm, and the projection, which has no bias.
        last = 2 * text.width + text.width * self.feature_dim
        return embeddings + text_matrix_weights(self) + vectors + last

    @property
    def head_weights(self) -> int:
        """Number of trained weights of the vision head."""
        dim = self.image_dim

        # Vectors per block: the bias of attention's projection, of the MLP's three layers, two
        # LayerScales, and gain and shift of two norms. The 2 * dim at the end is the last norm.
        vectors = dim + (2 * swiglu_hidden(dim) + dim) + 2 * dim + 2 * 2 * dim
        return head_matrix_weights(self) + self.config.vision.blocks * vectors + 2 * dim

    @property
    def num_weights(self) -> int:
        """Number of all trained weights, including the logit scale."""
        return self.text_weights + self.head_weights + 1


def gpu_hours(flop: float, tflops: float) -> float:
    """Hours on one GPU that sustains `tflops` TFLOP/s."""
    return flop / (tflops * 1e12) / 3600
