"""k-means against a plain NumPy Lloyd, with empty clusters, interruptions and any number of
workers.
"""

import numpy as np
import pytest

import curation.clusters.kmeans
from cluster.fanout import Pool
from cluster.resources import Resources
from curation.clusters.config import KMeansConfig
from curation.clusters.kmeans import assign, kmeans
from curation.clusters.nearest import choose_engine
from curation.clusters.scan import InProcess, Points, Scanner, points_in_memory
from curation.clusters.seeding import choose_seeds
from curation.clusters.spans import cut_spans
from curation.clusters.vectors import ArrayVectors, ShardVectors, to_unit
from curation.shards.schema import CLS


def _blobs(num_rows=3000, num_blobs=12, dim=16, seed=0):
    rng = np.random.default_rng(seed)
    blobs = rng.integers(0, num_blobs, num_rows)
    centers = 4 * rng.standard_normal((num_blobs, dim))
    return blobs, (centers[blobs] + rng.standard_normal((num_rows, dim))).astype(np.float32)


def _lloyd(x, centroids, iterations, unit):
    objectives = []
    x = x.astype(np.float64)
    for _ in range(iterations):
        squared = ((x[:, None] - centroids[None].astype(np.float64)) ** 2).sum(-1)
        labels = squared.argmin(1)
        objectives.append(squared.min(1).sum())
        centroids = np.stack([x[labels == k].mean(0) for k in range(len(centroids))]).astype(
            np.float32
        )
        centroids = to_unit(centroids) if unit else centroids
    return centroids, objectives


@pytest.mark.parametrize("unit", [True, False])
def test_kmeans_equals_lloyd(unit, tmp_path):
    x = _blobs()[1]
    x = to_unit(x) if unit else x
    config = KMeansConfig(iterations=5, tolerance=-1.0)
    points = points_in_memory(x, unit)
    expected, objectives = _lloyd(x, choose_seeds(points, 20, "k-means++", 16, 3), 5, unit)
    centroids = kmeans(points, 20, config, 3, tmp_path / "state.npz")
    np.testing.assert_allclose(centroids, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.load(tmp_path / "state.npz")["objectives"], objectives, rtol=1e-6)


@pytest.mark.parametrize("seeding", ["k-means++", "k-means||"])
def test_well_separated_blobs_are_found(seeding):
    blobs, x = _blobs(num_blobs=8)
    points = points_in_memory(x, False)
    labels, distances = assign(points, kmeans(points, 8, KMeansConfig(seeding=seeding), 0))
    pairs = np.unique(np.stack([blobs, labels]), axis=1)
    assert pairs.shape[1] == 8
    assert len(np.unique(pairs[1])) == 8
    assert distances.mean() < 17


