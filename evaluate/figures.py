"""Training curves as small SVG pictures that a page can hold."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = ("#2456c9", "#d9730d", "#0f8a5f", "#8b3fb3", "#5b6472")
INK, MUTED, RULE = "#1d2430", "#667080", "#e3e7ed"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dinotxt",
    "font.family": "sans-serif",
    "font.sans-serif": ["system-ui", "DejaVu Sans"],
    "font.size": 9.5,
}
PANELS = (
    ("Loss", ("loss", "val_loss"), False),
    ("Accuracy within a batch", ("accuracy", "val_accuracy"), True),
    ("Learning rate", ("lr",), False),
    ("Logit scale", ("logit_scale",), False),
)


@dataclass(frozen=True)
class Picture:
    """A figure as a data URI, with what it shows."""

    title: str
    uri: str


def training_curves(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> list[Picture]:
    """One picture for each quantity that the runs logged; one colour for each run, validation dashed."""
    pictures = []
    for title, names, starts_at_zero in PANELS:
        if not any(name in row for rows in runs.values() for row in rows for name in names):
            continue
        figure = Figure(figsize=(4.6, 2.9), layout="constrained")
        axes = figure.add_subplot()
        for (arm, rows), color in zip(runs.items(), COLORS * len(runs), strict=False):
            for name in names:
                _curve(axes, rows, name, arm, color)
        if starts_at_zero:
            axes.set_ylim(bottom=0)
        _dress(axes)
        pictures.append(Picture(title, _svg_uri(figure)))
    return pictures


def _curve(axes: Axes, rows: Sequence[Mapping[str, float]], name: str, arm: str, color: str) -> None:
    points = [(row["step"], row[name]) for row in rows if name in row]
    if not points:
        return
    steps, values = zip(*points, strict=True)
    is_validation = name.startswith("val_")
    axes.plot(
        steps,
        values,
        color=color,
        linewidth=1.4,
        linestyle=(0, (4, 2)) if is_validation else "-",
        marker="o" if is_validation and len(points) < 40 else None,
        markersize=3,
        label=f"{arm}, validation" if is_validation else arm,
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
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
