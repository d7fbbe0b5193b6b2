"""Features of a backbone are computed once: another model reads them, bit for bit, without an
image.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from colors import ColorEncoder, classification_files, write_folder
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from evaluate import features
from evaluate.features import Shelf, image_vectors
from evaluate.sets.images import Images
from evaluate.sets.known import open_classification
from evaluate.views import View

VIEW = View("square", 16)


class StagedColors(ColorEncoder):
    """Pixels as features; the head turns their space around, so that two heads differ."""

    def __init__(self, backbone: str = "pixels", turned: bool = False) -> None:
        self.backbone = backbone
        self.turned = turned
        self.prepared = 0

    def prepare(self, image: Image.Image) -> Float[Tensor, "3 h w"]:
        self.prepared += 1
        red_green_blue = torch.tensor(image.getpixel((8, 8))).float() / 127.5 - 1
        return red_green_blue[:, None, None].expand(3, 4, 4)

    def image_features(self, pixels: Sequence[Tensor]) -> Float[Tensor, "n tokens width"]:
        return torch.stack(list(pixels)).flatten(2).transpose(1, 2).contiguous()

    def encode_features(self, features: Float[Tensor, "n tokens width"]) -> Float[Tensor, "n d"]:
        vectors = features.mean(1)
        return normalize(vectors.flip(1) if self.turned else vectors, dim=-1)


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return open_classification(write_folder(tmp_path / "set", classification_files())).images


def vectors(
    encoder: ColorEncoder, images: Images, shelf: Shelf | None, view: View = VIEW
) -> Tensor:
    return torch.cat(list(image_vectors(encoder, images, view, 3, shelf)))


def shelf(tmp_path: Path, evaluation: str, data: str = "set") -> Shelf:
    (tmp_path / "evaluate" / evaluation).mkdir(parents=True, exist_ok=True)
    return Shelf(tmp_path / "evaluate" / evaluation, data)


def test_second_model_decodes_no_image_and_has_its_own_vectors(
    tmp_path: Path, images: Images
) -> None:
    first = vectors(StagedColors(), images, shelf(tmp_path, "first"))
    turned = StagedColors(turned=True)
    second = vectors(turned, images, shelf(tmp_path, "second"))
    assert turned.prepared == 0
    assert torch.equal(second, vectors(StagedColors(turned=True), images, None))
    assert torch.equal(second, first.flip(1))
    assert not (tmp_path / "evaluate" / "second" / "features").exists()


@pytest.mark.parametrize(
    ("backbone", "data", "view"),
    [
        ("other pixels", "set", VIEW),
        ("pixels", "other set", VIEW),
        ("pixels", "set", View("resize-crop", 16, 18)),
        ("", "set", VIEW),
    ],
)
def test_features_of_anything_else_are_computed(
    tmp_path: Path, images: Images, backbone: str, data: str, view: View
) -> None:
    vectors(StagedColors(), images, shelf(tmp_path, "first"))
    other = StagedColors(backbone)
    vectors(other, images, shelf(tmp_path, "second", data), view)
    assert other.prepared == len(images)


def test_features_that_are_too_large_or_cut_short_are_not_found(
    tmp_path: Path, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = image_vectors(StagedColors(), images, VIEW, 3, shelf(tmp_path, "first"))
    next(cut)
    cut.close()
    monkeypatch.setattr(features, "MOST_BYTES", 4 * len(images) * 16 * 3 - 1)
    vectors(StagedColors(), images, shelf(tmp_path, "first"))
    assert not list((tmp_path / "evaluate").glob("*/features/*"))
    monkeypatch.undo()
    vectors(StagedColors(), images, shelf(tmp_path, "first"))
    assert len(list((tmp_path / "evaluate").glob("*/features/*.npy"))) == 1
