"""The step: three tasks through Ray workers, results with their protocol, and nothing done
twice.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from colors import (
    NAMES,
    ColorEncoder,
    classification_files,
    retrieval_files,
    segmentation_files,
    write_tar,
)
from PIL import Image

from cluster.resources import Resources
from evaluate.config import EvaluateConfig, SegmentationConfig
from evaluate.evaluate import Evaluator, evaluate_sets
from evaluate.features import IMAGES_PER_PART
from evaluate.parts import PARTS, Part, Parts
from evaluate.results import flat_rows, read_results, result_file
from evaluate.segmentation import SCENES_PER_PART
from evaluate.sets.kinds import split_name
from evaluate.tables import trivial_score
from evaluate.tallies import read_tallies
from evaluate.vectors import PartVectors

CONFIG = EvaluateConfig(
    templates="plain",
    segmentation=SegmentationConfig(64, 32, 16, background_prompts=("black",)),
    bootstrap_samples=50,
    resources=Resources(workers=1),
)


@pytest.fixture
def datasets(tmp_path: Path) -> dict[str, Path]:
    return {
        "classification": write_tar(tmp_path / "classification.tar", classification_files()),
        "retrieval_colors": write_tar(tmp_path / "retrieval.tar", retrieval_files()),
        "segmentation": write_tar(tmp_path / "segmentation.tar", segmentation_files()),
    }


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def large_sets(tmp_path: Path) -> dict[str, Path]:
    """Sets that are cut into three parts; of one, the first and the last image are torn."""
    files = classification_files(images_of_each=2 * IMAGES_PER_PART // len(NAMES) + 1)
    names = sorted(files)
    torn = {names[0]: b"torn", names[-1]: b"torn"}
    large = write_tar(tmp_path / "large.tar", files)
    return {
        "classification_large": large,
        "classification_resumed": large,
        "classification_torn": write_tar(tmp_path / "torn.tar", files | torn),
        "segmentation_large": write_tar(
            tmp_path / "scenes.tar", segmentation_files(2 * SCENES_PER_PART + 1, cells=(1, 2))
        ),
    }


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_workers_share_large_sets_and_what_is_finished_is_kept(
    datasets: dict[str, Path], large_sets: dict[str, Path], out: Path, tmp_path: Path
) -> None:
    sets = datasets | large_sets
    tiny = SegmentationConfig(16, 16, 16, background_prompts=("black",))
    config = replace(CONFIG, segmentation=tiny, resources=Resources(workers=2))
    (tmp_path / "alone").mkdir()
    alone = Evaluator(config, tmp_path / "alone", sets, ColorEncoder)
    for name in sets:
        alone.evaluate(name)

    # An earlier run left a set and a part. The vectors of the part are those of white, which none
    # of its images is: if they were computed again, all would be right.
    Evaluator(config, out, sets, ColorEncoder).evaluate("classification")
    kept = result_file(out, "classification")
    before = kept.stat().st_mtime_ns
    white = ColorEncoder().encode_text(["white"] * IMAGES_PER_PART).numpy()
    part = PartVectors([], white)  # all names of the classes are texts of the last part
    Parts(out / PARTS / "classification_resumed").write(range(IMAGES_PER_PART), part)

    summary = evaluate_sets(config, out, sets, ColorEncoder)
    assert kept.stat().st_mtime_ns == before
    assert [result["set"] for result in read_results(out)] == list(sets)
    assert not (out / PARTS).exists()

    num_images = 2 * IMAGES_PER_PART + len(NAMES)
    assert summary["classification_resumed/top1"] == 1 - IMAGES_PER_PART / num_images
    assert summary["failed_sets"] == 1
    for name in sets.keys() - {"classification_resumed"}:
        assert result_of(out, name) == result_of(tmp_path / "alone", name)
        for metric, tally in read_tallies(out, name).items():
            same = read_tallies(tmp_path / "alone", name)[metric]
            assert np.array_equal(tally.hits, same.hits)
            assert np.array_equal(tally.trials, same.trials)
    assert "cannot decode black/0.png" in result_of(out, "classification_torn")["error"]

    whole = (out / "results.json").read_bytes()
    assert evaluate_sets(config, out, sets, ColorEncoder) == summary
    assert (out / "results.json").read_bytes() == whole


def result_of(out: Path, name: str) -> dict[str, object]:
    """A result but for its time, with the listing of its examples."""
    listing = out / "examples" / name / "examples.json"
    examples = json.loads(listing.read_text()) if listing.exists() else None
    result = json.loads(result_file(out, name).read_text())
    return {**result, "seconds": 0, "examples": examples}


def test_part_that_fails_is_not_left_and_ends_the_work_on_its_set(
    large_sets: dict[str, Path], out: Path
) -> None:
    class Damaged(ColorEncoder):
        seen = 0

        def encode_image(self, images: Sequence[Image.Image]) -> torch.Tensor:
            self.seen += len(images)
            return super().encode_image(images) * torch.nan

    damaged = Damaged()
    evaluator = Evaluator(CONFIG, out, large_sets, lambda: damaged)
    for start in (0, IMAGES_PER_PART):
        part = range(start, start + IMAGES_PER_PART)
        evaluator.work(Part("classification_large", part, is_whole=False))

    assert damaged.seen == CONFIG.batch_size
    assert not (out / PARTS).exists()
    evaluator.evaluate("classification_large")
    assert "NaN or infinity for 64 of 64" in result_of(out, "classification_large")["error"]


@pytest.mark.parametrize("benchmark", ["classification", "retrieval_colors", "segmentation"])
def test_result_carries_its_protocol_intervals_and_pictures(
    datasets: dict[str, Path], out: Path, benchmark: str
) -> None:
    Evaluator(CONFIG, out, datasets, ColorEncoder).evaluate(benchmark)
    result = json.loads(result_file(out, benchmark).read_text())
    assert {"data", "ties", "intervals", "image_size"} <= result["protocol"].keys()
    assert result["encoder"] == "colours"
    tallies = read_tallies(out, benchmark)
    assert tallies.keys() == result["metrics"].keys()
    for metric, tally in tallies.items():
        measure = result["metrics"][metric]
        assert measure["low"] <= measure["value"] == tally.value <= measure["high"]
        assert 0 <= (trivial_score(result, metric) or 0) <= 1
    listing = json.loads((out / "examples" / benchmark / "examples.json").read_text())
    pictures = {text for text in _texts(listing) if text.endswith(".jpg")}
    assert pictures == {path.name for path in (out / "examples" / benchmark).glob("*.jpg")}


def _texts(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in _texts(item)]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []


def test_evaluation_twice_gives_the_same_result(datasets: dict[str, Path], out: Path) -> None:
    evaluator = Evaluator(CONFIG, out, datasets, ColorEncoder)
    seen = []
    for _ in range(2):
        evaluator.evaluate("segmentation")
        seen.append({**json.loads(result_file(out, "segmentation").read_text()), "seconds": 0})
    assert seen[0] == seen[1]


def test_broken_set_is_an_error_row_and_the_others_are_scored(
    datasets: dict[str, Path], out: Path, tmp_path: Path
) -> None:
    files = classification_files() | {"red/0.png": b"torn"}
    broken = datasets | {"classification_torn": write_tar(tmp_path / "broken.tar", files)}
    evaluator = Evaluator(CONFIG, out, broken, ColorEncoder)
    for name in broken:
        evaluator.evaluate(name)
    results = {name: json.loads(result_file(out, name).read_text()) for name in broken}
    assert {name for name, result in results.items() if result["error"]} == {"classification_torn"}
    assert "cannot decode red/0.png" in results["classification_torn"]["error"]
    (row,) = flat_rows(results["classification_torn"])
    assert (row["set"], row["value"]) == ("classification_torn", None)
    assert all(row["value"] is not None for row in flat_rows(results["classification"]))


@pytest.mark.parametrize(
    ("vectors", "reason"),
    [
        (lambda vectors: vectors * torch.nan, "NaN or infinity for 16 of 16 images"),
        (lambda vectors: vectors[:, :2], "have width 2, those of texts 3"),
    ],
)
def test_vectors_that_cannot_be_compared_are_named(
    datasets: dict[str, Path], out: Path, vectors: Callable, reason: str
) -> None:
    class Damaged(ColorEncoder):
        def encode_image(self, images: Sequence[Image.Image]) -> torch.Tensor:
            return vectors(super().encode_image(images))

    Evaluator(CONFIG, out, datasets, Damaged).evaluate("classification")
    assert reason in json.loads(result_file(out, "classification").read_text())["error"]


@pytest.mark.parametrize(
    ("benchmarks", "given", "message"),
    [
        (("retrieval",), {"classification": "classification"}, "no evaluation set 'retrieval'"),
        ((), {}, "at least one is required"),
        (
            (),
            {"detection": "classification"},
            "names begin with classification, retrieval, segmentation, similarity",
        ),
        ((), {"classification": "absent"}, "no evaluation set at"),
    ],
)
def test_wrong_names_are_refused_before_any_work(
    tmp_path: Path, benchmarks: tuple[str, ...], given: dict[str, str], message: str
) -> None:
    write_tar(tmp_path / "classification", classification_files())
    sets = {name: tmp_path / file for name, file in given.items()}
    with pytest.raises(ValueError, match=message):
        evaluate_sets(EvaluateConfig(sets=benchmarks), tmp_path, sets, ColorEncoder)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("batch_size", 0), ("bootstrap_samples", 0), ("seed", -1), ("num_examples", -1)],
)
def test_settings_that_measure_nothing_are_refused(name: str, wrong: int) -> None:
    with pytest.raises(
        ValueError, match=rf"evaluate\.{name} is {wrong}: must be at least {wrong + 1}"
    ):
        EvaluateConfig(**{name: wrong})


def test_task_is_the_first_word_of_a_benchmark() -> None:
    assert split_name("segmentation_camvid-small") == ("segmentation", "")
    assert split_name("segmentation_voc@20") == ("segmentation", "20")
    with pytest.raises(ValueError, match="unknown evaluation set"):
        split_name("retrievals")
