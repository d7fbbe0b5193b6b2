"""What a recipe costs, by arithmetic: parameters, bytes on disk, GPU-hours; FLOP are counted in
train/flop.py.
"""

from dataclasses import dataclass

from train.config import ModelConfig, swiglu_hidden
from train.flop import head_matrix_weights, text_matrix_weights

ADAMW_BYTES = 16  # a trained weight in float32, its gradient and two moments


@dataclass(frozen=True)
class PaperModel:
    """A model by its sizes, to count its weights without building it."""

    config: ModelConfig
    vocab_size: int
    image_dim: int
    """Width of the backbone's tokens."""

    @property
    def feature_dim(self) -> int:
        """Length of an image or caption feature."""
        return self.config.feature_dim(self.image_dim)

    @property
    def text_weights(self) -> int:
        """Trained values of the text encoder."""
        text = self.config.text
        embeddings = (self.vocab_size + text.context) * text.width
        # biases: one of attention's projection, five of the MLP's two layers; two norms of gain and shift
        vectors = text.layers * (1 + 5 + 2 * 2) * text.width
        last = 2 * text.width + text.width * self.feature_dim
        return embeddings + text_matrix_weights(self) + vectors + last

    @property
    def head_weights(self) -> int:
        """Trained values of the vision head."""
        dim = self.image_dim
        # biases of attention's projection and of the MLP, two LayerScales, two norms of gain and
        # shift
        vectors = dim + (2 * swiglu_hidden(dim) + dim) + 2 * dim + 2 * 2 * dim
        return head_matrix_weights(self) + self.config.vision.blocks * vectors + 2 * dim

    @property
    def num_weights(self) -> int:
        """All trained values; one is the logit scale."""
        return self.text_weights + self.head_weights + 1


def gpu_hours(flop: float, tflops: float) -> float:
    """Hours on one GPU that sustains a rate in TFLOP/s."""
    return flop / (tflops * 1e12) / 3600
