"""Recall against full sorting, perfect and blind encoders."""

from pathlib import Path

import numpy as np
import pytest
import torch
from colors import NAMES, BlindEncoder, ColorEncoder, retrieval_files, retrieved, write_tar
from torch.nn.functional import normalize

from evaluate.retrieval import RECALL_AT, chance_recalls, recall_tallies, sibling_tallies
from evaluate.sets.kinds import RetrievalSet
from evaluate.sets.known import open_retrieval


@pytest.fixture
def dataset(tmp_path: Path) -> RetrievalSet:
    return open_retrieval(write_tar(tmp_path / "set.tar", retrieval_files(captions_of_each=3)))


def test_seeing_encoder_scores_one(dataset: RetrievalSet) -> None:
    tallies = retrieved(ColorEncoder(), dataset, batch_size=3).tallies
    assert {tally.value for tally in tallies.values()} == {1.0}


def test_blind_encoder_scores_exactly_chance(dataset: RetrievalSet) -> None:
    tallies = retrieved(BlindEncoder(), dataset, batch_size=3).tallies
    recalls = {name: tally.value for name, tally in tallies.items() if tally.statistic == "mean"}
    assert recalls == pytest.approx(chance_recalls(dataset.owners))
    assert chance_recalls(dataset.owners)["text_to_image_r1"] == 1 / len(NAMES)


def test_recalls_equal_full_sorting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluate.counting.TILE", 16)
    generator = torch.Generator().manual_seed(0)
    owners = torch.arange(40).repeat_interleave(torch.randint(1, 6, (40,), generator=generator))
    images = normalize(torch.randn(40, 8, generator=generator), dim=-1)
    captions = normalize(
        images[owners] + 0.8 * torch.randn(len(owners), 8, generator=generator), dim=-1
    )
    scores = (captions @ images.T).numpy()
    tallies = recall_tallies(images, captions, owners.numpy())
    for k in RECALL_AT:
        first_images = np.argsort(-scores, axis=1)[:, :k]
        first_captions = np.argsort(-scores.T, axis=1)[:, :k]
        to_image = np.mean([owners[j].item() in first_images[j] for j in range(len(owners))])
        to_text = np.mean([i in owners[first_captions[i]] for i in range(40)])
        assert tallies[f"text_to_image_r{k}"].value == pytest.approx(to_image)
        assert tallies[f"image_to_text_r{k}"].value == pytest.approx(to_text)

    own = scores[np.arange(len(owners)), owners]
    ranks = np.sort(1 + (scores > own[:, None]).sum(1))
    assert tallies["text_to_image_median_rank"].value == ranks[(len(ranks) - 1) // 2]


def test_text_to_text_equals_full_sorting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluate.counting.TILE", 16)
    generator = torch.Generator().manual_seed(0)
    owners = torch.arange(40).repeat_interleave(torch.randint(1, 6, (40,), generator=generator))
    captions = normalize(torch.randn(40, 8, generator=generator)[owners], dim=-1)
    captions = normalize(captions + 0.5 * torch.randn(captions.shape, generator=generator), dim=-1)

    scores = (captions @ captions.T).fill_diagonal_(-2)
    hits = (owners[scores.argmax(1)] == owners).double()
    has_sibling = torch.bincount(owners)[owners] > 1
    (tally,) = sibling_tallies(captions, owners.numpy()).values()
    assert 0 < tally.value < 1
    assert tally.value == pytest.approx(float(hits[has_sibling].mean()))
    assert sibling_tallies(captions[:3], np.arange(3)) == {}


def test_identical_images_share_the_first_place() -> None:
    images = normalize(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), dim=-1)
    tallies = recall_tallies(images, images.clone(), np.arange(3))
    assert tallies["text_to_image_r1"].value == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert tallies["image_to_text_r1"].value == pytest.approx((0.5 + 0.5 + 1) / 3)
