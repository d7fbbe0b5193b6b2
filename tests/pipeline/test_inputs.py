"""What the user names is opened before anything runs, and refused with its own name."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.graph import build_steps
from pipeline.inputs import check_evaluation, evaluation_sets, named_sets
from pipeline.presets import PRESETS
from pipeline.recipes import DataConfig, Recipe

DEBUG = PRESETS["debug"]


def recipe_with(folder: Path, chosen: tuple[str, ...] = (), **sets: tuple[str, ...]) -> Recipe:
    data = DataConfig(pairs=str(folder), **sets)
    return replace(DEBUG, emoji=None, data=data, evaluate=replace(DEBUG.evaluate, sets=chosen))


def test_sets_of_another_layout_are_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no labels\.json in"):
        check_evaluation(recipe_with(tmp_path, segmentation=(str(tmp_path),)))
    (tmp_path / "captions.json").write_text(json.dumps([]))
    with pytest.raises(ValueError, match=f"no caption file in {tmp_path}"):
        check_evaluation(recipe_with(tmp_path, retrieval=(str(tmp_path),)))


def test_all_problems_of_the_sets_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "1.jpg").write_bytes(b"")
    sets = {"classification": (str(tmp_path),), "segmentation": (str(tmp_path),)}
    with pytest.raises(ValueError, match=r"(?s)class name '7' is a number.*no labels\.json"):
        check_evaluation(recipe_with(tmp_path, **sets))


def test_a_set_may_name_a_variant(tmp_path: Path) -> None:
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "1.jpg").write_bytes(b"")
    recipe = recipe_with(tmp_path, classification=(f"{tmp_path}@20",))
    assert list(evaluation_sets(recipe)) == [f"classification_{tmp_path.stem}@20"]
    with pytest.raises(ValueError, match="folders has no variant '20'"):
        check_evaluation(recipe)


def test_a_set_that_is_not_scored_is_still_looked_for_in_the_pool(tmp_path: Path) -> None:
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "1.jpg").write_bytes(b"")
    sets = {"classification": (str(tmp_path),), "segmentation": (str(tmp_path),)}
    scored = (f"classification_{tmp_path.stem}",)
    with pytest.raises(ValueError, match=r"no labels\.json"):
        check_evaluation(recipe_with(tmp_path, scored, **sets))
    check_evaluation(recipe_with(tmp_path, scored, **sets, leakage=("off",)))


def test_sets_that_are_not_there_are_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'retreival': did you mean 'retrieval'"):
        check_evaluation(replace(DEBUG, evaluate=replace(DEBUG.evaluate, sets=("retreival",))))
    with pytest.raises(ValueError, match="it has none"):
        check_evaluation(recipe_with(tmp_path, ("retrieval",)))


def test_models_from_elsewhere_need_a_set_to_be_scored_on(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="no evaluation set: at least one is needed"):
        build_steps(replace(recipe_with(tmp_path), others=(str(tmp_path),)))


def test_the_task_of_a_known_set_follows_from_its_files(tmp_path: Path) -> None:
    for name in ("imagenet/n01440764/1.JPEG", "voc/SegmentationClass/1.png", "own/dog/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"")
    listing = tmp_path / "voc" / "ImageSets" / "Segmentation" / "val.txt"
    listing.parent.mkdir(parents=True)
    listing.write_text("1\n")

    paths = {name: str(tmp_path / name) for name in ("imagenet", "voc", "own")}
    own = f"classification:{paths['own']}"
    assert named_sets([paths["imagenet"], f"{paths['voc']}@20", own]) == {
        "classification": (paths["imagenet"], paths["own"]),
        "retrieval": (),
        "segmentation": (f"{paths['voc']}@20",),
        "similarity": (),
    }
    with pytest.raises(
        ValueError,
        match=f"is no known set; name the task before it: --set classification:{paths['own']}",
    ):
        named_sets([paths["own"]])


def test_a_leakage_set_without_images_is_named_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"data\.leakage: .* has no images.*correct data\.leakage"):
        check_evaluation(recipe_with(tmp_path, leakage=(str(tmp_path),)))
    (tmp_path / "1.jpg").write_bytes(b"x")
    check_evaluation(recipe_with(tmp_path, leakage=(str(tmp_path),)))
