"""The Python interface: forms of an image agree, probabilities sum to 1, regions are of the image's
size."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from curation.encoders.config import BackboneConfig, geometry_of
from curation.encoders.resolve import resolve
from curation.shards.schema import EmbeddingSpec
from evaluate.predict import Model, load, open_image
from train.config import ModelConfig, TextConfig, TokenizerConfig, VisionConfig
from train.export.folder import export_model
from train.model import DinoTxt
from train.tokenizer import train_tokenizer

BACKBONE = resolve(BackboneConfig("random-vit", image_size=56))
NAMES = ("cat", "dog", "mat")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights, as training leaves it."""
    to = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(
        TokenizerConfig(vocab_size=280), iter(f"a {name} on the mat" for name in NAMES)
    )
    geometry = geometry_of(BACKBONE)
    spec = EmbeddingSpec.for_content(
        geometry, "tokens", 0, backbone=BACKBONE.name, digest=BACKBONE.digest
    )
    config = ModelConfig(TextConfig(64, 1, 1, 16), VisionConfig(blocks=1))
    torch.manual_seed(0)
    model = DinoTxt(config, tokenizer.vocab_size, geometry.dim)
    export_model(to, config, model.state_dict(), tokenizer, spec)
    return to


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(folder)


def picture(width: int = 70, height: int = 56) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_every_form_of_an_image_is_the_same_image(model: Model, tmp_path: Path) -> None:
    image = picture()
    image.save(tmp_path / "image.png")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    forms = [
        image,
        str(tmp_path / "image.png"),
        tmp_path / "image.png",
        array,
        tensor,
        tensor / 255,
    ]
    vectors = model.encode_images(forms)
    torch.testing.assert_close(vectors, vectors[:1].expand_as(vectors), atol=1e-5, rtol=0)
    torch.testing.assert_close(model.encode_images(image), vectors[:1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(56, 70), (56, 70, 4), (2, 3, 56, 70)])
def test_what_is_no_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="three channels, first or last, are needed"):
        open_image(np.zeros(shape, np.uint8))


def test_probabilities_follow_the_cosines(model: Model) -> None:
    chances = model.classify(picture(), NAMES)
    cosines = (model.encode_images(picture()) @ model.encode_texts(NAMES).T)[0]
    assert tuple(chances) == NAMES
    assert sum(chances.values()) == pytest.approx(1)
    assert max(chances, key=chances.__getitem__) == NAMES[int(cosines.argmax())]


def test_regions_have_the_images_size_and_the_best_heat(model: Model) -> None:
    regions = model.segment(picture(), NAMES, side=112)
    heat = np.stack([regions.heat[name] for name in NAMES])
    assert regions.labels.shape == (56, 70)
    assert heat.shape == (3, 56, 70)
    assert np.array_equal(heat.argmax(0), regions.labels)


@pytest.mark.parametrize("names", ["cat", [], ["cat", "cat"]])
def test_names_are_a_list_of_different_names(model: Model, names: list[str]) -> None:
    with pytest.raises(ValueError, match="a list of different names"):
        model.classify(picture(), names)
