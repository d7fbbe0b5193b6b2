"""Checks that this machine can run the steps, made before any of them starts."""

from collections.abc import Sequence

import torch

from cluster.devices import device_of, settled
from cluster.machine import Device, settled_precision
from curation.config import EmbedConfig
from curation.encoders.config import geometry_of
from pipeline.costs import ADAMW_BYTES, PaperModel
from pipeline.step import Output, Step
from train.attention import Case, choose_attention, installed_kernels
from train.config import TokenizerConfig, TrainConfig
from train.train import placement


def check_training(steps: Sequence[Step]) -> None:
    """Check the train steps among these. ValueError for a setting that this machine cannot have."""
    for step in steps:
        if isinstance(step.config, TrainConfig):
            device = device_of(step.config.resources)
            check_attention(step.config, device)
            if device.kind == "cuda":
                check_memory(step, step.config, device)


def check_attention(config: TrainConfig, device: Device) -> None:
    """ValueError, listing the possible names, for an attention kernel that cannot run there."""
    # Without a GPU here, the workers are on other nodes, and this process does not know what is
    # installed there: each worker checks for itself.
    if device.kind == "cuda" and not torch.cuda.is_available():
        return

    text = config.model.text
    precision = settled_precision(settled(config, config.resources).parallel.dtype)
    case = Case(device.kind, text.width // text.heads, precision == "float32", installed_kernels())
    choose_attention(config.parallel.attention, case)


def check_memory(step: Step, config: TrainConfig, device: Device) -> None:
    """ValueError if weights, gradients and moments of a model exceed the memory of a GPU."""
    # All workers share one model, unless it is replicated.
    sharing = max(1, placement(config).workers // config.parallel.replicas)
    needed = memory_per_worker(_model(step, config), sharing)
    if needed > device.memory_bytes:
        raise ValueError(
            f"{step.label} needs {needed / 1e9:.1f} GB per GPU for weights, gradients and moments "
            f"alone, and the {device.name} has {device.memory_bytes / 1e9:.1f} GB: take more GPUs "
            "(train.resources.workers), fewer train.parallel.replicas, or a smaller train.model"
        )


def memory_per_worker(model: PaperModel, sharing: int) -> float:
    """Bytes of weights, gradients and moments per worker, when `sharing` workers share a model."""
    return ADAMW_BYTES * model.num_weights / sharing


def _model(step: Step, config: TrainConfig) -> PaperModel:
    """The model of a train step, with the vocabulary and the backbone of the steps before it."""
    tokenizer = step.inputs["tokenizer"]
    embeddings = step.inputs["embeddings"]
    assert isinstance(tokenizer, Output)
    assert isinstance(embeddings, Output)
    assert isinstance(tokenizer.step.config, TokenizerConfig)
    assert isinstance(embeddings.step.config, EmbedConfig)

    return PaperModel(
        config.model,
        tokenizer.step.config.vocab_size,
        geometry_of(embeddings.step.config.backbone).dim,
    )
