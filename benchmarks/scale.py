"""K-means over shards larger than the memory allowed: time an iteration and peak memory, and levels
end to end.

Memory is the anonymous resident memory (RssAnon of /proc/PID/status: no file pages, which the
kernel may drop) of this process and of the workers, sampled ten times a second, imports included;
Ray's own processes are counted apart.

    python -m benchmarks.scale [--rows 1000000 5000000] [--dim 384] [--clusters 1000] [--iterations 5]
    python -m benchmarks.scale --rows 1000000 --levels 10000 1000 100
"""

import argparse
import multiprocessing
import resource
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil

from benchmarks.kmeans import write_mixture
from cluster.fanout import Pool, PoolWorker
from cluster.resources import Resources
from cluster.session import session
from curation.choice.balance import entropy
from curation.clusters.config import KMeansConfig, LevelsConfig
from curation.clusters.hierarchy import cluster_levels, cluster_of_rows
from curation.clusters.kmeans import kmeans
from curation.clusters.scan import Points, Scanner

SAMPLE_S = 0.1


def main() -> None:
    """One line per number of rows, or per level."""
    options = _options()
    with session(), Pool(Scanner, resources=Resources(workers=options.workers)) as workers:
        for rows in options.rows:
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                points = replace(_write_apart(Path(folder), rows, options.dim), workers=workers)
                list(points.scan("faults"))  # starts the workers
                if options.levels:
                    make_levels(points, options, Path(folder))
                else:
                    time_iterations(points, options)


def _write_apart(folder: Path, rows: int, dim: int) -> Points:
    """Made by another process, whose memory is not ours."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as writer:
        return writer.submit(write_mixture, folder, rows, dim, 1000).result()


def time_iterations(points: Points, options: argparse.Namespace) -> None:
    """k-means with a fixed number of iterations."""
    config = KMeansConfig(iterations=options.iterations, tolerance=-1.0)
    first = points.gather(
        np.random.default_rng(1).choice(points.num_rows, options.clusters, replace=False)
    )

    with measured() as memory:
        start = time.perf_counter()
        cpu = processor_seconds()
        kmeans(points, options.clusters, config, 0, first=first)
        seconds = time.perf_counter() - start
        cpu = processor_seconds() - cpu

    print(
        f"{points.num_rows:>10,} x {points.vectors.dim} float16, {_size(points):.2f} GB, "
        f"k={options.clusters}: {seconds / options.iterations:.2f} s an iteration "
        f"({cpu / options.iterations:.2f} CPU s), {memory}"
    )


def make_levels(points: Points, options: argparse.Namespace, folder: Path) -> None:
    """Hierarchical k-means with resampling on the upper levels."""
    config = KMeansConfig(iterations=options.iterations)
    plan = LevelsConfig(clusters=tuple(options.levels)).resolve(points.num_rows)
    with measured() as memory:
        start = time.perf_counter()
        levels = cluster_levels(points, plan, config, 0, folder)
        seconds = time.perf_counter() - start

    for number, (level, labels) in enumerate(
        zip(levels, cluster_of_rows(levels), strict=True), start=1
    ):
        sizes = np.bincount(labels, minlength=len(level.centroids))
        print(
            f"level {number}: {len(sizes):,} clusters, {sizes.min():,} to {sizes.max():,} rows "
            f"each, entropy {entropy(sizes):.2f} of {np.log2(len(sizes)):.2f} bits"
        )

    print(
        f"{points.num_rows:,} x {points.vectors.dim}: {seconds:.0f} s with {options.workers} "
        f"workers, {memory}"
    )


@dataclass
class Memory:
    """Most bytes seen: of this process and its workers, and of Ray itself."""

    ours: int = 0
    ray: int = 0

    def look(self) -> None:
        """Sample once."""
        this = psutil.Process()
        sizes = [
            (_is_ours(process), _anonymous(process.pid))
            for process in this.children(recursive=True)
        ]
        self.ours = max(self.ours, _anonymous(this.pid) + sum(size for ours, size in sizes if ours))
        self.ray = max(self.ray, sum(size for ours, size in sizes if not ours))

    def __str__(self) -> str:
        return f"peak memory {self.ours / 1e9:.2f} GB, and Ray itself {self.ray / 1e9:.2f} GB"


@contextmanager
def measured() -> Iterator[Memory]:
    """Samples the memory of all our processes while the body runs."""
    memory = Memory()
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLE_S):
            memory.look()

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield memory
    finally:
        ended.set()
        thread.join()


def _is_ours(process: psutil.Process) -> bool:
    try:
        return any(PoolWorker.__name__ in word for word in process.cmdline())
    except psutil.Error:
        return False


def _anonymous(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def processor_seconds() -> float:
    """CPU seconds of this process and its descendants so far."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    below = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return own.ru_utime + own.ru_stime + sum(times.user + times.system for times in below)


def _size(points: Points) -> float:
    return points.num_rows * points.vectors.dim * 2 / 1e9


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 5_000_000])
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--levels", type=int, nargs="+", help="clusters of each level, finest first"
    )
    parser.add_argument("--folder", help="where the shards are written for the time of the run")

    return parser.parse_args()


if __name__ == "__main__":
    main()
