"""K-means side by side: ours over memory-mapped shards, faiss.Kmeans on all points, scikit-learn, SuperKMeans.

Same points (unit vectors of a mixture, rounded to float16), same first centroids, same iterations, one process, same
threads. Contestants take turns; the least CPU time of each counts, which disturbs least on a busy machine. SuperKMeans
seeds itself; its two-level mode, its default above 100,000 points, is no Lloyd and is judged by its objective. It and
scikit-learn are left out where they are not installed.

    OPENBLAS_CORETYPE=SkylakeX python -m benchmarks.kmeans [--full] [--rows N] [--dim D] [--clusters K] [--threads T]
"""

import argparse
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import torch
from jaxtyping import Float32

from cluster.threads import limit_threads
from curation.clusters.config import KMeansConfig
from curation.clusters.kmeans import assign, kmeans
from curation.clusters.nearest import choose_engine
from curation.clusters.scan import InProcess, Points, points_in_memory
from curation.clusters.vectors import ShardVectors, to_unit
from curation.shards.manifest import Manifest, write_manifest
from curation.shards.schema import CAPTIONS, CLS, HASHES, KEY, PATCHES, SOURCE, THUMBNAIL, EmbeddingSpec
from curation.shards.writer import write_shard

SHARD_ROWS = 1 << 14
GROUPS = 64
SPEC = EmbeddingSpec("synthetic", "0" * 64, "mixture", 14, 8, 0, (1, 1), "pooled", "float16", "", 0)

Contestant = Callable[[int], Float32[np.ndarray, "k d"]]


def main() -> None:
    """Print one table per width: seconds, ratio to ours, objective relative to ours."""
    options = _options()
    limit_threads(options.threads)
    for dim in options.dim:
        with tempfile.TemporaryDirectory() as folder:
            points = write_mixture(Path(folder), options.rows, dim, options.clusters)
            compare(points, options)


def compare(points: Points, options: argparse.Namespace) -> None:
    """All contestants on the same points, `--repeats` times in turn."""
    array = points.gather(np.arange(points.num_rows))
    rng = np.random.default_rng(1)
    first = array[rng.choice(len(array), options.clusters, replace=False)]
    engine = choose_engine(points.engine)
    rows = f"n={len(array):,} d={array.shape[1]} k={options.clusters} iterations={options.iterations} engine={engine}"
    print(f"\n{rows} threads={options.threads} OPENBLAS_CORETYPE={os.environ.get('OPENBLAS_CORETYPE', 'unset')}")
    contestants = _contestants(points, array, first, options)
    assign(points_in_memory(array[:1000], False), first)  # compiles, or reads what was compiled before
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    objectives = {}
    for _ in range(options.repeats):
        for name, run in contestants.items():
            cpu, wall = time.process_time(), time.perf_counter()
            centroids = run(options.iterations)
            seconds[name].append((time.process_time() - cpu, time.perf_counter() - wall))
            objectives[name] = float(assign(points_in_memory(array, False), centroids)[1].sum(dtype=np.float64))
    ours, _ = min(seconds["ours"])
    for name, times in seconds.items():
        cpu, wall = min(times)
        worse = 100 * (objectives[name] / objectives["ours"] - 1)
        print(f"{name:20} cpu {cpu:8.2f} s  wall {wall:8.2f} s  ratio {cpu / ours:5.2f}  objective {worse:+.3f} %")


