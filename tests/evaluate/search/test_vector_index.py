"""Rows by cosine: exactly for small collections, nearly so in lists."""

from pathlib import Path

import numpy as np
import pytest
from jaxtyping import Float32

from evaluate.search.vector_index import VectorIndex, build_index, read_index

DIM = 24


def clustered(count: int, seed: int) -> Float32[np.ndarray, "n d"]:
    """Unit vectors around forty centers, as those of real images are."""
    random = np.random.default_rng(seed)
    centers = np.random.default_rng(99).normal(size=(40, DIM))
    vectors = centers[random.integers(0, 40, count)] + 0.5 * random.normal(size=(count, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors() -> Float32[np.ndarray, "n d"]:
    return clustered(4000, 0)


def best(vectors: np.ndarray, query: np.ndarray, count: int) -> set[int]:
    return set(np.argsort(-(vectors @ query))[:count].tolist())


def test_a_small_collection_is_searched_exactly(vectors: np.ndarray) -> None:
    index = build_index(vectors, exact_mb=1.0)
    for query in clustered(20, 1):
        rows, cosines = index.search(query, 10)
        expected = np.sort(vectors @ query)[::-1][:10]
        np.testing.assert_allclose(cosines, expected, atol=2e-3)
        np.testing.assert_allclose(vectors[rows] @ query, expected, atol=2e-3)


def test_lists_find_nearly_all(vectors: np.ndarray) -> None:
    index = build_index(vectors, exact_mb=0.0)
    queries = clustered(50, 2)
    hits = [
        len(best(vectors, query, 10) & {*index.search(query, 10)[0].tolist()}) for query in queries
    ]
    assert sum(hits) / (10 * len(queries)) > 0.9


@pytest.mark.parametrize("exact_mb", [0.0, 1.0])
def test_an_index_reads_back(vectors: np.ndarray, exact_mb: float, tmp_path: Path) -> None:
    index = build_index(vectors, exact_mb)
    index.write(tmp_path / "index")
    again = read_index(tmp_path / "index")
    assert (len(again), again.dim) == (len(vectors), DIM)
    np.testing.assert_allclose(again.vector(123), vectors[123], atol=1e-3)
    for one, two in zip(index.search(vectors[5], 7), again.search(vectors[5], 7), strict=True):
        np.testing.assert_array_equal(one, two)


def test_more_than_there_is_gives_all(vectors: np.ndarray) -> None:
    small = VectorIndex(build_index(vectors[:3], exact_mb=1.0)._index)
    assert sorted(small.search(vectors[0], 10)[0].tolist()) == [0, 1, 2]
