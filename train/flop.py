"""FLOP of the model by arithmetic, and the peak rate of a GPU.

A multiply-add counts as 2 FLOP; training costs 3 times the forward pass of the trained parts.
Norms, activations, the loss and recomputation are left out. Tested against the published figures of
ViT-L/14 (arXiv:2412.16334) and torch's counter. That counter could not serve here: it counts only
operations that are executed, and causal attention as a whole square.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from train.config import ModelConfig, swiglu_hidden

TEXT_ATTENTION = 3  # squares of the width: queries, keys and values
# Squares of the width: the output projection, and two layers four times as wide
TEXT_AFTER_ATTENTION = 1 + 2 * 4
TRAINING = 3  # forward, and the gradients of inputs and of weights
PEAK_TFLOPS = {  # dense bfloat16, by words of the device's name; from the vendors' data sheets
    "H200 NVL": 835.0,
    "H200": 989.4,
    "GH200": 989.4,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.4,
    "H20": 148.0,
    "B200": 2250.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "MI300X": 1307.4,
}


def peak_tflops(device_name: str) -> float | None:
    """Dense bfloat16 peak of a GPU, TFLOP/s; None for a device that is not in the table."""
    words = device_name.replace("-", " ").split()
    found = [name for name in PEAK_TFLOPS if all(word in words for word in name.split())]

    # "NVIDIA H100 PCIe" matches "H100" and "H100 PCIe": the longest name is the most exact.
    return PEAK_TFLOPS[max(found, key=len)] if found else None


@runtime_checkable
class Sized(Protocol):
    """What the cost of a model depends on: a DinoTxt, or a recipe's model before it is built."""

    @property
    def config(self) -> ModelConfig:
        """Width and depth."""

    @property
    def image_dim(self) -> int:
        """Width of the backbone's tokens."""


def text_flop(model: Sized, num_tokens: float) -> float:
    """Forward FLOP of one caption of `num_tokens` tokens, which may be a mean."""
    return captions_flop(model, [(1, num_tokens)])


def captions_flop(model: Sized, groups: Sequence[tuple[int, float | int]]) -> float:
    """Forward FLOP of packed captions, as (number of captions, tokens per caption)."""
    text = model.config.text
    captions = sum(count for count, _ in groups)
    tokens = sum(count * length for count, length in groups)

    # Two products, queries by keys and weights by values, each of which needs half of its square
    # because attention is causal: in all one square per layer and channel.
    attention = text.layers * text.width * sum(count * length**2 for count, length in groups)

    # The last block computes all that follows its attention for end-of-text tokens only.
    after_attention = TEXT_AFTER_ATTENTION * text.width**2
    for_all = text_matrix_weights(model) - after_attention
    for_ends = after_attention + text.width * model.config.feature_dim(model.image_dim)
    return 2.0 * (for_all * tokens + for_ends * captions + attention)


def text_matrix_weights(model: Sized) -> int:
    """Weights of the matrices in the text encoder's blocks."""
    text = model.config.text
    return text.layers * (TEXT_ATTENTION + TEXT_AFTER_ATTENTION) * text.width**2


def head_flop(model: Sized, num_tokens: int) -> float:
    """Forward FLOP of the vision head on one image of `num_tokens` tokens."""
    # Two whole squares per block: here every token attends to all.
    attention = model.config.vision.blocks * 2 * num_tokens**2 * model.image_dim
    return 2.0 * (head_matrix_weights(model) * num_tokens + attention)


def head_matrix_weights(model: Sized) -> int:
    """Weights of the matrices in the head's blocks: four of attention, three of the gated MLP."""
    dim = model.image_dim
    return model.config.vision.blocks * (4 * dim**2 + 3 * dim * swiglu_hidden(dim))
