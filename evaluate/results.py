"""Results on disk: what each evaluation set scored. The per-item tallies beside them are
evaluate/tallies.py's.

results.json          one flat row per set and metric, for other tools
results/SET.json      everything about one set: protocol, classes, baselines
tallies/SET.npz       lets two models be compared item by item
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from cluster.files import write_atomic

RESULTS = "results.json"
CLASS_METRICS = {"classification": "class_accuracy", "segmentation": "class_iou"}
"""What the value of a class is, by task."""


class Result(TypedDict):
    """One evaluation set: scores, trivial scores, how many items, and how it was measured."""

    set: str
    task: str
    error: str
    """Why the set could not be scored; empty when it was."""
    metrics: dict[str, dict[str, float]]
    """value, low and high (the limits of the 95 % interval) and n, the number of items (images, or
    pairs of sentences), by metric.
    """
    baselines: dict[str, dict[str, float]]
    sizes: dict[str, int]
    protocol: dict[str, object]
    classes: NotRequired[list[dict[str, Any]]]
    """name, n (images; pixels of segmentation), value (accuracy or IoU), low and high of each class;
    None where it was never tried.
    """
    names: NotRequired[list[dict[str, Any]]]
    """name, n (images), value (average precision of its heat map), low and high of each name."""
    encoder: str
    model: str
    """Fingerprint of the model."""
    data: str
    """Fingerprint of the set."""
    seconds: float
    """What scoring took one worker; parts that were computed before are not included."""


def result_file(out: Path, name: str) -> Path:
    """Written last: an evaluation set whose file is there is done."""
    return out / "results" / f"{name}.json"


def examples_folder(out: Path, name: str) -> Path:
    return out / "examples" / name


def write_flat(out: Path, results: Sequence[Result]) -> None:
    """Write results.json: the flat rows of all sets."""
    rows = [row for result in results for row in flat_rows(result)]
    write_atomic(out / RESULTS, json.dumps(rows, indent=1, ensure_ascii=False))


def flat_rows(result: Result) -> list[dict[str, Any]]:
    """One row per metric; one row with the error where a set could not be scored."""
    about = {
        "protocol": "; ".join(f"{name}: {value}" for name, value in result["protocol"].items()),
        "encoder": result["encoder"],
        "model": result["model"],
        "data": result["data"],
    }
    first = {"set": result["set"], "task": result["task"]}

    if result["error"]:
        return [
            {
                **first,
                "metric": None,
                "value": None,
                "low": None,
                "high": None,
                "n": None,
                "error": result["error"],
                **about,
            }
        ]

    return [
        {**first, "metric": metric, **measure, "error": None, **about}
        for metric, measure in result["metrics"].items()
    ]


def part_rows(result: Result) -> list[dict[str, Any]]:
    """One row per class and per name, with the columns of `flat_rows` and `class`."""
    about = flat_rows(result)[0]
    classes = CLASS_METRICS.get(result["task"], "")
    parts = [(classes, row) for row in result.get("classes", [])]
    parts += [("name_ap", row) for row in result.get("names", [])]
    return [
        {
            **about,
            "metric": metric,
            "class": row["name"],
            **{key: row[key] for key in ("value", "low", "high", "n")},
        }
        for metric, row in parts
    ]


def read_results(out: Path) -> list[Result]:
    """All results of a finished evaluation, in its order."""
    # A set has a row per metric. The keys of a dict are its distinct values in their order.
    names = dict.fromkeys(row["set"] for row in json.loads((out / RESULTS).read_text()))
    return [json.loads(result_file(out, name).read_text()) for name in names]
