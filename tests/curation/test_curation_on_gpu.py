"""Curation on a CUDA device: the backbone's features, exact labels."""

import numpy as np
import pytest
import torch

from curation.clusters.nearest import Assigner, choose_engine
from curation.clusters.vectors import to_unit
from curation.encoders.backbone import load_backbone
from curation.encoders.config import BackboneConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_the_backbone_sees_the_same_on_both_devices() -> None:
    backbone = load_backbone(BackboneConfig("random-vit", image_size=56))
    assert backbone.device.type == "cuda"
    images = torch.randn(5, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    on_gpu = [tokens.cpu() for tokens in backbone(images)]
    for found, expected in zip(on_gpu, backbone.cpu()(images), strict=True):
        assert float((found - expected).norm() / expected.norm()) < 2e-2


@pytest.mark.parametrize("unit", [True, False])
def test_labels_equal_a_float64_brute_force(unit: bool) -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((300, 96)).astype(np.float32)
    x = centres[rng.integers(0, 300, 20_000)] + 0.3 * rng.standard_normal((20_000, 96)).astype(
        np.float32
    )
    centroids = np.concatenate([centres, centres * np.float32(1 + 1e-7)])
    if unit:
        x = to_unit(x)
        centroids = to_unit(centroids)
    exact = x.astype(np.float64) @ centroids.astype(np.float64).T
    exact -= 0 if unit else (centroids.astype(np.float64) ** 2).sum(1) / 2
    assert choose_engine("auto") == "torch"
    np.testing.assert_array_equal(Assigner(centroids, unit)(x), exact.argmax(1))
