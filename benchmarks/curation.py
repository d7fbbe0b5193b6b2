"""Curation with a known truth, and the rates of those stages that are no k-means.

Quality: concepts with Zipf frequencies. The image vectors and the caption vectors of a concept are
drawn apart, each around a random center of its own; levels are the default of curate. Entropy of
the true concepts after curation, after a random draw of the same size, and at the optimum (water
filling over the truth). Rates: CPU seconds of one process, one thread. Balancing:
rows in unevenly filled leaves below two more levels. Duplicates: a hundredth of the rows repeats
another up to noise. Memory is the peak of arrays that a stage adds.

    python -m benchmarks.curation [--rows N] [--exponent X] [--balance-rows N] [--leaves N]
        [--duplicate-rows N]
"""

import argparse
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int32, Int64

from cluster.threads import limit_threads
from curation.choice.balance import ImageBalance, TextBalance, combine, entropy
from curation.choice.config import DuplicatesConfig
from curation.choice.draws import coins
from curation.choice.duplicates import hash_pairs, neighborhoods, semantic_pairs
from curation.choice.likeness import Cosines, Rule
from curation.choice.water import water_fill
from curation.clusters.config import KMeansConfig, LevelsConfig
from curation.clusters.groups import one_entry_each
from curation.clusters.hierarchy import cluster_levels
from curation.clusters.kmeans import assign, kmeans
from curation.clusters.scan import points_in_memory
from curation.clusters.vectors import to_unit

DIM = 64
NOISE = 0.5


def main() -> None:
    """Print the tables."""
    options = _options()
    limit_threads(1)
    _print_quality(options.rows, options.concepts, options.exponent, options.keep)
    _print_balancing(options.balance_rows, options.leaves)
    _print_duplicates(options.duplicate_rows)


def _print_quality(num_rows: int, num_concepts: int, exponent: float, keep: float) -> None:
    concepts = zipf_concepts(num_rows, num_concepts, exponent)
    sizes = np.bincount(concepts, minlength=num_concepts)
    target = round(keep * num_rows)
    rng = np.random.default_rng(2)
    image_leaves, image_parents = _clusters(around_centers(concepts, num_concepts, seed=3))
    text_leaves, text_parents = _clusters(around_centers(concepts, num_concepts, seed=4))

    image = ImageBalance(
        image_leaves, image_parents, len(image_parents[0]), rng.random(num_rows), 0
    )
    text = TextBalance(one_entry_each(text_leaves), rng.random(num_rows), text_parents)
    optimum = water_fill(
        sizes, np.zeros(num_concepts, np.int64), np.array([target]), rng.random(num_concepts)
    )
    kept = {
        "image clusters": image.copies(target) > 0,
        "caption clusters": text.keep(target),
        "captions, one level": TextBalance(one_entry_each(text_leaves), rng.random(num_rows)).keep(
            target
        ),
        "both, intersection": combine(image, text, target, "intersection").copies > 0,
        "both, union": combine(image, text, target, "union").copies > 0,
        "random": np.isin(np.arange(num_rows), rng.choice(num_rows, target, replace=False)),
    }
    print(
        f"\n{num_rows:,} rows of {num_concepts} concepts, Zipf {exponent}, d={DIM}; {target:,} kept"
    )
    print(f"{'pool':20} entropy {entropy(sizes):.3f} bits, {(sizes > 0).sum()} concepts")

    for name, mask in kept.items():
        counts = np.bincount(concepts[mask], minlength=num_concepts)
        print(
            f"{name:20} entropy {entropy(counts):.3f} bits, {(counts > 0).sum()} concepts, "
            f"{mask.sum():,} rows"
        )

    print(f"{'optimum':20} entropy {entropy(optimum):.3f} bits, {(optimum > 0).sum()} concepts")


def _clusters(
    vectors: Float32[np.ndarray, "n d"],
) -> tuple[Int32[np.ndarray, " n"], list[Int32[np.ndarray, " _"]]]:
    """The leaf of each row, and per level the parents of its clusters, with the default levels."""
    plan = LevelsConfig().resolve(len(vectors))
    with TemporaryDirectory() as folder:
        levels = cluster_levels(
            points_in_memory(vectors, True), plan, KMeansConfig(), 0, Path(folder)
        )
    return levels[0].labels, [level.labels for level in levels[1:]]


