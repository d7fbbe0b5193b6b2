"""A finished model as plain files, out and in: model.safetensors, config.json and a tokenizer."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cluster.files import write_atomic
from curation.shards.schema import EmbeddingSpec, spec_from_dict
from train.config import ModelConfig, TextConfig, VisionConfig
from train.export.names import CONFIG, WEIGHTS
from train.model import DinoTxt
from train.tokenizer import Tokenizer, load_tokenizer


class LoadedModel(NamedTuple):
    """A model in evaluation mode, its tokenizer, and the format of its training embeddings."""

    model: DinoTxt
    tokenizer: Tokenizer
    spec: EmbeddingSpec


def export_model(
    folder: Path,
    config: ModelConfig,
    weights: dict[str, Tensor],
    tokenizer: Tokenizer,
    spec: EmbeddingSpec,
) -> None:
    """Write a model folder; config.json comes last, so that a folder that has it is complete."""
    folder.mkdir(parents=True, exist_ok=True)

    # safetensors refuses tensors that are not contiguous.
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / WEIGHTS)
    tokenizer.save(folder)
    fields = {"model": asdict(config), "spec": asdict(spec), "vocab_size": tokenizer.vocab_size}
    write_atomic(folder / CONFIG, json.dumps(fields, indent=1, sort_keys=True) + "\n")


def load_model(folder: Path, device: torch.device | str = "cpu") -> LoadedModel:
    """The model that the train step wrote, in evaluation mode. ValueError for any other folder."""
    if not (folder / CONFIG).is_file():
        raise ValueError(
            f"no {CONFIG} in {folder}: a model folder holds {CONFIG} and {WEIGHTS}; run the "
            "train step"
        )

    fields = json.loads((folder / CONFIG).read_text())
    if "spec" not in fields:
        raise ValueError(
            f"{folder / CONFIG} does not say what the model was trained on: name a folder that "
            "the train step or `export --format safetensors` wrote"
        )

    spec = spec_from_dict(fields["spec"])

    model = DinoTxt(model_config(fields["model"]), fields["vocab_size"], spec.dim)
    model.load_state_dict(load_file(folder / WEIGHTS))

    return LoadedModel(model.to(device).eval(), load_tokenizer(folder), spec)


def model_config(fields: dict[str, Any]) -> ModelConfig:
    """A model config from its JSON."""
    return ModelConfig(TextConfig(**fields["text"]), VisionConfig(**fields["vision"]))
