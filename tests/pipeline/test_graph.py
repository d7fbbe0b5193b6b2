"""Recipes as steps: what a user names becomes an input of the right step."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from curation.choice.config import OFF
from curation.encoders.config import BackboneConfig
from pipeline.graph import build_steps, draw_steps, resolve_backbone
from pipeline.presets import PRESETS
from pipeline.recipes import DataConfig, Recipe
from pipeline.step import Output, Step, in_order
from train.config import LiveConfig

DEBUG = PRESETS["debug"]


def steps(recipe: Recipe) -> dict[str, Step]:
    return {step.label: step for step in in_order(draw_steps(recipe))}


def test_each_view_is_embedded_once_for_all_arms_and_given_to_training() -> None:
    found = steps(replace(DEBUG, views=2, compare=("uncurated",)))
    assert [found[f"embed@view{view}"].config.view for view in (1, 2)] == [1, 2]
    for label in ("train", "train@uncurated"):
        views = {
            name: source for name, source in found[label].inputs.items() if name.startswith("view_")
        }
        assert [source.step for source in views.values()] == [
            found["embed@view1"],
            found["embed@view2"],
        ]
    assert found["embed"].fingerprint == steps(DEBUG)["embed"].fingerprint


def test_a_live_backbone_is_given_the_pairs_as_the_embed_step_reads_them() -> None:
    source = replace(DEBUG.embed.source, part_rows=7)
    backbone = replace(DEBUG.embed.backbone, weights="w.pth")
    embed = replace(DEBUG.embed, source=source, backbone=backbone)
    found = steps(
        replace(DEBUG, embed=embed, train=replace(DEBUG.train, live=LiveConfig(enabled=True)))
    )
    live = found["train"].config.live
    assert (live.source, live.weights) == (source, "w.pth")
    assert found["train"].inputs["source"] == Output(found["pool"], "train")


def _curate(metadata: str) -> Step:
    return steps(replace(DEBUG, data=replace(DEBUG.data, metadata=metadata)))["curate"]


def test_the_content_of_metadata_entries_is_part_of_the_selection(tmp_path: Path) -> None:
    entries = tmp_path / "entries.txt"
    moved = tmp_path / "moved.txt"
    entries.write_text("dog\ncat\n")
    moved.write_text("dog\ncat\n")
    step = _curate(str(entries))
    assert step.inputs["metadata"] == entries
    assert "metadata" not in _curate("").inputs
    before = step.fingerprint
    assert before != _curate("").fingerprint
    assert before == _curate(str(moved)).fingerprint
    other = tmp_path / "other.txt"
    other.write_text("dog\ncats\n")
    assert before != _curate(str(other)).fingerprint


def test_compared_arms_differ_in_their_selection_only() -> None:
    found = steps(replace(DEBUG, compare=("uncurated", "leaky")))
    curated, uncurated, leaky = (
        found[label].config for label in ("curate", "curate@uncurated", "curate@leaky")
    )
    assert (uncurated.method, uncurated.leakage) == ("none", curated.leakage)
    assert replace(leaky, leakage=curated.leakage) == curated
    assert leaky.leakage.alike == OFF
    assert found["train"].config == found["train@uncurated"].config == found["train@leaky"].config


def test_scores_filter_every_arm_but_the_uncurated_one_and_their_content_bears_identity(
    tmp_path: Path,
) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("key,score\na,1\n")
    recipe = replace(DEBUG, compare=("uncurated", "leaky"))
    scored = replace(recipe, curate=replace(recipe.curate, scores=str(path), min_score=0.5))
    before = steps(recipe)
    after = steps(scored)
    inputs = {
        label: "scores" in after[label].inputs
        for label in ("curate", "curate@uncurated", "curate@leaky")
    }
    assert inputs == {"curate": True, "curate@uncurated": False, "curate@leaky": True}
    assert before["curate@uncurated"].fingerprint == after["curate@uncurated"].fingerprint

    copied = tmp_path / "copied.csv"
    copied.write_bytes(path.read_bytes())
    elsewhere = replace(scored, curate=replace(scored.curate, scores=str(copied)))
    assert (
        steps(elsewhere)["curate"].fingerprint
        == after["curate"].fingerprint
        != before["curate"].fingerprint
    )


def test_models_from_elsewhere_are_scored_on_the_same_sets_and_shown(tmp_path: Path) -> None:
    found = steps(
        replace(DEBUG, others=(str(tmp_path / "theirs"), "open_clip:ViT-B-32:laion2b_s34b_b79k"))
    )
    ours, theirs, clip = (
        found[label] for label in ("evaluate", "evaluate@theirs", "evaluate@ViT-B-32")
    )
    assert theirs.inputs == {**ours.inputs, "model": tmp_path / "theirs"}
    assert theirs.config == ours.config
    assert clip.config.open_clip == "ViT-B-32:laion2b_s34b_b79k"
    assert "model" not in clip.inputs
    assert {"evaluate_theirs", "evaluate_ViT-B-32"} <= found["report"].inputs.keys()
    assert found.keys() - steps(DEBUG).keys() == {"evaluate@theirs", "evaluate@ViT-B-32"}


def test_without_pairs_models_are_scored_and_nothing_is_trained(tmp_path: Path) -> None:
    data = DataConfig(classification=(str(tmp_path),))
    found = steps(
        replace(DEBUG, emoji=None, data=data, others=("open_clip:ViT-B-32:laion2b_s34b_b79k",))
    )
    assert found.keys() == {"evaluate@ViT-B-32", "report"}
    assert found["evaluate@ViT-B-32"].inputs == {f"classification_{tmp_path.stem}": tmp_path}


def test_a_model_of_ours_is_scored_on_the_backbone_that_it_was_trained_on(tmp_path: Path) -> None:
    spec = {"backbone": "efficientnet-lite0", "digest": "theirs", "image_size": 160}
    (tmp_path / "config.json").write_text(json.dumps({"spec": spec}))
    backbone = replace(DEBUG.embed.backbone, weights="w.pth", digest="ours")
    evaluate = replace(DEBUG.evaluate, backbone=backbone)
    recipe = replace(
        DEBUG,
        embed=replace(DEBUG.embed, backbone=backbone),
        evaluate=evaluate,
        others=(str(tmp_path),),
    )
    scored = steps(recipe)[f"evaluate@{tmp_path.name}"]
    assert scored.config.backbone == BackboneConfig("efficientnet-lite0", "", "theirs", 160)
    same = {"backbone": backbone.name, "digest": "ours", "image_size": 84}
    (tmp_path / "config.json").write_text(json.dumps({"spec": same}))
    scored = steps(recipe)[f"evaluate@{tmp_path.name}"]
    assert scored.config.backbone == replace(backbone, image_size=84)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="does not say what the model was trained on"):
        build_steps(recipe)


def test_a_model_that_is_not_there_is_named_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no model: a folder with"):
        build_steps(replace(DEBUG, others=(str(tmp_path),)))


def test_sets_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    names = []
    for folder in ("coco", "flickr"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "val.tar").write_bytes(b"")
        names.append(str(tmp_path / folder / "val.tar"))
    data = replace(
        DEBUG.data, pairs=str(tmp_path), retrieval=(*names, names[0]), leakage=tuple(names)
    )
    found = steps(replace(DEBUG, emoji=None, data=data))
    assert set(found["evaluate"].inputs) == {"model", "retrieval_coco-val", "retrieval_flickr-val"}
    compared = {name for name in found["curate"].inputs if name.startswith("leakage_")}
    assert compared == {
        "leakage_retrieval_coco-val",
        "leakage_retrieval_flickr-val",
    }  # each is compared once
    others = (str(tmp_path / "coco" / "val.json"), str(tmp_path / "coco" / "val.parquet"))
    with pytest.raises(ValueError, match="would both be called 'coco-val'"):
        steps(replace(DEBUG, emoji=None, data=replace(data, leakage=others)))


def test_every_evaluation_set_is_compared_unless_leakage_is_off(tmp_path: Path) -> None:
    for name in ("pairs.tar", "classes.tar", "scenes.tar", "further.tar"):
        (tmp_path / name).write_bytes(b"")
    data = replace(
        DEBUG.data,
        pairs="pairs.tar",
        classification=("classes.tar",),
        segmentation=("scenes.tar",),
        leakage=("further.tar",),
    )
    inputs = steps(replace(DEBUG, emoji=None, data=data))["curate"].inputs
    assert {name for name in inputs if name.startswith("leakage_")} == {
        "leakage_classification_classes",
        "leakage_segmentation_scenes",
        "leakage_further",
    }
    inputs = steps(replace(DEBUG, emoji=None, data=replace(data, leakage=("off",))))[
        "curate"
    ].inputs
    assert not [name for name in inputs if name.startswith("leakage_")]
    with pytest.raises(ValueError, match="`off` stands alone"):
        replace(DEBUG, emoji=None, data=replace(data, leakage=("off", "further.tar")))


def test_without_evaluation_sets_nothing_is_scored_and_the_rest_is_reported(tmp_path: Path) -> None:
    recipe = replace(
        DEBUG, emoji=None, data=replace(DEBUG.data, pairs=str(tmp_path)), compare=("uncurated",)
    )
    found = {step.label: step for step in in_order(build_steps(recipe))}
    assert not [step for step in found.values() if step.name == "evaluate"]
    assert {"embed", "curate", "train", "train_uncurated"} <= found["report"].inputs.keys()


def test_models_of_one_name_are_told_apart(tmp_path: Path) -> None:
    others = (
        str(tmp_path / "a" / "model"),
        str(tmp_path / "b" / "model"),
        "open_clip:ViT-B-32:openai",
    )
    found = steps(replace(DEBUG, others=others))
    assert {"evaluate@model-a", "evaluate@model-b", "evaluate@ViT-B-32"} <= set(found)


def test_relative_weights_are_found_from_the_folders_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("w.pth").write_bytes(b"")
    backbone = replace(DEBUG.embed.backbone, weights="w.pth", digest="known")
    resolved = resolve_backbone(replace(DEBUG, embed=replace(DEBUG.embed, backbone=backbone)))
    assert (
        resolved.embed.backbone.weights
        == resolved.evaluate.backbone.weights
        == str(tmp_path / "w.pth")
    )