def zipf_concepts(num_rows: int, num_concepts: int, exponent: float) -> Int64[np.ndarray, " n"]:
    """The concept of each row, by Zipf's law."""
    frequency = np.arange(1, num_concepts + 1) ** -exponent
    return np.random.default_rng(0).choice(num_concepts, num_rows, p=frequency / frequency.sum())


def around_centers(
    concepts: Int64[np.ndarray, " n"], num_concepts: int, seed: int
) -> Float32[np.ndarray, "n d"]:
    """A unit vector per row, around the random center of its concept."""
    rng = np.random.default_rng(seed)
    centers = to_unit(rng.standard_normal((num_concepts, DIM), dtype=np.float32))
    noise = to_unit(rng.standard_normal((len(concepts), DIM), dtype=np.float32))
    return to_unit(centers[concepts] + np.float32(NOISE) * noise)


def _print_balancing(num_rows: int, num_leaves: int) -> None:
    print(f"\nBalancing {num_rows:,} pairs over {num_leaves:,} leaves, half of them kept")
    rng = np.random.default_rng(0)
    leaves = (rng.random(num_rows) ** 3 * num_leaves).astype(np.int32)
    parents = [rng.integers(0, n // 20, n).astype(np.int32) for n in (num_leaves, num_leaves // 20)]
    keys = pa.chunked_array([pa.array(np.char.add("part-00000/", np.arange(num_rows).astype(str)))])
    with _measured("coins of keys", num_rows):
        priority = coins(keys, 0, "leaf")

    with _measured("image: tree", num_rows):
        image = ImageBalance(leaves, parents, num_leaves, priority, 0)

    with _measured("image: one budget", num_rows):
        image.copies(num_rows // 2)

    with _measured("text: one cluster each", num_rows):
        text = TextBalance(one_entry_each(leaves), priority)

    with _measured("both, exact size", num_rows):
        combine(image, text, num_rows // 2, "intersection")

    sizes = rng.geometric(0.01, 10_000_000)
    owners = rng.integers(0, 500_000, len(sizes))
    budgets = np.bincount(owners, sizes, 500_000).astype(np.int64) // 2
    with _measured("water filling of 10 M leaves below 500,000", len(sizes)):
        water_fill(sizes, owners, budgets, rng.random(len(sizes)))


def _print_duplicates(num_rows: int) -> None:
    print(f"\nDuplicates among {num_rows:,} pairs, d={DIM}")
    rng = np.random.default_rng(0)
    concepts = zipf_concepts(num_rows, num_rows // 40, 1.5)
    vectors = around_centers(concepts, num_rows // 40, seed=1)
    repeated, model = rng.choice(num_rows, (2, num_rows // 100), replace=False)
    vectors[repeated] = to_unit(
        vectors[model] + 0.01 * rng.standard_normal((len(model), DIM), np.float32)
    )
    points = points_in_memory(vectors, True)
    order = rng.permutation(num_rows)
    centroids = kmeans(points, num_rows // 40, KMeansConfig(iterations=3), 0)
    labels = assign(points, centroids)[0]
    with _measured("cosine, own and 4 next clusters", num_rows):
        near = neighborhoods(labels[order], centroids, DuplicatesConfig().neighbors)
        semantic_pairs(points, order, near, Rule(Cosines(1.0, 1.0), 0.985, None))

    hashes = rng.integers(0, 256, (num_rows, 32), dtype=np.uint8)
    with _measured("hashes within 30 bits, 8 orientations", num_rows):
        hash_pairs(hashes, np.arange(num_rows), 30)


@contextmanager
def _measured(name: str, num_rows: int) -> Iterator[None]:
    tracemalloc.start()
    start = time.process_time()
    yield
    seconds = time.process_time() - start
    added = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    rate = num_rows / seconds / 1e6
    size = added / num_rows
    print(f"{name:44} {seconds:7.2f} s {rate:8.2f} M/s {size:8.0f} MB per million")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", type=int, default=20_000, help="rows of the mixture with a known truth"
    )
    parser.add_argument("--concepts", type=int, default=200)
    parser.add_argument("--exponent", type=float, default=1.5, help="of Zipf's law")
    parser.add_argument("--keep", type=float, default=0.1, help="share of them to keep")
    parser.add_argument("--balance-rows", type=int, default=1_000_000)
    parser.add_argument("--leaves", type=int, default=100_000)
    parser.add_argument("--duplicate-rows", type=int, default=50_000)

    return parser.parse_args()


if __name__ == "__main__":
    main()
