"""Results of one or several models as rows, as a table for the terminal, and as CSV, Markdown and
LaTeX.
"""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from rich.markup import escape
from rich.table import Table

from evaluate.published_figures import published_rows
from evaluate.results import Result, flat_rows, part_rows
from evaluate.synonyms import SYNONYM_DROP

METRIC_NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_per_class": "top-1, mean over classes",
    "text_to_image_r1": "text → image R@1",
    "text_to_image_r5": "text → image R@5",
    "text_to_image_r10": "text → image R@10",
    "text_to_image_median_rank": "text → image median rank",
    "image_to_text_r1": "image → text R@1",
    "image_to_text_r5": "image → text R@5",
    "image_to_text_r10": "image → text R@10",
    "image_to_text_median_rank": "image → text median rank",
    "text_to_text_r1": "text → text R@1",
    "foil_accuracy": "caption before its foil",
    "miou": "mIoU",
    "miou_objects": "mIoU without background",
    "open_miou": "Open-mIoU",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "accuracy, mean over classes",
    "boundary_f1": "boundary F1",
    SYNONYM_DROP: "points lost with synonyms",
    "name_ap": "average precision of single names",
    "spearman": "Spearman correlation × 100",
}
RANKS = ("text_to_image_median_rank", "image_to_text_median_rank")
"""Metrics that are no shares, and are shown as they are."""
SMALL_IS_GOOD = (*RANKS, SYNONYM_DROP)
COLUMNS = (
    "set",
    "task",
    "metric",
    "class",
    "value",
    "low",
    "high",
    "n",
    "protocol",
    "encoder",
    "model",
    "data",
    "error",
)

Results = Mapping[str, Sequence[Result]]
"""Results of each model, by its name."""


def results_table(results: Results) -> Table:
    """One row for each set and metric, one column for each model: percent with its 95 %
    interval.
    """
    table = Table(title="Results, % with 95 % intervals", title_justify="left", header_style="bold")
    table.add_column("evaluation set")
    table.add_column("metric")
    for model in results:
        table.add_column(model, justify="right")

    table.add_column("trivial baseline", justify="right", style="dim")

    by_model = {
        model: {result["set"]: result for result in entries} for model, entries in results.items()
    }
    names = dict.fromkeys(name for entries in by_model.values() for name in entries)

    for name in names:
        # Models may differ in metrics, as where a set could not be scored for one of them: rows are
        # the union, in the order of the first model that has each.
        scored = [entries[name] for entries in by_model.values() if name in entries]
        metrics = dict.fromkeys(metric for result in scored for metric in result["metrics"])
        for row, metric in enumerate(metrics):
            cells = [_cell(entries.get(name), metric) for entries in by_model.values()]
            trivial = trivial_score(scored[0], metric)
            label = METRIC_NAMES.get(metric, metric)
            table.add_row(
                "" if row else name,
                label,
                *cells,
                "" if trivial is None else shown(metric, trivial),
            )

        # Published figures stand in the first model's column: they are no model of ours.
        for published in published_rows(str(scored[0]["protocol"].get("set", ""))):
            cells = [f"[dim]{published.value:.1f}[/dim]"] + [""] * (len(by_model) - 1)
            table.add_row(
                "",
                f"[dim]published: {METRIC_NAMES[published.metric]}, {published.model}[/dim]",
                *cells,
                "",
            )
        for model, entries in by_model.items():
            if name in entries and entries[name]["error"]:
                table.add_row(
                    name, f"[red]not scored: {escape(entries[name]['error'])}[/red] ({model})"
                )
        table.add_section()

    return table


def _cell(result: Mapping[str, Any] | None, metric: str) -> str:
    if result is None or metric not in result["metrics"]:
        return "–"
    measure = result["metrics"][metric]
    value, low, high = (shown(metric, measure[part]) for part in ("value", "low", "high"))
    return f"[bold]{value}[/bold] [dim]({low} to {high})[/dim]"


def shown(metric: str, value: float) -> str:
    """A value as tables have it: a rank as it is, anything else as a percentage."""
    return f"{value:.3g}" if metric in RANKS else percent(value)


def percent(share: float) -> str:
    """A share as a percentage with one decimal, two below one percent."""
    return f"{100 * share:.2f}" if 0 < abs(share) < 0.01 else f"{100 * share:.1f}"


