"""FLOP of the model by arithmetic, and the rate that a GPU could reach.

A multiply-add counts as 2 FLOP; training costs 3 times the forward pass of what is trained. Norms, activations, the
loss and what is recomputed are left out. Tested against the published figures of ViT-L/14 (arXiv:2412.16334) and
torch's counter, which could not serve here: it counts only what was computed, and causal attention as a whole square.
"""

from collections.abc import Sequence

from torch import nn

from train.model import DinoTxt, TextBlock

TRAINING = 3  # forward, and the gradients of inputs and of weights
PEAK_TFLOPS = {  # dense bfloat16, by what the device's name holds; the vendors' data sheets
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
    return PEAK_TFLOPS[max(found, key=len)] if found else None


def text_flop(model: DinoTxt, num_tokens: float) -> float:
    """Forward FLOP of one caption of so many tokens."""
    return captions_flop(model, [(1, num_tokens)])


def captions_flop(model: DinoTxt, groups: Sequence[tuple[int, float | int]]) -> float:
    """Forward FLOP of packed captions, given as (captions, tokens each); causal attention computes half its square."""
    text = model.config.text
    captions = sum(count for count, _ in groups)
    tokens = sum(count * length for count, length in groups)
    attention = text.layers * text.width * sum(count * length**2 for count, length in groups)

    # Of the last block, what follows attention is computed for the ends of captions only.
    for_all = _matrix_weights(model.text.blocks) - _matrix_weights_after_attention(model)
    for_ends = _matrix_weights_after_attention(model) + model.text.projection.weight.numel()
    return 2.0 * (for_all * tokens + for_ends * captions + attention)


def head_flop(model: DinoTxt, num_tokens: int) -> float:
    """Forward FLOP of the vision head on one image of so many tokens."""
    attention = model.config.vision.blocks * 2 * num_tokens**2 * model.image_dim
    return 2.0 * (_matrix_weights(model.vision.blocks) * num_tokens + attention)


def _matrix_weights_after_attention(model: DinoTxt) -> int:
    """Matrix weights of the last text block behind its attention: the output projection and the two layers."""
    last = model.text.blocks[-1]
    assert isinstance(last, TextBlock)
    return last.attention.proj.weight.numel() + _matrix_weights(last.mlp)


def _matrix_weights(module: nn.Module) -> int:
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))
