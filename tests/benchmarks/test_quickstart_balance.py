"""The arms of a workspace are those that were made in it."""

import json
from pathlib import Path

from benchmarks.quickstart_balance import find_arms


def write_record(folder: Path, **fields: object) -> None:
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(
        json.dumps({"fingerprint": folder.name, "finished": "2026", **fields})
    )


def test_models_from_elsewhere_are_no_arms(tmp_path: Path) -> None:
    drawings = {"classification": ["pool1", "classification.tar"]}
    write_record(tmp_path / "train" / "t1", inputs={"selection": ["c1", ""]})
    write_record(
        tmp_path / "evaluate" / "e1",
        label="evaluate",
        inputs={**drawings, "model": ["t1", "model"]},
    )
    write_record(
        tmp_path / "evaluate" / "e2",
        label="evaluate@theirs",
        inputs={**drawings, "model": ["data", "ab"]},
    )
    write_record(tmp_path / "evaluate" / "e3", label="evaluate@ViT-B-32", inputs=drawings)
    (arm,) = find_arms(tmp_path)
    assert (arm.name, arm.curate, arm.evaluate) == (
        "curated",
        tmp_path / "curate" / "c1",
        tmp_path / "evaluate" / "e1",
    )
