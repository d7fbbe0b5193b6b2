"""Intervals of single classes: Wilson's as SciPy has it, the quantiles of resampled images, and where
they are shown.
"""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from colors import ColorEncoder, classification_files, picture, segmentation_files, write_tar
from scipy.stats import binomtest

from evaluate.config import EvaluateConfig, ReportConfig, SegmentationConfig
from evaluate.evaluate import Evaluator
from evaluate.report import run as write_report
from evaluate.results import read_results, result_file, write_flat
from evaluate.tables import as_csv
from evaluate.tally import Tally, estimate_columns

CONFIG = EvaluateConfig(
    templates="plain",
    segmentation=SegmentationConfig(64, 32, 16, background_prompts=("black",)),
    bootstrap_samples=50,
)


def test_accuracy_of_a_class_has_wilsons_interval() -> None:
    hits = np.array([1.0, 0, 1, 1, 0, 1])[:, None]
    classes = np.array([0, 0, 0, 2, 2, 2])
    first, second, third = estimate_columns(Tally(hits, np.ones((6, 1)), classes), 10, 0)
    assert second is None
    for each, right in ((first, 2), (third, 2)):
        expected = binomtest(right, 3).proportion_ci(method="wilson")
        assert each is not None
        assert each == pytest.approx((right / 3, expected.low, expected.high))


def test_iou_of_a_class_has_the_quantiles_of_resampled_images() -> None:
    random = np.random.default_rng(4)
    trials = random.integers(0, 3, (12, 4)) * random.integers(1, 9, (12, 4)).astype(float)
    trials[:, 3] = 0
    hits = np.floor(trials * random.random((12, 4)))
    estimates = estimate_columns(Tally(hits, trials), samples=150, seed=7)

    drawn = np.random.default_rng(7).integers(0, 12, (150, 12), dtype=np.int32)
    for column in range(3):
        sums = [(hits[rows, column].sum(), trials[rows, column].sum()) for rows in drawn]
        values = [right / tried for right, tried in sums if tried]
        each = estimates[column]
        assert each is not None
        assert each.value == pytest.approx(hits[:, column].sum() / trials[:, column].sum())
        assert each[1:] == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))
    assert estimates[3] is None


def test_a_class_that_no_resample_draws_has_its_own_value_as_interval() -> None:
    trials = np.zeros((40, 2))
    trials[:, 0] = 2
    trials[0, 1] = 4
    undrawn = next(
        seed
        for seed in range(20)
        if 0 not in np.random.default_rng(seed).integers(0, 40, (1, 40), dtype=np.int32)
    )
    _, rare = estimate_columns(Tally(trials / 2, trials), samples=1, seed=undrawn)
    assert rare == (0.5, 0.5, 0.5)


def test_classes_and_names_have_intervals_in_results_table_and_page(tmp_path: Path) -> None:
    datasets = {
        "classification": write_tar(tmp_path / "classification.tar", classification_files()),
        "segmentation": write_tar(tmp_path / "segmentation.tar", segmentation_files()),
    }
    out = tmp_path / "evaluate"
    evaluator = Evaluator(CONFIG, out, datasets, ColorEncoder)
    for name in datasets:
        evaluator.evaluate(name)
    write_flat(out, [json.loads(result_file(out, name).read_text()) for name in datasets])

    results = read_results(out)
    for result in results:
        rows = [*result["classes"], *result["names"]]
        assert rows
        assert all(row["low"] <= row["value"] <= row["high"] for row in rows)

    # Both images of a class are right: Wilson's lower limit of 2 in 2.
    table = list(csv.DictReader(io.StringIO(as_csv({"ours": results}))))
    red = next(row for row in table if row["class"] == "red")
    assert (red["metric"], red["value"], red["n"]) == ("class_accuracy", "1.0", "2")
    assert float(red["low"]) == pytest.approx(binomtest(2, 2).proportion_ci(method="wilson").low)
    assert {row["metric"] for row in table if row["class"]} == {
        "class_accuracy",
        "class_iou",
        "name_ap",
    }
    whole = [row for row in table if not row["class"]]
    assert len(whole) == sum(len(result["metrics"]) for result in results)

    write_report(ReportConfig(), out=tmp_path, evaluate=out)
    assert "100.0 <small>34.2 to 100.0</small>" in (tmp_path / "report.html").read_text()


def test_the_last_classes_of_a_list_may_have_no_image(tmp_path: Path) -> None:
    """As in CLIP_benchmark's layout, whose classnames.txt lists all classes."""
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "classnames.txt").write_text("red\ngreen\nblue\nyellow\n")
    samples = {"0.png": picture("red"), "0.cls": b"0", "1.png": picture("blue"), "1.cls": b"2"}
    write_tar(folder / "0.tar", samples)

    Evaluator(CONFIG, tmp_path / "out", {"classification": folder}, ColorEncoder).evaluate(
        "classification"
    )
    result = json.loads(result_file(tmp_path / "out", "classification").read_text())
    assert result["error"] == ""
    rows = [(row["name"], row["n"], row["value"]) for row in result["classes"]]
    assert rows == [("red", 1, 1.0), ("green", 0, None), ("blue", 1, 1.0), ("yellow", 0, None)]
