"""The step: three tasks through Ray workers, results with their protocol, and nothing done twice."""

import json
from pathlib import Path

import pytest
from colors import ColorEncoder, classification_files, retrieval_files, segmentation_files, write_tar

from cluster.resources import Resources
from evaluate.archive import BenchmarkError
from evaluate.jobs import EvaluateConfig, evaluate_sets, task_of
from evaluate.results import read_results, read_tallies, result_file
from evaluate.segmentation import SegmentationConfig

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


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_three_tasks_are_measured_and_illustrated(datasets: dict[str, Path], out: Path) -> None:
    summary = evaluate_sets(CONFIG, out, datasets, ColorEncoder)
    results = {result["benchmark"]: result for result in read_results(out)}
    assert list(results) == list(datasets)
    assert summary["classification/top1"] == summary["retrieval_colors/text_to_image_r1"] == 1.0
    assert results["classification"]["baselines"]["chance"]["top1"] == 1 / 8
    assert results["segmentation"]["baselines"].keys() == {"best_single_class", "all_background"}
    for name, result in results.items():
        assert {"data", "ties", "intervals"} <= result["protocol"].keys()
        assert result["encoder"] == "colours"
        for metric, tally in read_tallies(out, name).items():
            measure = result["metrics"][metric]
            assert measure["low"] <= measure["value"] == tally.value == summary[f"{name}/{metric}"] <= measure["high"]
        listing = json.loads((out / "examples" / name / "examples.json").read_text())
        pictures = {value for text in _texts(listing) if (value := text).endswith(".jpg")}
        assert pictures == {path.name for path in (out / "examples" / name).glob("*.jpg")}


def _texts(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in _texts(item)]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_finished_results_are_kept_and_the_missing_one_is_made_again(datasets: dict[str, Path], out: Path) -> None:
    evaluate_sets(CONFIG, out, datasets, ColorEncoder)
    whole = (out / "results.json").read_bytes()
    missing, kept = result_file(out, "segmentation"), result_file(out, "classification")
    missing.unlink()
    before = kept.stat().st_mtime_ns
    evaluate_sets(CONFIG, out, datasets, ColorEncoder)
    assert kept.stat().st_mtime_ns == before
    assert missing.exists()
    again = json.loads((out / "results.json").read_text())
    for result, first in zip(again, json.loads(whole), strict=True):
        assert {**result, "seconds": 0} == {**first, "seconds": 0}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_broken_set_stops_the_step_with_its_own_error(datasets: dict[str, Path], out: Path, tmp_path: Path) -> None:
    files = classification_files() | {"red/0.png": b"torn"}
    broken = {"classification": write_tar(tmp_path / "broken.tar", files)}
    with pytest.raises(BenchmarkError, match=r"cannot decode red/0\.png"):
        evaluate_sets(CONFIG, out, broken, ColorEncoder)
    assert not (out / "results.json").exists()


@pytest.mark.parametrize(
    ("benchmarks", "given", "message"),
    [
        (("retrieval",), {"classification": "classification"}, "no evaluation set 'retrieval'"),
        ((), {}, "at least one is required"),
        ((), {"detection": "classification"}, "names begin with classification, retrieval, segmentation"),
        ((), {"classification": "absent"}, "no evaluation set at"),
    ],
)
def test_wrong_names_are_refused_before_any_work(
    tmp_path: Path, benchmarks: tuple[str, ...], given: dict[str, str], message: str
) -> None:
    write_tar(tmp_path / "classification", classification_files())
    sets = {name: tmp_path / file for name, file in given.items()}
    with pytest.raises(ValueError, match=message):
        evaluate_sets(EvaluateConfig(benchmarks=benchmarks), tmp_path, sets, ColorEncoder)


def test_task_is_the_first_word_of_a_benchmark() -> None:
    assert task_of("segmentation_camvid-small") == "segmentation"
    with pytest.raises(ValueError, match="unknown benchmark"):
        task_of("retrievals")
    assert issubclass(BenchmarkError, ValueError)