def _contestants(
    points: Points, array: Float32[np.ndarray, "n d"], first: Float32[np.ndarray, "k d"], options: argparse.Namespace
) -> dict[str, Contestant]:
    num_clusters, dim = first.shape

    def ours(iterations: int, engine_points: Points = points) -> np.ndarray:
        config = KMeansConfig(iterations=iterations, tolerance=-1.0)
        return kmeans(engine_points, num_clusters, config, 0, first=first)

    def by_faiss(iterations: int) -> np.ndarray:
        trainer = faiss.Kmeans(dim, num_clusters, niter=iterations, max_points_per_centroid=len(array), seed=1)
        trainer.train(array, init_centroids=first)
        return np.asarray(trainer.centroids)

    found: dict[str, Contestant] = {"ours": ours, "faiss.Kmeans": by_faiss}
    if options.engines:
        found["ours, float32"] = lambda iterations: ours(iterations, replace(points, engine="float32"))
        found["ours, torch"] = lambda iterations: ours(iterations, replace(points, engine="torch"))
    if importlib.util.find_spec("sklearn"):
        found["scikit-learn"] = lambda iterations: _by_scikit_learn(array, first, iterations)
    if importlib.util.find_spec("superkmeans"):
        for name, hierarchical in (("SuperKMeans", False), ("  its two-level mode", True)):
            found[name] = partial(
                _by_superkmeans, array, num_clusters, threads=options.threads, hierarchical=hierarchical
            )
    return found


def _by_scikit_learn(
    array: Float32[np.ndarray, "n d"], first: Float32[np.ndarray, "k d"], iterations: int
) -> Float32[np.ndarray, "k d"]:
    from sklearn.cluster import KMeans

    model = KMeans(len(first), init=first, n_init=1, max_iter=iterations, tol=0, algorithm="lloyd", copy_x=False)
    return model.fit(array).cluster_centers_


def _by_superkmeans(
    array: Float32[np.ndarray, "n d"], num_clusters: int, iterations: int, *, threads: int, hierarchical: bool
) -> Float32[np.ndarray, "k d"]:
    from superkmeans import SuperKMeans

    options = {"sampling_fraction": 1.0, "max_points_per_cluster": len(array), "early_termination": False}
    trainer = SuperKMeans(num_clusters, array.shape[1], hierarchical, iters=iterations, n_threads=threads, **options)
    return trainer.train(array)


def write_mixture(folder: Path, num_rows: int, dim: int, num_clusters: int) -> Points:
    """Unit vectors around random centres, themselves in groups, written as embedding shards."""
    spec, rng = replace(SPEC, dim=dim), np.random.default_rng(0)
    groups = rng.standard_normal((GROUPS, dim), dtype=np.float32)
    centers = groups[rng.integers(0, GROUPS, 8 * num_clusters)]
    centers += rng.standard_normal(centers.shape, dtype=np.float32)
    entries = []
    for index, start in enumerate(range(0, num_rows, SHARD_ROWS)):
        rows = np.arange(start, min(start + SHARD_ROWS, num_rows))
        noise = rng.standard_normal((len(rows), dim), dtype=np.float32)
        vectors = to_unit(centers[rng.integers(0, len(centers), len(rows))] + 0.5 * noise + 0.5)
        entries.append(write_shard(folder / f"shard-{index:05d}.arrow", spec, [_columns(rows, vectors)]))
    write_manifest(folder, Manifest(spec, tuple(entries)))
    return Points(ShardVectors(folder, CLS), InProcess())


def _columns(rows: np.ndarray, vectors: Float32[np.ndarray, "n d"]) -> dict[str, object]:
    empty: dict[str, object] = {SOURCE: [""] * len(rows), CAPTIONS: [[]] * len(rows), THUMBNAIL: [b""] * len(rows)}
    hashes = {name: rows.astype(np.uint64) for name in HASHES}
    return {KEY: [str(row) for row in rows], CLS: vectors, PATCHES: vectors, **empty, **hashes}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="1,000,000 rows, 384 and 1024 dimensions, 10 iterations")
    parser.add_argument("--rows", type=int, help="points")
    parser.add_argument("--dim", type=int, nargs="+", help="widths")
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--engines", action="store_true", help="also ours with other screening")
    options = parser.parse_args()
    options.rows = options.rows or (1_000_000 if options.full else 32_768)
    options.dim = options.dim or ([384, 1024] if options.full else [384])
    options.iterations = options.iterations or (10 if options.full else 3)
    return options


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
