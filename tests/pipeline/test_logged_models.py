"""A logged model answers as the model does, on pictures as a server gets them."""

import base64
import io
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import pandas
import pytest
import torch
from PIL import Image

from pipeline.logged_models import write_pyfunc
from tests.train.export.subjects import make_subject, sentencepiece_words
from train.config import ModelConfig, TextConfig, VisionConfig
from train.export.huggingface import write_huggingface
from train.export.probe import noise_image
from train.export.subject import Subject

NAMES = ["dog", "snow", "park"]


@pytest.fixture(scope="module")
def subject() -> Subject:
    return make_subject(
        sentencepiece_words(), ModelConfig(TextConfig(64, 1, 1, 16), VisionConfig(blocks=1))
    )


@pytest.fixture(scope="module")
def folder(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as MLflow keeps it."""
    to = tmp_path_factory.mktemp("logged")
    (to / "huggingface").mkdir()
    write_huggingface(to / "huggingface", subject)
    write_pyfunc(to / "model", to / "huggingface")
    return to / "model"


def picture() -> bytes:
    buffer = io.BytesIO()
    noise_image(1, 60).save(buffer, "PNG")
    return buffer.getvalue()


@torch.inference_mode()
def expected(subject: Subject) -> list[float]:
    """Probabilities by the model itself."""
    model = subject.loaded.model
    backbone = subject.whole_backbone("a test")
    pixels = backbone.preprocess(Image.open(io.BytesIO(picture())))
    image = model.encode_image_features(*backbone(pixels[None]))
    texts = model.encode_tokens(subject.loaded.tokenizer.encode(NAMES, 16))
    cosines = torch.nn.functional.cosine_similarity(image, texts)
    return (model.logit_scale() * cosines).softmax(-1).tolist()


def test_pictures_get_the_probabilities_of_the_model(subject: Subject, folder: Path) -> None:
    served = mlflow.pyfunc.load_model(str(folder))
    rows = pandas.DataFrame({"image": [picture()]})
    (answer,) = served.predict(rows, params={"names": NAMES})
    assert list(answer) == NAMES
    assert list(answer.values()) == pytest.approx(expected(subject), abs=1e-4)
    with pytest.raises(ValueError, match="at least two different names are needed"):
        served.predict(rows, params={"names": ["dog"]})


def test_the_example_and_the_signature_fit_the_model(folder: Path) -> None:
    described = mlflow.models.Model.load(str(folder))
    assert described.signature is not None
    assert described.signature.inputs.input_names() == ["image"]
    assert [param.name for param in described.signature.params] == ["names", "template"]
    served = mlflow.pyfunc.load_model(str(folder))
    (answer,) = served.predict(served.input_example)
    assert sum(answer.values()) == pytest.approx(1)


@pytest.mark.slow
def test_a_server_without_this_project_answers(
    subject: Subject, folder: Path, tmp_path: Path
) -> None:
    port = 5071
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(folder)]
    command += ["--env-manager", "local", "--port", str(port), "--workers", "1"]
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    server = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PATH": paths})
    try:
        while True:
            assert server.poll() is None, "the server ended"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=1)
                break
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                continue

        encoded = base64.b64encode(picture()).decode()
        question = {
            "dataframe_split": {"columns": ["image"], "data": [[encoded]]},
            "params": {"names": NAMES},
        }
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps(question).encode(),
            {"Content-Type": "application/json"},
        )
        (answer,) = json.loads(urllib.request.urlopen(request).read())["predictions"]
        assert list(answer.values()) == pytest.approx(expected(subject), abs=1e-4)
    finally:
        server.terminate()
        server.wait()