def trivial_score(result: Mapping[str, Any], metric: str) -> float | None:
    """The best score without looking at the images: chance, or the best constant map."""
    scores = [baseline[metric] for baseline in result["baselines"].values() if metric in baseline]
    return max(scores, default=None)


def seeds_table(runs: Mapping[str, Mapping[int, Sequence[Result]]]) -> Table:
    """One row for each set and metric, one column for each model: mean and standard deviation over
    the seeds of its training.
    """
    table = Table(
        title="Over seeds of training, mean ± standard deviation",
        title_justify="left",
        header_style="bold",
    )
    table.add_column("evaluation set")
    table.add_column("metric")
    for model, by_seed in runs.items():
        table.add_column(f"{model}, seeds {', '.join(map(str, by_seed))}", justify="right")

    # Values of all seeds, by set and metric, then by model.
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for model, by_seed in runs.items():
        for result in (result for results in by_seed.values() for result in results):
            for metric, measure in result["metrics"].items():
                row = values.setdefault((result["set"], metric), {})
                row.setdefault(model, []).append(measure["value"])

    for (name, metric), by_model in values.items():
        cells = [_spread(metric, by_model.get(model, [])) for model in runs]
        table.add_row(name, METRIC_NAMES.get(metric, metric), *cells)

    return table


def _spread(metric: str, values: Sequence[float]) -> str:
    if len(values) < 2:  # one seed has no deviation
        return "–"
    return f"[bold]{shown(metric, mean(values))}[/bold] ± {shown(metric, stdev(values))}"


def as_csv(results: Results) -> str:
    """Flat rows, each with the name of its model, as comma-separated values; those of single classes
    and names have these in the column `class`.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, ("name", *COLUMNS), lineterminator="\n")
    writer.writeheader()
    for name, entries in results.items():
        for result in entries:
            rows = [*flat_rows(result), *part_rows(result)]
            writer.writerows({"name": name, **row} for row in rows)
    return buffer.getvalue()


def as_markdown(results: Results) -> str:
    """A table with one row per set and metric and one column per model."""
    head, body = _grid(results)
    lines = [head, ["---"] * 2 + ["---:"] * (len(head) - 2), *body]
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines
    )


def as_latex(results: Results) -> str:
    """The same as a tabular with rules of booktabs."""
    head, body = _grid(results)
    lines = [" & ".join(_latex(cell) for cell in line) + r" \\" for line in (head, *body)]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{ll{'r' * (len(head) - 2)}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _latex(text: str) -> str:
    special = {
        "_": r"\_",
        "%": r"\%",
        "&": r"\&",
        "#": r"\#",
        "→": r"$\rightarrow$",
        "±": r"$\pm$",
        "–": "--",
    }
    return "".join(special.get(character, character) for character in text)


def _grid(results: Results) -> tuple[list[str], list[list[str]]]:
    """Header and cells: value and half the width of its interval."""

    def cell(result: Mapping[str, Any] | None, metric: str) -> str:
        if result is None or metric not in result["metrics"]:
            return "–"
        measure = result["metrics"][metric]
        # Half the width stands for both sides, although an interval need not be symmetric.
        return (
            f"{shown(metric, measure['value'])} ± "
            f"{shown(metric, (measure['high'] - measure['low']) / 2)}"
        )

    by_model = {
        model: {result["set"]: result for result in entries} for model, entries in results.items()
    }
    names = dict.fromkeys(name for entries in by_model.values() for name in entries)
    body = []

    for name in names:
        scored = [entries[name] for entries in by_model.values() if name in entries]
        for metric in dict.fromkeys(metric for result in scored for metric in result["metrics"]):
            cells = [cell(entries.get(name), metric) for entries in by_model.values()]
            body.append([name, METRIC_NAMES.get(metric, metric), *cells])
        if any(result["error"] for result in scored):
            reasons = [
                entries[name]["error"] if name in entries else "" for entries in by_model.values()
            ]
            body.append([name, "not scored", *(reason or "" for reason in reasons)])

    return ["evaluation set", "metric", *by_model], body


TABLE_FORMATS: dict[str, Callable[[Results], str]] = {
    "csv": as_csv,
    "markdown": as_markdown,
    "latex": as_latex,
}
