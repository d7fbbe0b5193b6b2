"""Training curves as small SVG pictures that a page can hold."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = ("#2456c9", "#d9730d", "#0f8a5f", "#8b3fb3", "#5b6472")
Numbers = Mapping[str, float | int]
Dashes = str | tuple[int, tuple[int, int]]
DASHES: tuple[Dashes, ...] = ("-", (0, (4, 2)))
INK = "#1d2430"
MUTED = "#667080"
RULE = "#e3e7ed"
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: the picture is small, and the reader's font is used
    "svg.hashsalt": "dinotxt",  # ids within the SVG: with a fixed salt, one figure has one file
    "font.family": "sans-serif",
    "font.sans-serif": ["system-ui", "DejaVu Sans"],
    "font.size": 9.5,
}
# title, metrics with what they are called beside the run's name, whether the axis starts at 0
PANELS: tuple[tuple[str, dict[str, str], bool], ...] = (
    ("Loss", {"loss": "", "val_loss": "validation"}, False),
    ("Accuracy within a batch", {"batch_accuracy": ""}, True),
    (
        "Validation recall at 1",
        {"val_text_to_image_r1": "to image", "val_image_to_text_r1": "to text"},
        True,
    ),
    ("Learning rate", {"lr": ""}, True),
    ("Logit scale", {"logit_scale": ""}, False),
    ("Pairs per second", {"pairs_per_s": ""}, True),
)


@dataclass(frozen=True)
class Picture:
    """A figure as a data URI, with what it shows."""

    title: str
    uri: str


@mpl.rc_context(STYLE)
def training_curves(runs: Mapping[str, Sequence[Numbers]]) -> list[Picture]:
    """One picture for each quantity that the runs logged; a color for each run, its second curve
    dashed.
    """
    return [
        _panel(title, names, starts_at_zero, runs)
        for title, names, starts_at_zero in PANELS
        if any(name in row for rows in runs.values() for row in rows for name in names)
    ]


def _panel(
    title: str,
    names: Mapping[str, str],
    starts_at_zero: bool,
    runs: Mapping[str, Sequence[Numbers]],
) -> Picture:
    figure = Figure(figsize=(4.6, 2.9), layout="constrained")
    axes = figure.add_subplot()
    for (arm, rows), color in zip(runs.items(), COLORS * len(runs), strict=False):
        for (name, note), dashes in zip(names.items(), DASHES, strict=False):
            _curve(axes, rows, name, f"{arm}, {note}" if note else arm, color, dashes)

    if starts_at_zero:
        axes.set_ylim(bottom=0)

    _dress(axes)
    return Picture(title, _svg_uri(figure))


def _curve(
    axes: Axes, rows: Sequence[Numbers], name: str, label: str, color: str, dashes: Dashes
) -> None:
    points = [(row["step"], row[name]) for row in rows if name in row]
    if not points:
        return

    steps, values = zip(*points, strict=True)
    marker = "o" if len(points) < 40 else None
    axes.plot(
        steps,
        values,
        color=color,
        linewidth=1.4,
        linestyle=dashes,
        marker=marker,
        markersize=2.5,
        label=label,
    )


def _dress(axes: Axes) -> None:
    axes.set_xlabel("step", color=MUTED)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(RULE)
    axes.legend(frameon=False, labelcolor=INK, fontsize=8.5)


def _svg_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    # Without the date, a report that is made again has the same bytes.
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
