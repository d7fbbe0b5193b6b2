"""Arithmetic against the model itself, and the figures published for ViT-L/14 and dino.txt
(arXiv:2412.16334).
"""

import pytest
import torch

from pipeline.costs import PaperModel, gpu_hours
from pipeline.presets import PRESETS
from train.config import ModelConfig, TextConfig, VisionConfig
from train.flop import head_matrix_weights, text_matrix_weights
from train.model import DinoTxt


def test_parameters_are_the_published_ones() -> None:
    model = PaperModel(PRESETS["vitl14"].train.model, 49_408, 1024)
    assert model.text_weights == 538_131_200
    assert model.head_weights == 25_326_336


@pytest.mark.parametrize("pooling", ["cls", "concat"])
@pytest.mark.parametrize(
    ("width", "layers", "blocks", "dim"), [(32, 1, 0, 24), (48, 3, 2, 40), (64, 2, 1, 384)]
)
def test_weights_are_those_of_the_model_that_is_built(
    pooling: str, width: int, layers: int, blocks: int, dim: int
) -> None:
    text = TextConfig(width=width, layers=layers, heads=4, context=12)
    config = ModelConfig(text, VisionConfig(blocks=blocks, pooling=pooling))  # type: ignore[arg-type]
    with torch.device("meta"):
        built = DinoTxt(config, 300, dim)
    paper = PaperModel(config, 300, dim)

    assert paper.text_weights == count(built.text)
    assert paper.head_weights == count(built.vision)
    assert paper.num_weights == count(built)
    assert text_matrix_weights(built) == count_matrices(built.text.blocks)
    assert head_matrix_weights(built) == count_matrices(built.vision.blocks)


def count(module: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def count_matrices(module: torch.nn.Module) -> int:
    return sum(
        layer.weight.numel() for layer in module.modules() if isinstance(layer, torch.nn.Linear)
    )


def test_gpu_hours_divide_work_by_rate() -> None:
    assert gpu_hours(3600.0 * 400e12, tflops=400.0) == 1.0
