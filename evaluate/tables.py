"""Results of one or several models as rows, and as a table for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

METRIC_NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "text_to_image_r1": "text → image R@1",
    "text_to_image_r5": "text → image R@5",
    "text_to_image_r10": "text → image R@10",
    "image_to_text_r1": "image → text R@1",
    "image_to_text_r5": "image → text R@5",
    "image_to_text_r10": "image → text R@10",
    "miou": "mIoU",
    "miou_objects": "mIoU without background",
    "pixel_accuracy": "pixel accuracy",
}


def results_table(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    """One row for each benchmark and metric, one column for each model: percent with its 95 % interval.

    `results` holds what results.json holds, by the name of the model.
    """
    table = Table(title="Results, % with 95 % intervals", title_justify="left", header_style="bold")
    table.add_column("benchmark")
    table.add_column("metric")
    for arm in results:
        table.add_column(arm, justify="right")
    table.add_column("seeing nothing", justify="right", style="dim")
    by_arm = {arm: {result["benchmark"]: result for result in entries} for arm, entries in results.items()}
    benchmarks = dict.fromkeys(name for entries in by_arm.values() for name in entries)
    for benchmark in benchmarks:
        having = [entries[benchmark] for entries in by_arm.values() if benchmark in entries]
        for row, metric in enumerate(having[0]["metrics"]):
            cells = [_cell(entries.get(benchmark), metric) for entries in by_arm.values()]
            trivial = trivial_score(having[0], metric)
            name = METRIC_NAMES.get(metric, metric)
            table.add_row("" if row else benchmark, name, *cells, "" if trivial is None else percent(trivial))
        table.add_section()
    return table


def _cell(result: Mapping[str, Any] | None, metric: str) -> str:
    if result is None or metric not in result["metrics"]:
        return "–"
    measure = result["metrics"][metric]
    return f"[bold]{percent(measure['value'])}[/bold] [dim]{percent(measure['low'])}–{percent(measure['high'])}[/dim]"


def percent(share: float) -> str:
    """A share as a percentage with one decimal, two below one percent."""
    return f"{100 * share:.2f}" if 0 < abs(share) < 0.01 else f"{100 * share:.1f}"


def trivial_score(result: Mapping[str, Any], metric: str) -> float | None:
    """The best that can be had without looking: chance, or the best constant map."""
    scores = [baseline[metric] for baseline in result["baselines"].values() if metric in baseline]
    return max(scores, default=None)
