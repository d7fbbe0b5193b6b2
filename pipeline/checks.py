"""What the steps that will run need of this machine, checked before any of them starts."""

from collections.abc import Iterator, Sequence

import torch

from cluster.devices import device_of, settled, slow_choices
from cluster.machine import Device, settled_precision
from curation.config import EmbedConfig
from curation.encoders.config import geometry_of
from pipeline.costs import ADAMW_BYTES, PaperModel
from pipeline.step import Output, Step
from train.attention import Case, choose_attention, installed_kernels
from train.config import TokenizerConfig, TrainConfig
from train.train import placement


def check_machine(steps: Sequence[Step]) -> Iterator[str]:
    """Warnings of settings that are slow on the devices of this session. ValueError for one that is
    impossible.
    """
    for step in steps:
        yield from slow_choices(step.config, step.label)
        if isinstance(step.config, TrainConfig):
            device = device_of(step.config.resources)
            check_attention(step.config, device)
            if device.kind == "cuda":
                check_memory(step, step.config, device)


def check_attention(config: TrainConfig, device: Device) -> None:
    """ValueError, with the names that are possible, for an attention kernel that cannot run on the
    device.
    """
    if device.kind == "cuda" and not torch.cuda.is_available():
        return  # of other nodes this process cannot tell what is installed there: each worker checks for itself

    text = config.model.text
    precision = settled_precision(settled(config, config.resources).parallel.dtype)
    case = Case(device.kind, text.width // text.heads, precision == "float32", installed_kernels())
    choose_attention(config.parallel.attention, case)


def check_memory(step: Step, config: TrainConfig, device: Device) -> None:
    """ValueError when the weights of a model, their gradients and moments do not fit the memory of
    a GPU.
    """
    sharing = max(1, placement(config).workers // config.parallel.replicas)
    needed = memory_per_worker(_model(step, config), sharing)
    if needed > device.memory_bytes:
        raise ValueError(
            f"{step.label} needs {needed / 1e9:.1f} GB per GPU for weights, gradients and moments "
            f"alone, and the {device.name} has {device.memory_bytes / 1e9:.1f} GB: take more GPUs "
            "(train.resources.workers), fewer train.parallel.replicas, or a smaller train.model"
        )


def memory_per_worker(model: PaperModel, sharing: int) -> float:
    """Bytes per worker of weights, gradients and moments, when `sharing` workers share a model."""
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
