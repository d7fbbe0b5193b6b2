"""A whole model as ONNX graphs for captions, images and patches.

    text_encoder.onnx    input_ids (captions padded on the right), lengths -> text_embeds
    image_encoder.onnx   pixel_values -> image_embeds
    dense_encoder.onnx   pixel_values -> patch_embeds, patches row by row

All vectors have unit norm. The numbers of captions, tokens and images are free; images have the
side of the model's training. The exported model is the one of the Hugging Face folder. The weights
of a graph are in a second file beside it, as ONNX demands above 2 GB; the tokenizer's files are
there, too.
"""

import importlib.util
import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from cluster.files import write_atomic
from train.export.huggingface import huggingface_config, processor_config, whole_state
from train.export.names import CONFIG
from train.export.probe import Probe
from train.export.subject import Subject
from train.tokenizer import load_tokenizer

TEXT = "text_encoder.onnx"
IMAGE = "image_encoder.onnx"
DENSE = "dense_encoder.onnx"
KINDS = {TEXT: "text", IMAGE: "image", DENSE: "dense"}
INT8_SUFFIX = ".int8.onnx"
INT8_TOLERANCE = 0.2  # per component of a unit-norm feature; the record has each file's difference
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
NOISY = ("torch.onnx", "onnxscript", "onnx_ir")


class UnitText(nn.Module):
    """Padded captions to unit-norm features."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.text

    def forward(
        self, input_ids: Int64[Tensor, "b t"], lengths: Int64[Tensor, " b"]
    ) -> Float32[Tensor, "b f"]:
        # The feature is read at lengths - 1. A length of 0 would silently read the last token, so
        # it is replaced by an index out of bounds, which every runtime refuses.
        refused = torch.full_like(lengths, input_ids.shape[1] + 1)
        lengths = torch.where(lengths > 0, lengths, refused)
        return F.normalize(self.encoder(input_ids, lengths), dim=-1)


class UnitImage(nn.Module):
    """Pixels to unit-norm image features."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Float[Tensor, "b 3 s s"]) -> Float32[Tensor, "b f"]:
        return F.normalize(self.model.get_image_features(pixel_values), dim=-1)


class UnitPatches(nn.Module):
    """Pixels to unit-norm patch features."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Float[Tensor, "b 3 s s"]) -> Float32[Tensor, "b p d"]:
        return F.normalize(self.model.get_patch_features(pixel_values), dim=-1)


def write_onnx(folder: Path, subject: Subject) -> None:
    """Write the graphs, their weights and the tokenizer. ValueError if a package is missing."""
    _check_installed()
    model = shipped_model(subject)
    config = subject.loaded.model.config.text
    side = subject.loaded.spec.image_size

    write_text_graph(folder / TEXT, model, config.context)

    # Sizes of 0 and 1 would be compiled into the graph as constants: the examples have 2 rows.
    batch = torch.export.Dim("batch")
    pixels = {"pixel_values": torch.zeros(2, 3, side, side)}
    _export(UnitImage(model), pixels, {"pixel_values": {0: batch}}, folder / IMAGE, "image_embeds")
    _export(
        UnitPatches(model), pixels, {"pixel_values": {0: batch}}, folder / DENSE, "patch_embeds"
    )
    if subject.has_int8:
        for graph in KINDS:
            _quantize(folder / graph)

    subject.loaded.tokenizer.save(folder)
    fields = {
        "context": config.context,
        "end_of_text": subject.loaded.tokenizer.end_of_text,
        "backbone": subject.loaded.spec.backbone,
        "image": processor_config(subject.whole_backbone("onnx")),
    }
    write_atomic(folder / CONFIG, json.dumps(fields, indent=1, sort_keys=True) + "\n")


def _check_installed() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"not installed: {', '.join(missing)}; the onnx format needs {', '.join(PACKAGES)}: "
            "run `pip install -c constraints.txt '.[export]'`"
        )


def shipped_model(subject: Subject) -> Any:
    """The model of the Hugging Face folder, with the subject's weights."""
    # Imported here, because they load much of transformers.
    from train.export.shipped.configuration_dinotxt import DinoTxtConfig
    from train.export.shipped.modeling_dinotxt import DinoTxtModel

    model = DinoTxtModel(DinoTxtConfig(**huggingface_config(subject)))
    model.load_state_dict(whole_state(subject.loaded, subject.whole_backbone("the onnx format")))
    return model.eval()


def write_text_graph(file: Path, model: Any, context: int) -> None:
    """Write the text encoder of the Hugging Face folder's model.

    The graph takes any number of captions, and any number of tokens up to `context`.
    """
    batch = torch.export.Dim("batch")
    tokens = torch.export.Dim("tokens", max=context)
    captions = {
        "input_ids": torch.zeros(2, min(8, context), dtype=torch.int64),
        "lengths": torch.tensor([1, 2]),
    }
    shapes: dict[str, Any] = {"input_ids": {0: batch, 1: tokens}, "lengths": {0: batch}}
    _export(UnitText(model), captions, shapes, file, "text_embeds")


def _export(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    shapes: Mapping[str, Any],
    file: Path,
    output: str,
) -> None:
    """Write one graph, whose inputs have the names, example values and free sizes given here."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(
            module.eval(),
            (),
            file,
            kwargs=dict(inputs),
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=dict(shapes),
            dynamo=True,
            verbose=False,
        )


def _quantize(graph: Path) -> None:
    """Write the graph's int8 form beside it.

    Weights of matrix products are int8; activations are quantized as they come (dynamically).
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    to = graph.with_name(graph.name.removesuffix(".onnx") + INT8_SUFFIX)
    logging.disable(logging.INFO)  # the quantizer reports every tensor to the root logger

    try:
        quantize_dynamic(
            graph, to, op_types_to_quantize=["MatMul", "Gemm"], weight_type=QuantType.QInt8
        )
    finally:
        logging.disable(logging.NOTSET)


def onnx_features(folder: Path, probe: Probe) -> dict[str, Tensor]:
    """Unit-norm features of every graph in a folder, as onnxruntime computes them."""
    import onnxruntime

    assert probe.pixels is not None, "ONNX graphs start from pixels"
    context = json.loads((folder / CONFIG).read_text())["context"]
    ids = load_tokenizer(folder).encode(probe.captions, context)

    # Pad on the right with 0: causal attention never reads what comes after end-of-text.
    lengths = np.array([len(caption) for caption in ids], np.int64)
    padded = np.zeros((len(ids), lengths.max()), np.int64)
    for row, caption in zip(padded, ids, strict=True):
        row[: len(caption)] = caption

    features = {}
    for graph, kind in KINDS.items():
        inputs = {"pixel_values": probe.pixels.numpy()}
        if kind == "text":
            inputs = {"input_ids": padded, "lengths": lengths}
        for file in (folder / graph, folder / (graph.removesuffix(".onnx") + INT8_SUFFIX)):
            if file.exists():
                session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
                features[f"{kind} {file.name}"] = torch.from_numpy(session.run(None, inputs)[0])

    return features