@pytest.mark.parametrize("seeding", ["k-means++", "k-means||", "random"])
def test_seeds_are_rows_and_depend_on_the_seed_only(seeding):
    x = _blobs()[1]
    seeds, again, other = (
        choose_seeds(points_in_memory(x, False), 30, seeding, 16, seed) for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(seeds, again)
    assert not np.array_equal(seeds, other)
    assert ((seeds[:, None] == x[None]).all(-1).any(1)).all()
    assert len(np.unique(seeds, axis=0)) == 30


@pytest.mark.parametrize("seeding", ["k-means++", "k-means||", "random"])
def test_as_many_clusters_as_distinct_points_leave_no_error(seeding):
    distinct = _blobs(num_rows=25)[1]
    x = distinct[np.r_[np.arange(25), np.random.default_rng(0).integers(0, 3, 400)]]
    points = points_in_memory(x, False)
    _, distances = assign(
        points, kmeans(points, 25, KMeansConfig(iterations=40, tolerance=0.0, seeding=seeding), 0)
    )
    assert distances.max() < 1e-9


def test_more_clusters_than_distinct_points_are_refused():
    x = np.repeat(_blobs(num_rows=7)[1], 10, axis=0)
    with pytest.raises(
        ValueError, match=r"10 clusters exceed the number of distinct points \(7 among 70\)"
    ):
        kmeans(points_in_memory(x, False), 10, KMeansConfig(), 0)
    with pytest.raises(ValueError, match="80 clusters of 70 points"):
        kmeans(points_in_memory(x, False), 80, KMeansConfig(), 0)


def test_the_same_bits_with_every_engine():
    x = to_unit(_blobs(num_rows=2000, dim=48)[1])
    config = KMeansConfig(iterations=3, tolerance=-1.0)
    expected = kmeans(points_in_memory(x, True, "onnxruntime"), 90, config, 0)
    for engine in ("faiss", "torch"):
        found = kmeans(points_in_memory(x, True, engine), 90, config, 0)
        np.testing.assert_array_equal(found, expected)


def test_the_engine_is_chosen_by_the_machine_and_a_named_one_is_used():
    assert choose_engine("auto") in ("onnxruntime", "torch")
    for engine in ("onnxruntime", "faiss", "torch"):
        assert choose_engine(engine) == engine


class _Interrupted(Exception):
    pass


def test_a_killed_run_continues_to_the_same_bits(tmp_path, monkeypatch):
    points = points_in_memory(_blobs()[1], False)
    config = KMeansConfig(iterations=9, tolerance=0.0)
    whole = kmeans(points, 15, config, 0)
    write = curation.clusters.kmeans._write
    path = tmp_path / "state.npz"

    def write_and_die(checkpoint, state):
        write(checkpoint, state)
        if len(state.objectives) in (1, 4):
            raise _Interrupted

    monkeypatch.setattr(curation.clusters.kmeans, "_write", write_and_die)
    for _ in range(2):
        with pytest.raises(_Interrupted):
            kmeans(points, 15, config, 0, path)
    np.testing.assert_array_equal(kmeans(points, 15, config, 0, path), whole)


def test_objective_never_rises(tmp_path):
    kmeans(
        points_in_memory(_blobs()[1], False),
        40,
        KMeansConfig(tolerance=-1.0),
        0,
        tmp_path / "state.npz",
    )
    assert (np.diff(np.load(tmp_path / "state.npz")["objectives"]) <= 1e-9).all()


@pytest.mark.ray
@pytest.mark.parametrize(
    "num_workers", [2, *(pytest.param(count, marks=pytest.mark.slow) for count in (1, 4))]
)
def test_the_same_bits_for_any_workers_and_shards(
    tmp_path, ray_session, embedding_spec, write_pool, num_workers
):
    vectors = {CLS: _blobs(num_rows=20_000)[1][:, None]}
    spec = embedding_spec(content="pooled", num_registers=0, grid=(1, 1), dim=16)
    write_pool(tmp_path / "one", spec, (20_000,), vectors=vectors)
    write_pool(tmp_path / "many", spec, (1, 8191, 0, 9000, 2808), vectors=vectors)
    config = KMeansConfig(iterations=4, tolerance=0.0)

    def cluster(folder, workers):
        points = Points(ShardVectors(tmp_path / folder, CLS), workers)
        centroids = kmeans(points, 30, config, 0)
        return centroids, *assign(points, centroids)

    expected = cluster("one", InProcess())
    assert len(cut_spans(20_000)) > 2
    with Pool(Scanner, resources=Resources(workers=num_workers, cpus=0.5)) as workers:
        for found, wanted in zip(cluster("many", workers), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_sums_of_a_span_are_of_the_centroids_it_meets():
    x = _blobs(num_rows=500)[1]
    points = points_in_memory(x, False)
    centroids = _blobs(num_rows=2000, seed=1)[1]
    sums = Scanner().sums((100, 200), points, centroids)
    labels = assign(points, centroids)[0][100:200]
    expected = np.zeros((2000, 16))
    counts = np.zeros(2000, np.int64)
    for label, row in zip(labels, x[100:200].astype(np.float64), strict=True):
        expected[label] += row
        counts[label] += 1
    np.testing.assert_array_equal(sums.labels, np.unique(labels))
    np.testing.assert_array_equal(sums.vectors, expected[sums.labels])
    np.testing.assert_array_equal(sums.counts, counts[sums.labels])
    assert len(sums.labels) <= 100


def test_spans_keep_many_workers_busy():
    assert len(cut_spans(10_000_000)) > 64
    assert [stop - start for start, stop in cut_spans(40_000)] == [8192, 8192, 8192, 8192, 7232]


def test_a_subset_is_clustered_like_its_rows():
    x = _blobs()[1]
    rows = np.sort(np.random.default_rng(0).choice(3000, 700, replace=False))
    whole = Points(ArrayVectors(x), InProcess())
    config = KMeansConfig(iterations=3)
    expected = kmeans(points_in_memory(x[rows], False), 9, config, 0)
    np.testing.assert_array_equal(kmeans(whole.subset(rows), 9, config, 0), expected)
