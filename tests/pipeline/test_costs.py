"""Arithmetic against the figures published for ViT-L/14 and dino.txt (arXiv:2412.16334)."""

from pipeline.costs import (
    TokenGrid,
    gpu_hours,
    model_on_paper,
    num_parameters,
    stored_bytes,
    stored_grid,
)
from pipeline.presets import PRESETS

VITL14 = TokenGrid(1024, 4, 16, 16)
MODEL = model_on_paper(PRESETS["vitl14"].train.model, 49_408, 1024)


def test_parameters_are_the_published_ones() -> None:
    assert num_parameters(MODEL.text) == 538_131_200
    assert num_parameters(MODEL.vision) == 25_326_336


def test_stored_bytes_follow_content_and_format() -> None:
    assert stored_bytes(stored_grid(VITL14, "pooled", 4), "float16") == 4096
    assert stored_bytes(VITL14, "float16") == 261 * 1024 * 2
    assert stored_bytes(VITL14, "int8") == 261 * (1024 + 4)
    assert stored_grid(VITL14, "grid", 2).num_tokens == 1 + 4 + 4


def test_gpu_hours_divide_work_by_rate() -> None:
    assert gpu_hours(3600.0 * 400e12, tflops=400.0) == 1.0
