"""The vectors of a set have the same bits whatever its parts, and whoever computed them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from colors import ColorEncoder, classification_files, retrieval_files, write_folder
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from evaluate import classification, features, retrieval, vectors
from evaluate.features import image_parts
from evaluate.parts import Parts, cut
from evaluate.prompts import EMOJI
from evaluate.sets.known import open_classification, open_retrieval
from evaluate.vectors import SetVectors
from evaluate.views import UNCUT


class Crowd(ColorEncoder):
    """Its vectors depend on the whole batch, as the last bits of a real encoder may."""

    def encode_text(self, texts: Sequence[str], *, dense: bool = False) -> Float[Tensor, "n d"]:
        return _crowded(super().encode_text(texts))

    def encode_image(self, images: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        return _crowded(super().encode_image(images))


def _crowded(vectors: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return vectors + vectors.sum(0)


@pytest.mark.parametrize(("size", "expected"), [(3, [3, 3, 1]), (4, [7]), (100, [7])])
def test_set_is_cut_into_parts_of_whole_size(size: int, expected: list[int]) -> None:
    parts = cut(7, size)
    assert [len(part) for part in parts] == expected
    assert [number for part in parts for number in part] == list(range(7))


@pytest.mark.parametrize("task", ["classification", "retrieval"])
def test_vectors_from_parts_are_those_of_the_whole_set(
    tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (classification, retrieval, vectors):
        monkeypatch.setattr(module, "TEXTS_AT_ONCE", 5, raising=False)
    if task == "classification":
        dataset = open_classification(write_folder(tmp_path / "set", classification_files()))
    else:
        dataset = open_retrieval(write_folder(tmp_path / "set", retrieval_files()))
    of_set = SetVectors(Crowd(), dataset, EMOJI, UNCUT, 2)
    texts = of_set.texts()
    images = list(of_set.images())

    monkeypatch.setattr(features, "IMAGES_PER_PART", 3)
    parts = image_parts(len(dataset.images), 2)
    assert len(parts[0]) == 4
    shared = replace(of_set, parts=Parts(tmp_path / "parts"))
    for part in parts[1:]:
        shared.parts.write(part, shared.compute(part))

    # The first part was lost: its images, and its share of the texts, are encoded here.
    encoded: list[int] = []
    assert torch.equal(shared.texts(), texts)
    assert all(map(torch.equal, shared.images(encoded.append), images))
    assert sum(encoded) == 4
