"""What a machine must have: named before anything runs, with what is possible."""

from dataclasses import replace

import pytest
import torch

from cluster.machine import Device
from pipeline.checks import check_attention, check_memory, memory_per_worker
from pipeline.costs import PaperModel
from pipeline.graph import draw_steps
from pipeline.presets import PRESETS
from pipeline.step import Step
from train.config import ModelConfig, ParallelConfig, TrainConfig
from train.model import DinoTxt

CPU = Device(
    "cpu",
    "EPYC with AVX2",
    is_fast_in_bfloat16=False,
    bfloat16_cost=19.0,
    memory_bytes=16_000_000_000,
)
FLOAT32 = ParallelConfig(dtype="float32")


def train_step(config: TrainConfig) -> Step:
    """The train step of a recipe with this config."""
    steps = draw_steps(replace(PRESETS["debug"], train=config))
    return next(step for step in steps if step.label == "train")


def test_attention_that_cannot_run_is_refused_before_anything_runs() -> None:
    check_attention(TrainConfig(parallel=FLOAT32), CPU)
    with pytest.raises(
        ValueError,
        match="attention is xformers, but it runs on GPUs only; possible here: auto, grouped",
    ):
        check_attention(TrainConfig(parallel=replace(FLOAT32, attention="xformers")), CPU)


def test_memory_is_sixteen_bytes_per_weight_divided_among_those_that_share_a_model() -> None:
    model = PaperModel(ModelConfig(), vocab_size=100, image_dim=384)
    with torch.device("meta"):
        weights = sum(weight.numel() for weight in DinoTxt(ModelConfig(), 100, 384).parameters())

    assert memory_per_worker(model, sharing=1) == 16 * weights
    assert memory_per_worker(model, sharing=4) == 4 * weights


@pytest.mark.ray
def test_a_gpu_that_is_too_small_is_named_with_what_the_model_needs(ray_session: None) -> None:
    step = train_step(replace(PRESETS["debug"].train, parallel=FLOAT32))
    assert isinstance(step.config, TrainConfig)
    check_memory(step, step.config, Device("cuda", "NVIDIA H100", True, None, 80_000_000_000))
    with pytest.raises(
        ValueError, match=r"train needs 0\.0 GB per GPU .* the toy has 0\.0 GB: take more GPUs"
    ):
        check_memory(step, step.config, Device("cuda", "toy", True, None, 1000))
