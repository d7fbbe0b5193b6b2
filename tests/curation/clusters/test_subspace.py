"""The search in a subspace: exact on data with and without directions that matter, and only where
it pays.
"""

import numpy as np
import pytest

from curation.clusters import nearest
from curation.clusters.bounds import Centered
from curation.clusters.integer_screens import IntegerScreen, SubspaceScreen
from curation.clusters.integers import AMX_COSTS, AVX2_COSTS, IntegerProduct
from curation.clusters.nearest import Assigner
from curation.clusters.subspace import Subspace, choose_basis
from curation.clusters.vectors import to_unit

DIM = 192
CLUSTERS = 1200


def _grouped(rng, n):
    """Vectors around few centers, as embeddings of images are."""
    groups = np.random.default_rng(7).standard_normal((40, DIM))
    noise = rng.standard_normal((n, DIM))
    return (groups[rng.integers(0, 40, n)] + 0.4 * noise + 0.3).astype(np.float32)


def _isotropic(rng, n):
    return rng.standard_normal((n, DIM)).astype(np.float32)


def _few_dimensions(rng, n):
    """All variation lies in five dimensions, at a large distance from the origin."""
    directions = np.random.default_rng(8).standard_normal((5, DIM))
    return (rng.standard_normal((n, 5)) @ directions + 30).astype(np.float32)


def _brute_force(x, centroids, unit):
    x = x.astype(np.float64)
    centroids = centroids.astype(np.float64)
    return (x @ centroids.T - (0 if unit else (centroids**2).sum(1) / 2)).argmax(1)


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("cloud", [_grouped, _isotropic, _few_dimensions])
@pytest.mark.parametrize("size", [1, 16, 48])
def test_labels_equal_a_float64_brute_force(unit, cloud, size):
    rng = np.random.default_rng(0)
    x = cloud(rng, 500)
    centroids = cloud(rng, CLUSTERS)
    centroids[700:710] = centroids[:10]  # equally near: the lower index wins
    if unit:
        x = to_unit(x)
        centroids = to_unit(centroids)

    basis, _ = np.linalg.qr(rng.standard_normal((DIM, size)))
    assigner = Assigner(centroids, unit)
    assigner.screen = SubspaceScreen(Centered(centroids, unit), basis.astype(np.float32))
    np.testing.assert_array_equal(assigner(x), _brute_force(x, centroids, unit))


def test_scores_never_exceed_their_bounds():
    rng = np.random.default_rng(1)
    x = _grouped(rng, 300)
    centered = Centered(_grouped(rng, CLUSTERS), unit=False)
    basis = choose_basis(centered, x[:32], AVX2_COSTS)
    subspace = Subspace(centered, basis)

    shifted = x.astype(np.float64) - centered.mean
    offsets = centered.centroids.astype(np.float64) - centered.mean
    length = np.linalg.norm(shifted, axis=1).astype(np.float32)
    inside = subspace.project(x)
    row_rest = subspace.row_rest(length, np.linalg.norm(inside, axis=1))
    bounds = inside.astype(np.float64) @ subspace.coordinates.T + np.outer(row_rest, subspace.rest)

    assert (shifted @ offsets.T <= bounds).all()
    # Not by being useless: for most pairs, the bound is nearer to the score than |x| |c|.
    limits = np.outer(length, np.linalg.norm(offsets, axis=1))
    assert np.median(bounds - shifted @ offsets.T) < 0.5 * np.median(limits - shifted @ offsets.T)


@pytest.mark.parametrize(
    ("cloud", "num_clusters", "costs", "screen"),
    [
        (_grouped, CLUSTERS, AVX2_COSTS, SubspaceScreen),
        (_grouped, CLUSTERS, AMX_COSTS, IntegerScreen),
        (_isotropic, CLUSTERS, AVX2_COSTS, IntegerScreen),
        (_grouped, 500, AVX2_COSTS, IntegerScreen),
    ],
)
def test_a_subspace_is_used_where_it_pays(cloud, num_clusters, costs, screen, monkeypatch):
    monkeypatch.setattr(nearest, "COSTS", costs)
    rng = np.random.default_rng(2)
    centroids = cloud(rng, num_clusters)
    assigner = Assigner(centroids, False, "onnxruntime", sample=cloud(rng, 32))
    assert type(assigner.screen) is screen


def test_rows_that_fill_several_tiles(monkeypatch):
    monkeypatch.setattr(nearest, "COSTS", AVX2_COSTS)
    rng = np.random.default_rng(3)
    x = _grouped(rng, 3000)
    centroids = _grouped(rng, CLUSTERS)
    assigner = Assigner(centroids, False, "onnxruntime", sample=x[:32])
    assert len(x) > 2 * assigner.screen.tile_rows
    np.testing.assert_array_equal(assigner(x), _brute_force(x, centroids, False))


def test_products_are_exact_with_the_largest_weights():
    weights = np.full((3, 64), IntegerProduct.largest_weight, np.int8)
    weights[1] *= -1
    rows = np.array([[127], [-127], [1]], np.int8).repeat(64, axis=1)
    products = np.empty((3, 3), np.int32)
    IntegerProduct(weights)(rows, products)
    np.testing.assert_array_equal(products, rows.astype(np.int32) @ weights.T.astype(np.int32))
