"""K-means side by side: ours over memory-mapped shards, FAISS's Kmeans and SuperKmeans,
scikit-learn, SuperKMeans.

Same points (unit vectors of a mixture, rounded to float16), same iterations, one process, same
threads, and the same first centroids for all that can be given some: both SuperKMeans draw their
own rows. Contestants take turns; the least CPU time of each counts, which disturbs least on a busy
machine. Our labels are exact. FAISS's Kmeans is exact up to float32, the pruning of SuperKMeans is
not, and a mode of two levels is no Lloyd at all: each is judged by its objective on all points.
Peers that are not installed are left out (benchmarks/peers.txt has their versions).

OpenBLAS picks its kernels by the processor, or by OPENBLAS_CORETYPE: the header says which, for all
alike. FAISS's OpenBLAS does not know the newest processors, so the variable is set for it where it is
not.

    python -m benchmarks.kmeans [--full] [--rows N] [--dim D ...] [--clusters K ...] [--threads T]
    python -m benchmarks.kmeans --engines      every engine of ours, too
"""

import argparse
import importlib.metadata
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
from jaxtyping import Float32
from threadpoolctl import threadpool_info

from cluster.machine import measure_device
from cluster.threads import choose_blas_kernels, limit_threads
from curation.clusters.config import Engine, KMeansConfig
from curation.clusters.kmeans import assign, kmeans
from curation.clusters.levels import read_level
from curation.clusters.nearest import choose_engine
from curation.clusters.scan import InProcess, Points, points_in_memory
from curation.clusters.two_stage import cluster_in_two_stages
from curation.clusters.vectors import ShardVectors, to_unit
from curation.shards.manifest import Manifest, write_manifest
from curation.shards.schema import (
    CAPTIONS,
    CLS,
    HASHES,
    KEY,
    PATCHES,
    SOURCE,
    THUMBNAIL,
    EmbeddingSpec,
)
from curation.shards.writer import write_shard

SHARD_ROWS = 1 << 14
FEWEST_ROWS_PER_CLUSTER = 2
GROUPS = 64
SPEC = EmbeddingSpec("synthetic", "0" * 64, "mixture", 14, 8, 0, (1, 1), "pooled", "float16", "", 0)

Contestant = Callable[[], Float32[np.ndarray, "k d"]]


class Task(NamedTuple):
    """What every contestant clusters."""

    points: Points
    array: Float32[np.ndarray, "n d"]
    first: Float32[np.ndarray, "k d"]
    iterations: int
    threads: int


def main() -> None:
    """Print one table per width and number of clusters: seconds, and time and objective relative to
    ours.
    """
    options = _options()
    _use_best_blas_kernels()
    limit_threads(options.threads)
    _print_machine(options.threads)

    for dim in options.dim:
        for num_clusters in options.clusters:
            rows = max(options.rows, FEWEST_ROWS_PER_CLUSTER * num_clusters)
            with tempfile.TemporaryDirectory() as folder:
                points = write_mixture(Path(folder), rows, dim, num_clusters)
                compare(points, num_clusters, options)


def _use_best_blas_kernels() -> None:
    """Start this process again if OpenBLAS, when it was imported above, may have chosen slow
    kernels.
    """
    chosen = dict(os.environ)
    choose_blas_kernels()
    if os.environ != chosen:
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.kmeans", *sys.argv[1:]])


def _print_machine(threads: int) -> None:
    print(f"{measure_device('cpu').name}, threads={threads}")
    for library in threadpool_info():
        if library["user_api"] == "blas":
            name = f"{library['internal_api']} {library['version']}"
            print(
                f"{name} ({library['prefix']}) runs "
                f"{library.get('architecture', 'unknown')} kernels"
            )
    print(f"OPENBLAS_CORETYPE={os.environ.get('OPENBLAS_CORETYPE', 'unset')}")


