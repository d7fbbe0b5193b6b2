"""The index of a folder: every image that can be decoded, the others by name, none from outside."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stripes import encoded, square

from curation.encoders.config import BackboneConfig, geometry_of
from curation.encoders.resolve import resolve
from curation.shards.schema import EmbeddingSpec
from evaluate.config import IndexConfig
from evaluate.predict import load
from evaluate.search import index
from evaluate.search.galleries import list_images
from evaluate.search.index import (
    IMAGES_AT_ONCE,
    INDEX,
    NAMES,
    PIECES,
    REJECTS,
    read_names,
    run,
)
from evaluate.search.vector_index import read_index
from train.config import ModelConfig, TextConfig, TokenizerConfig, VisionConfig
from train.export.folder import export_model
from train.model import DinoTxt
from train.tokenizer import train_tokenizer

BACKBONE = resolve(BackboneConfig("random-vit", image_size=56))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights, as training leaves it."""
    to = tmp_path_factory.mktemp("model")
    captions = (
        f"a {first} and a {second}" for first in ("cat", "dog") for second in ("hat", "mat")
    )
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=275), captions)
    geometry = geometry_of(BACKBONE)
    spec = EmbeddingSpec.for_content(
        geometry, "tokens", 0, backbone=BACKBONE.name, digest=BACKBONE.digest
    )
    config = ModelConfig(TextConfig(64, 1, 1, 16), VisionConfig(blocks=1))
    torch.manual_seed(0)
    weights = DinoTxt(config, tokenizer.vocab_size, geometry.dim).state_dict()
    export_model(to, config, weights, tokenizer, spec)
    return to


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    (folder / "one.png").write_bytes(encoded(square("red", "blue")))
    (folder / "deep" / "two.png").write_bytes(encoded(square("green")))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a photograph")
    (folder / "notes.txt").write_text("no image")
    (tmp_path / "secret.png").write_bytes(encoded(square("white")))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    return folder


def test_images_that_decode_are_indexed_and_the_others_are_listed(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    summary = run(IndexConfig(BACKBONE), out=out, model=model, images=photos)
    assert summary["rows"] == 2
    names = read_names(out)
    assert names == ["deep/two.png", "one.png"]

    vectors = load(model, BACKBONE).encode_images([Image.open(photos / name) for name in names])
    index = read_index(out / INDEX)
    for row in range(2):
        np.testing.assert_allclose(index.vector(row), vectors[row].numpy(), atol=1e-3)

    (reject,) = (json.loads(line) for line in (out / REJECTS).read_text().splitlines())
    assert reject["name"] == "broken.jpg"
    assert "corrupt image" in reject["reason"]


class Interruption(logging.Filter):
    """Ends the run, as Ctrl-C does, at the first image that is left out."""

    def filter(self, record: logging.LogRecord) -> bool:
        raise KeyboardInterrupt


def test_a_folder_that_was_interrupted_continues_behind_its_last_piece(
    model: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    colors = np.random.default_rng(0).integers(0, 256, (3 * IMAGES_AT_ONCE - 1, 2, 2, 3), np.uint8)
    for number, pixels in enumerate(colors):
        image = Image.fromarray(pixels).resize((56, 56), Image.Resampling.NEAREST)
        image.save(photos / f"{number:03d}.png")
    (photos / f"{2 * IMAGES_AT_ONCE - 1:03d}.png").write_bytes(b"\x89PNG")  # last of piece two

    whole = tmp_path / "whole"
    whole.mkdir()
    run(IndexConfig(BACKBONE), out=whole, model=model, images=photos)

    out = tmp_path / "out"
    out.mkdir()
    interruption = Interruption()
    index.logger.addFilter(interruption)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(IndexConfig(BACKBONE), out=out, model=model, images=photos)
    finally:
        index.logger.removeFilter(interruption)
    assert [file.name for file in (out / PIECES).iterdir()] == ["000000000.npz"]

    # With other pixels, an image of the first piece would get another vector if it were read again.
    (photos / "000.png").write_bytes(encoded(square("white")))
    run(IndexConfig(BACKBONE), out=out, model=model, images=photos)
    for name in (INDEX, NAMES, REJECTS):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert {file.name for file in out.iterdir()} == {INDEX, NAMES, REJECTS}


def test_links_that_lead_out_of_a_folder_are_no_part_of_it(photos: Path) -> None:
    (photos / "inside.png").symlink_to(photos / "one.png")
    names = list_images(photos).names
    assert "link.png" not in names
    assert "inside.png" in names


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no image"):
        list_images(tmp_path)


def test_a_folder_of_damaged_images_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match="none of the 1 images of"):
        run(IndexConfig(BACKBONE), out=tmp_path, model=model, images=tmp_path / "photos")
