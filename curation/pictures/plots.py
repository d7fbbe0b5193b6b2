"""Plots of curation as SVG data URIs, which an HTML page can contain."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float32, Float64, Int64
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BEFORE = "#8a94a3"
AFTER = "#2456c9"
INK = "#1d2430"
MUTED = "#667080"
RULE = "#e3e7ed"
# Text stays text in the SVG, and the fixed salt makes its identifiers the same in each run.
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dinotxt",
    "font.family": "sans-serif",
    "font.sans-serif": ["system-ui", "DejaVu Sans"],
    "font.size": 9.5,
}
MOST_POINTS = 600  # of a curve or map: more cannot be told apart and only make the page larger


def funnel(stages: Sequence[tuple[str, int]]) -> str:
    """Bars from top to bottom: the number of pairs that are left after each stage."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 0.42 * len(stages) + 0.5), layout="constrained")
        axes = figure.add_subplot()
        names, counts = zip(*stages, strict=True)
        places = np.arange(len(stages))[::-1]
        colors = [BEFORE] * (len(stages) - 1) + [AFTER]
        axes.barh(places, counts, color=colors, height=0.68)
        for place, count in zip(places, counts, strict=True):
            axes.annotate(f" {count:,}", (count, place), va="center", color=INK)
        axes.set_yticks(places, names)
        axes.set_xlim(0, 1.12 * max(1, *counts))
        axes.xaxis.set_visible(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, colors=INK)
        return _data_uri(figure)


def size_curves(
    levels: Mapping[str, tuple[Int64[np.ndarray, " _"], Int64[np.ndarray, " _"]]],
) -> str:
    """Curves of cluster sizes by rank, before and after curation, one log-log panel per level."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.5 * len(levels), 2.8), layout="constrained")
        for axes, (name, (before, after)) in zip(
            _row(figure, len(levels)), levels.items(), strict=True
        ):
            for sizes, color, label in ((before, BEFORE, "before"), (after, AFTER, "after")):
                # Ranks that are evenly spaced on the logarithmic axis, each once.
                ordered = np.sort(sizes[sizes > 0])[::-1]
                shown = np.unique(np.geomspace(1, max(1, len(ordered)), MOST_POINTS).astype(int))
                axes.plot(
                    shown[: len(ordered)],
                    ordered[shown[: len(ordered)] - 1],
                    color=color,
                    label=label,
                    lw=1.8,
                )
            axes.set(
                xscale="log", yscale="log", title=name, xlabel="cluster, by size", ylabel="pairs"
            )
            axes.legend(frameon=False)
            _dress(axes)
        return _data_uri(figure)


def threshold_curve(
    thresholds: Float64[np.ndarray, " n"], expected: Float64[np.ndarray, " n"], chosen: float
) -> str:
    """A curve of the pairs that caption balancing keeps, by its threshold t."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 2.8), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(thresholds, expected, color=AFTER, lw=1.8)
        axes.axvline(chosen, color=INK, lw=1, ls="--")
        axes.annotate(
            f" t = {chosen:.4g}", (chosen, 0.05), xycoords=("data", "axes fraction"), color=INK
        )
        axes.set(
            xscale="log",
            xlabel="threshold t, pairs per cluster or entry",
            ylabel="pairs kept, expected",
        )
        axes.yaxis.set_major_formatter("{x:,.0f}")
        _dress(axes)
        return _data_uri(figure)


def cluster_map(
    centroids: Float32[np.ndarray, "k d"],
    before: Int64[np.ndarray, " k"],
    after: Int64[np.ndarray, " k"],
) -> str:
    """A map of the largest clusters on two principal axes: area by size, color by share kept."""
    largest = np.argsort(-before, kind="stable")[:MOST_POINTS]
    shown = centroids[largest]

    # The first right singular vectors of centered points are their principal axes.
    centered = shown - shown.mean(axis=0)
    x, y = np.linalg.svd(centered, full_matrices=False)[2][:2] @ centered.T

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 4.0), layout="constrained")
        axes = figure.add_subplot()
        area = 8 + 380 * before[largest] / max(1, before.max())
        share = after[largest] / np.maximum(before[largest], 1)
        points = axes.scatter(
            x, y, s=area, c=share, cmap="viridis_r", vmin=0, vmax=1, alpha=0.75, linewidths=0
        )
        figure.colorbar(points, ax=axes, label="share kept", shrink=0.8)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        return _data_uri(figure)


def _row(figure: Figure, count: int) -> Sequence[Axes]:
    return list(figure.subplots(1, count, squeeze=False)[0])


def _dress(axes: Axes) -> None:
    axes.grid(color=RULE, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.tick_params(colors=MUTED, which="both")
    axes.xaxis.label.set_color(MUTED)
    axes.yaxis.label.set_color(MUTED)


def _data_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    # Without the date, the same plot has the same bytes.
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
