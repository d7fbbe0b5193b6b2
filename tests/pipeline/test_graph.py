"""Recipes as steps: what a user names becomes an input of the right step."""

from dataclasses import replace
from pathlib import Path

from pipeline.fingerprint import fingerprint
from pipeline.graph import draw_steps
from pipeline.presets import PRESETS
from pipeline.step import Step


def _curate(metadata: str) -> Step:
    recipe = PRESETS["debug"]
    steps = draw_steps(replace(recipe, data=replace(recipe.data, metadata=metadata)))
    return next(step for step in steps if step.label == "curate")


def test_the_content_of_metadata_entries_is_part_of_the_selection(tmp_path: Path) -> None:
    entries, moved = tmp_path / "entries.txt", tmp_path / "moved.txt"
    entries.write_text("dog\ncat\n")
    moved.write_text("dog\ncat\n")
    step = _curate(str(entries))
    assert step.inputs["metadata"] == entries
    assert "metadata" not in _curate("").inputs
    before = fingerprint(step)
    assert before != fingerprint(_curate(""))
    assert before == fingerprint(_curate(str(moved)))
    other = tmp_path / "other.txt"
    other.write_text("dog\ncats\n")
    assert before != fingerprint(_curate(str(other)))