def compare(points: Points, num_clusters: int, options: argparse.Namespace) -> None:
    """All contestants on the same points, `--repeats` times in turn."""
    array = points.gather(np.arange(points.num_rows))
    first = array[np.random.default_rng(1).choice(len(array), num_clusters, replace=False)]
    task = Task(points, array, first, options.iterations, options.threads)
    print(
        f"\nn={len(array):,} d={array.shape[1]:,} k={num_clusters:,} "
        f"iterations={options.iterations}"
    )

    contestants = _contestants(task, options.engines)
    names = list(contestants)
    # Compiles, or reads what was compiled before.
    few = points_in_memory(array[:1000], True)
    _ours(task._replace(points=few, first=first[:100], iterations=1), "auto")
    cpu_s: dict[str, list[float]] = {name: [] for name in names}
    wall_s: dict[str, list[float]] = {name: [] for name in names}
    centroids = {}

    for _ in range(options.repeats):
        for name, run in contestants.items():
            cpu = time.process_time()
            wall = time.perf_counter()
            centroids[name] = run()
            cpu_s[name].append(time.process_time() - cpu)
            wall_s[name].append(time.perf_counter() - wall)

    objectives = {name: _objective(array, centroids[name]) for name in names}
    for name in names:
        ratio = min(cpu_s[name]) / min(cpu_s[names[0]])
        worse = 100 * (objectives[name] / objectives[names[0]] - 1)
        print(
            f"{name:34} cpu {min(cpu_s[name]):8.2f} s  wall {min(wall_s[name]):8.2f} s  "
            f"ratio {ratio:5.2f}  objective {worse:+.3f} %",
            flush=True,
        )


def _objective(array: Float32[np.ndarray, "n d"], centroids: Float32[np.ndarray, "k d"]) -> float:
    return float(assign(points_in_memory(array, False), centroids)[1].sum(dtype=np.float64))


def _contestants(task: Task, engines: bool) -> dict[str, Contestant]:
    """By name with version; ours, with the engine of this machine, comes first."""
    engine = choose_engine("auto")
    contestants: dict[str, Contestant] = {
        f"ours, {_with_version(engine)}": lambda: _ours(task, engine)
    }
    others: tuple[Engine, ...] = ("onnxruntime", "faiss")
    for other in others if engines else ():
        if other != engine:
            contestants[f"ours, {_with_version(other)}"] = partial(_ours, task, other)

    contestants["ours, two stages"] = lambda: _ours_in_two_stages(task)

    faiss_version = faiss.__version__
    contestants[f"faiss.Kmeans {faiss_version}"] = lambda: _faiss_kmeans(task)
    contestants[f"faiss.SuperKmeans {faiss_version}"] = lambda: _faiss_super_kmeans(task)

    if importlib.util.find_spec("sklearn"):
        contestants[f"scikit-learn {importlib.metadata.version('scikit-learn')}"] = lambda: (
            _scikit_learn(task)
        )
    if importlib.util.find_spec("superkmeans"):
        version = importlib.metadata.version("superkmeans")
        contestants[f"SuperKMeans {version}"] = lambda: _super_kmeans(task, hierarchical=False)
        contestants[f"SuperKMeans {version}, two levels"] = lambda: _super_kmeans(
            task, hierarchical=True
        )

    return contestants


def _with_version(engine: Engine) -> str:
    version = {
        "onnxruntime": "onnxruntime",
        "faiss": "faiss-cpu",
        "torch": "torch",
    }[engine]
    return f"{engine} {importlib.metadata.version(version)}"


def _ours(task: Task, engine: Engine) -> Float32[np.ndarray, "k d"]:
    config = KMeansConfig(iterations=task.iterations, tolerance=-1.0)
    return kmeans(replace(task.points, engine=engine), len(task.first), config, 0, first=task.first)


