"""The text encoder as ONNX: token ids padded on the right, and lengths, to unit-norm features.

Batch and number of tokens are dynamic. What is exported is the padded encoder of the Hugging Face folder; the weights
lie in a second file beside the graph, as ONNX demands above 2 GB. The tokenizer's files travel with it.
"""

import importlib.util
import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from cluster.files import write_atomic
from curation.encoders.backbone import Features
from train.export.folder import LoadedModel
from train.export.huggingface import huggingface_config
from train.export.names import CONFIG
from train.tokenizer import load_tokenizer

GRAPH = "text_encoder.onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
NOISY = ("torch.onnx", "onnxscript", "onnx_ir")


class UnitText(nn.Module):
    """The padded text encoder with its features normalised."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Int64[Tensor, "b t"], lengths: Int64[Tensor, " b"]) -> Float32[Tensor, "b f"]:
        return F.normalize(self.encoder(input_ids, lengths), dim=-1)


def write_onnx(folder: Path, loaded: LoadedModel) -> None:
    """Write the graph, its weights and the tokenizer. ValueError when a package is missing."""
    from train.export.shipped.modeling_dinotxt import DinoTxtConfig, TextEncoder  # loads much of transformers

    _check_installed()
    encoder = TextEncoder(DinoTxtConfig(**huggingface_config(loaded)))
    encoder.load_state_dict({name: tensor.detach().cpu() for name, tensor in loaded.model.text.state_dict().items()})
    context = loaded.model.config.text.context
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens", max=context)
    example = torch.zeros(2, min(8, context), dtype=torch.int64), torch.tensor([1, 2])
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(
            UnitText(encoder).eval(),
            example,
            folder / GRAPH,
            input_names=["input_ids", "lengths"],
            output_names=["text_embeds"],
            dynamic_shapes={"input_ids": {0: batch, 1: tokens}, "lengths": {0: batch}},
            dynamo=True,
            verbose=False,
        )
    loaded.tokenizer.save(folder)
    fields = {"context": context, "end_of_text": loaded.tokenizer.end_of_text, "backbone": loaded.spec.backbone}
    write_atomic(folder / CONFIG, json.dumps(fields, indent=1, sort_keys=True) + "\n")


def _check_installed() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"{', '.join(missing)} not installed: the onnx format needs {', '.join(PACKAGES)}; "
            "`pip install -c constraints.txt '.[export]'`"
        )


def onnx_features(folder: Path, captions: Sequence[str], tokens: Features) -> dict[str, Tensor]:
    """Unit-norm text features as onnxruntime computes them; the graph has no image side."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / GRAPH, providers=["CPUExecutionProvider"])
    ids = load_tokenizer(folder).encode(captions, json.loads((folder / CONFIG).read_text())["context"])
    lengths = np.array([len(caption) for caption in ids], np.int64)
    padded = np.zeros((len(ids), lengths.max()), np.int64)
    for row, caption in zip(padded, ids, strict=True):
        row[: len(caption)] = caption
    return {"text": torch.from_numpy(session.run(None, {"input_ids": padded, "lengths": lengths})[0])}
