"""What curation costs, by arithmetic: every pass of k-means compares points with centroids; rates
are measured ones.

Rates are of one core of the machine that the README names: `python -m benchmarks.kmeans` and
`python -m benchmarks.curation` print them.
"""

from collections.abc import Iterator
from typing import NamedTuple

from rich.table import Table

from curation.clusters.config import LevelPlan, LevelsConfig, automatic_clusters
from curation.clusters.spans import cut_spans
from curation.config import CurateConfig

CORE_GFLOPS = 200.0  # of k-means, all its parts, at 384 to 1,024 values
BALANCED_PAIRS_PER_S = 0.65e6  # coins, the tree, text clusters, the search for the exact size
BALANCE_BYTES = 170  # a pair
COMPARED_PAIRS_PER_S = 0.06e6  # the search for near-duplicates, 40 pairs a cluster, 4 neighbours


class Passes(NamedTuple):
    """Points compared with centroids, so many times."""

    stage: str
    points: float
    centroids: int
    times: float

    def flop(self, dim: int) -> float:
        return 2.0 * self.points * self.centroids * dim * self.times


def curation_table(config: CurateConfig, rows: int, dim: int, caption_dim: int) -> Table:
    """Core-hours of each stage for a pool of so many pairs."""
    columns = ("stage", "points", "each compared with", "times", "FLOP", "core-hours")
    title = (
        f"\nCuration: {rows:,} pairs; assumed: {CORE_GFLOPS:.0f} GFLOP/s a core, no "
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
        f"in one process with {rows * BALANCE_BYTES / 1e9:,.3g} GB ({BALANCE_BYTES} bytes a pair)"
    )

    return table


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _all_passes(
    config: CurateConfig, rows: int, dim: int, caption_dim: int
) -> Iterator[tuple[Passes, int]]:
    """Each clustering with the width of its vectors."""
    if config.method in ("both", "image"):
        points = rows
        for number, plan in enumerate(config.levels.resolve(rows), start=1):
            for passes in level_passes(
                f"image level {number}", points, plan, config.kmeans.iterations
            ):
                yield passes, dim
            points = plan.num_clusters

    if config.method in ("both", "text") and caption_dim:
        clusters = config.text.clusters
        split = config.text.split
        if not clusters:
            clusters, split = automatic_clusters(rows, split)
        levels = LevelsConfig(clusters=(clusters,), split=(split,))
        for passes in level_passes(
            "captions", rows, levels.resolve(rows)[0], config.kmeans.iterations
        ):
            yield passes, caption_dim


def level_passes(stage: str, points: int, plan: LevelPlan, iterations: int) -> Iterator[Passes]:
    """k-means, one assignment after it; a second stage within each cluster; k-means anew on
    resampled points.
    """
    clusters = plan.num_clusters // max(1, plan.split)
    yield Passes(stage, points, clusters, iterations + 1)
    if plan.split > 1:
        yield Passes(f"{stage}, split", points, plan.split, iterations + 1)
    if plan.rounds:
        resampled = min(points, plan.nearest * clusters)
        yield Passes(f"{stage}, resampled", resampled, clusters, plan.rounds * iterations)
        yield Passes(f"{stage}, assigned again", points, clusters, plan.rounds)
