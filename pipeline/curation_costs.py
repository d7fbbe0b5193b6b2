"""The cost of curation, by arithmetic and measured rates.

Every pass of k-means compares points with centroids. The rates are those of one core of the machine
in docs/benchmarks.md; `python -m benchmarks.kmeans` and `python -m benchmarks.curation` print them.
"""

from collections.abc import Iterator
from typing import NamedTuple

from rich.table import Table

from curation.clusters.config import LevelPlan, LevelsConfig
from curation.clusters.spans import cut_spans
from curation.config import CurateConfig

CORE_GFLOPS = 200.0  # of k-means with all its parts, for vectors of 384 to 1,024 values
BALANCED_PAIRS_PER_S = 0.65e6  # random draws, the tree, text clusters, the search for the size
BALANCE_BYTES = 170  # memory per pair
COMPARED_PAIRS_PER_S = 0.06e6  # near-duplicates, with 40 pairs per cluster and 4 neighbor clusters


class Passes(NamedTuple):
    """`points` points are compared with `centroids` centroids, `times` times."""

    stage: str
    points: float
    centroids: int
    times: float

    def flop(self, dim: int) -> float:
        """FLOP for vectors of `dim` values: a multiply-add per value counts as 2."""
        return 2.0 * self.points * self.centroids * dim * self.times


def curation_table(config: CurateConfig, rows: int, dim: int, caption_dim: int) -> Table:
    """Core-hours of each stage of curation for a pool of `rows` pairs."""
    columns = ("stage", "points", "each compared with", "times", "FLOP", "core-hours")
    title = (
        f"\nCuration: {rows:,} pairs; assumed: {CORE_GFLOPS:.0f} GFLOP/s per core, no "
        "clustering ends early"
    )
    table = Table(*columns, title=title, title_justify="left", box=None)
    total = 0.0

    for passes, width in _all_passes(config, rows, dim, caption_dim):
        hours = passes.flop(width) / CORE_GFLOPS / 1e9 / 3600
        total += hours
        cells = (f"{passes.points:,.0f}", f"{passes.centroids:,}", f"{passes.times:,.3g}")
        table.add_row(passes.stage, *cells, f"{passes.flop(width):.3g}", _hours(hours))

    for stage, rate in (
        ("near-duplicates", COMPARED_PAIRS_PER_S),
        ("balance", BALANCED_PAIRS_PER_S),
    ):
        hours = rows / rate / 3600
        total += hours
        table.add_row(stage, f"{rows:,}", "", "", f"{rate:,.0f} pairs/s", _hours(hours))

    table.add_row("all", "", "", "", "", _hours(total))
    table.caption = (
        f"a pass over all pairs keeps at most {len(cut_spans(rows)):,} workers busy; balance runs "
        f"in one process with {rows * BALANCE_BYTES / 1e9:,.3g} GB ({BALANCE_BYTES} bytes per pair)"
    )

    return table


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _all_passes(
    config: CurateConfig, rows: int, dim: int, caption_dim: int
) -> Iterator[tuple[Passes, int]]:
    """The passes of each clustering, with the number of values of its vectors."""
    if config.method in ("both", "image"):
        for passes in _side_passes("image", config.levels, config, rows):
            yield passes, dim

    if config.method in ("both", "text") and caption_dim:
        for passes in _side_passes("caption", config.text.levels, config, rows):
            yield passes, caption_dim


def _side_passes(
    side: str, levels: LevelsConfig, config: CurateConfig, rows: int
) -> Iterator[Passes]:
    # Each level clusters the centroids of the level below it.
    points = rows
    for number, plan in enumerate(levels.resolve(rows), start=1):
        yield from level_passes(f"{side} level {number}", points, plan, config.kmeans.iterations)
        points = plan.num_clusters


def level_passes(stage: str, points: int, plan: LevelPlan, iterations: int) -> Iterator[Passes]:
    """The passes of one level: k-means, its second stage, and resampling.

    k-means compares all points once per iteration, and once more for the final assignment. A level
    in two stages has num_clusters / split clusters, and splits each; a point is then compared with
    the centroids of its own cluster only. Each round of resampling runs k-means on the points
    nearest to the centroids (Vo et al. 2024), then assigns all points again.
    """
    clusters = plan.num_clusters // max(1, plan.split)
    yield Passes(stage, points, clusters, iterations + 1)
    if plan.split > 1:
        yield Passes(f"{stage}, split", points, plan.split, iterations + 1)
    if plan.rounds:
        resampled = min(points, plan.nearest * clusters)
        yield Passes(f"{stage}, resampled", resampled, clusters, plan.rounds * iterations)
        yield Passes(f"{stage}, assigned again", points, clusters, plan.rounds)