def _ours_in_two_stages(task: Task) -> Float32[np.ndarray, "k d"]:
    """The square root of k clusters, each split in as many."""
    num_first = round(len(task.first) ** 0.5)
    config = KMeansConfig(iterations=task.iterations, tolerance=-1.0, seeding="random")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "level-1.npz"
        cluster_in_two_stages(task.points, num_first, len(task.first) // num_first, config, 0, path)
        return np.array(read_level(path).centroids)


def _faiss_kmeans(task: Task) -> Float32[np.ndarray, "k d"]:
    num_rows, dim = task.array.shape
    trainer = faiss.Kmeans(
        dim, len(task.first), niter=task.iterations, max_points_per_centroid=num_rows, seed=1
    )
    trainer.train(task.array, init_centroids=task.first)
    return np.asarray(trainer.centroids)


def _faiss_super_kmeans(task: Task) -> Float32[np.ndarray, "k d"]:
    num_rows, dim = task.array.shape
    options = {"niter": task.iterations, "max_points_per_centroid": num_rows, "seed": 1}
    # FAISS's type stubs lack it.
    trainer = faiss.SuperKmeans(dim, len(task.first), **options)  # type: ignore[attr-defined]
    trainer.train(task.array)
    return np.asarray(trainer.centroids)


def _scikit_learn(task: Task) -> Float32[np.ndarray, "k d"]:
    from sklearn.cluster import KMeans

    options = {
        "n_init": 1,
        "max_iter": task.iterations,
        "tol": 0,
        "algorithm": "lloyd",
        "copy_x": False,
    }
    return KMeans(len(task.first), init=task.first, **options).fit(task.array).cluster_centers_


def _super_kmeans(task: Task, *, hierarchical: bool) -> Float32[np.ndarray, "k d"]:
    from superkmeans import SuperKMeans

    num_rows, dim = task.array.shape
    options = {
        "sampling_fraction": 1.0,
        "max_points_per_cluster": num_rows,
        "early_termination": False,
    }
    iterations = {"iters": task.iterations, "n_threads": task.threads}

    return SuperKMeans(len(task.first), dim, hierarchical, **iterations, **options).train(
        task.array
    )


def write_mixture(folder: Path, num_rows: int, dim: int, num_clusters: int) -> Points:
    """Unit vectors around random centers, themselves in groups, written as embedding shards."""
    spec = replace(SPEC, dim=dim)
    rng = np.random.default_rng(0)

    groups = rng.standard_normal((GROUPS, dim), dtype=np.float32)
    centers = groups[rng.integers(0, GROUPS, 8 * num_clusters)]
    centers += rng.standard_normal(centers.shape, dtype=np.float32)

    entries = []

    for index, start in enumerate(range(0, num_rows, SHARD_ROWS)):
        rows = np.arange(start, min(start + SHARD_ROWS, num_rows))
        noise = rng.standard_normal((len(rows), dim), dtype=np.float32)
        vectors = to_unit(centers[rng.integers(0, len(centers), len(rows))] + 0.5 * noise + 0.5)
        entries.append(
            write_shard(folder / f"shard-{index:05d}.arrow", spec, [_columns(rows, vectors)])
        )

    write_manifest(folder, Manifest(spec, tuple(entries)))
    return Points(ShardVectors(folder, CLS), InProcess())


def _columns(rows: np.ndarray, vectors: Float32[np.ndarray, "n d"]) -> dict[str, object]:
    # The columns that clustering does not read.
    empty: dict[str, object] = {
        SOURCE: [""] * len(rows),
        CAPTIONS: [[]] * len(rows),
        THUMBNAIL: [b""] * len(rows),
    }
    hashes = {name: rows.astype(np.uint64) for name in HASHES}
    return {KEY: [str(row) for row in rows], CLS: vectors, PATCHES: vectors, **empty, **hashes}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--full", action="store_true", help="100,000 rows and more, four numbers of clusters"
    )
    parser.add_argument("--rows", type=int, help="points; at least 2 per cluster")
    parser.add_argument("--dim", type=int, nargs="+", default=[384, 1024], help="widths")
    parser.add_argument("--clusters", type=int, nargs="+", help="numbers of clusters")
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--engines", action="store_true", help="also ours with other engines")
    options = parser.parse_args()

    options.rows = options.rows or (100_000 if options.full else 16_384)
    options.clusters = options.clusters or (
        [1000, 4096, 10_000, 40_000] if options.full else [1000, 4096]
    )

    return options


if __name__ == "__main__":
    main()
