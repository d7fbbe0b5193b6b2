"""Results on disk: one entry for each evaluation set, and the per-item tallies that intervals are made from.

`results.json` is for readers; `tallies/<benchmark>.npz` lets two models be compared item by item.
"""

import json
from pathlib import Path
from typing import TypedDict

import numpy as np

from cluster.files import replacing, write_atomic
from evaluate.metrics import Estimate, Tally

RESULTS = "results.json"


class Measure(TypedDict):
    """A value with its 95 % confidence interval."""

    value: float
    low: float
    high: float


class Result(TypedDict):
    """One evaluation set: scores, what seeing nothing would score, how many items, and how it was measured."""

    benchmark: str
    task: str
    metrics: dict[str, Measure]
    baselines: dict[str, dict[str, float]]
    sizes: dict[str, int]
    protocol: dict[str, object]
    encoder: str
    seconds: float


def as_measure(estimate: Estimate) -> Measure:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def result_file(out: Path, benchmark: str) -> Path:
    """Written last: an evaluation set whose file is there is done."""
    return out / "results" / f"{benchmark}.json"


def examples_folder(out: Path, benchmark: str) -> Path:
    return out / "examples" / benchmark


def write_result(out: Path, result: Result, tallies: dict[str, Tally]) -> None:
    """The tallies, then the result, each whole or absent."""
    arrays = {f"{name}/{part}": getattr(tally, part) for name, tally in tallies.items() for part in ("hits", "trials")}
    target = _tally_file(out, result["benchmark"])
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    path = result_file(out, result["benchmark"])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(result, indent=1, ensure_ascii=False))


def read_tallies(out: Path, benchmark: str) -> dict[str, Tally]:
    """Per-item hits and trials of every metric of one evaluation set."""
    with np.load(_tally_file(out, benchmark)) as arrays:
        names = dict.fromkeys(name.rpartition("/")[0] for name in arrays.files)
        return {name: Tally(arrays[f"{name}/hits"], arrays[f"{name}/trials"]) for name in names}


def _tally_file(out: Path, benchmark: str) -> Path:
    return out / "tallies" / f"{benchmark}.npz"


def read_results(out: Path) -> list[Result]:
    """All results of a finished evaluation."""
    return json.loads((out / RESULTS).read_text())
