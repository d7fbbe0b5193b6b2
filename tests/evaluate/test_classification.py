"""Zero-shot classification is perfect with an encoder that sees colours, and chance with one that
sees nothing.
"""

import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from colors import NAMES, BlindEncoder, ColorEncoder, classification_files, classified, write_tar

from evaluate.classification import class_embeddings
from evaluate.prompts import EMOJI, IMAGENET, PLAIN
from evaluate.sets.kinds import ClassificationSet
from evaluate.sets.known import open_classification


@pytest.fixture
def dataset(tmp_path: Path) -> ClassificationSet:
    return open_classification(write_tar(tmp_path / "set.tar", classification_files()))


@pytest.mark.parametrize("templates", [IMAGENET, EMOJI, PLAIN])
def test_seeing_encoder_scores_one(dataset: ClassificationSet, templates: tuple[str, ...]) -> None:
    result = classified(ColorEncoder(), dataset, templates, batch_size=3)
    assert {name: tally.value for name, tally in result.tallies.items()} == {
        "top1": 1.0,
        "top5": 1.0,
        "mean_per_class": 1.0,
    }
    assert result.ranked[:, 0].tolist() == list(dataset.targets)


def test_blind_encoder_scores_exactly_chance(dataset: ClassificationSet) -> None:
    result = classified(BlindEncoder(), dataset, PLAIN, batch_size=64)
    assert result.tallies["top1"].value == pytest.approx(1 / len(NAMES))
    assert result.tallies["top5"].value == pytest.approx(5 / len(NAMES))


def test_batch_size_changes_nothing(dataset: ClassificationSet) -> None:
    one, many = (classified(ColorEncoder(), dataset, PLAIN, size) for size in (1, 64))
    assert one.ranked[:, 0].tolist() == many.ranked[:, 0].tolist()
    # Several colors are equally far from a third one. A product of another shape may round their
    # cosines, sums of three products, differently, and then rank them in another order.
    np.testing.assert_allclose(one.confidence, many.confidence, rtol=0, atol=4 * 2.0**-24)


def test_class_embeddings_are_unit_means_of_unit_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lengths(ColorEncoder):
        def encode_text(self, texts: list[str], *, dense: bool = False) -> torch.Tensor:
            return torch.tensor([[float(len(text)), 1.0, float(ord(text[0]))] for text in texts])

    monkeypatch.setattr("evaluate.classification.TEXTS_AT_ONCE", 4)
    names = ["a", "bcd", "ef"]
    templates = ["{}", "x {} y", "{} z"]
    expected = []
    for name in names:
        prompts = [Lengths().encode_text([template.format(name)])[0] for template in templates]
        mean = torch.stack([prompt / prompt.norm() for prompt in prompts]).mean(0)
        expected.append(mean / mean.norm())
    torch.testing.assert_close(class_embeddings(Lengths(), names, templates), torch.stack(expected))


def test_prompts_of_many_classes_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    handed_out = []

    class Watched(BlindEncoder):
        def encode_text(self, texts: list[str], *, dense: bool = False) -> torch.Tensor:
            assert not any(reference() is not None for reference in handed_out)
            vectors = torch.rand(len(texts), 3)
            handed_out.append(weakref.ref(vectors))
            return vectors

    monkeypatch.setattr("evaluate.classification.TEXTS_AT_ONCE", 8)
    assert len(class_embeddings(Watched(), [f"class {label}" for label in range(40)], EMOJI)) == 40


def test_imagenet_templates_are_eighty_different_ones() -> None:
    assert len(IMAGENET) == len(set(IMAGENET)) == 80
    assert all(template.count("{}") == 1 for template in (*IMAGENET, *EMOJI, *PLAIN))
