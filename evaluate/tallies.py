"""Per-item tallies on disk, from which intervals are made and two models are compared item by
item.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cluster.files import replacing, write_atomic
from evaluate.results import Result, result_file
from evaluate.tally import Tally


def write_result(out: Path, result: Result, tallies: Mapping[str, Tally]) -> None:
    """The tallies, then the result, each whole or absent."""
    arrays: dict[str, np.ndarray] = {}
    for name, tally in tallies.items():
        arrays |= {
            f"{name}/hits": tally.hits,
            f"{name}/trials": tally.trials,
            f"{name}/statistic": np.array(tally.statistic),
        }
        if tally.columns is not None:
            arrays[f"{name}/columns"] = tally.columns

    target = _tally_file(out, result["set"])
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    path = result_file(out, result["set"])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(result, indent=1, ensure_ascii=False))


def read_tallies(out: Path, name: str) -> dict[str, Tally]:
    """Per-item hits and trials of every metric of one evaluation set."""
    with np.load(_tally_file(out, name)) as arrays:
        metrics = dict.fromkeys(key.rpartition("/")[0] for key in arrays.files)
        return {
            metric: Tally(
                arrays[f"{metric}/hits"],
                arrays[f"{metric}/trials"],
                arrays[f"{metric}/columns"] if f"{metric}/columns" in arrays.files else None,
                str(arrays[f"{metric}/statistic"]),  # type: ignore[arg-type]  # written above
            )
            for metric in metrics
        }


def _tally_file(out: Path, name: str) -> Path:
    return out / "tallies" / f"{name}.npz"
