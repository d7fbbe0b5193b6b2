"""The page is built from what steps leave behind, compares arms item by item, and loads nothing
from anywhere.
"""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from colors import (
    BlindEncoder,
    ColorEncoder,
    classification_files,
    retrieval_files,
    segmentation_files,
    write_tar,
)
from rich.console import Console

from cluster.files import append_jsonl
from evaluate.config import EvaluateConfig, ReportConfig, SegmentationConfig
from evaluate.evaluate import Evaluator
from evaluate.report import compare, duration, run, split_arms
from evaluate.results import read_results, result_file, write_flat
from evaluate.tables import results_table
from evaluate.tallies import read_tallies, write_result

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
RECORD = {
    "step": "train",
    "fingerprint": "0123456789abcdef",
    "config": {"num_steps": 30},
    "inputs": {"embeddings": "ab"},
    "summary": {},
    "commit": "feedbeef00",
    "dirty": True,
    "host": "node-7",
    "finished": "2026-01-02T03:04:05",
    "seconds": 75.0,
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of a seeing and of a blind model."""
    root = tmp_path_factory.mktemp("steps")
    datasets = {
        "classification": write_tar(root / "classification.tar", classification_files()),
        "retrieval": write_tar(root / "retrieval.tar", retrieval_files()),
        "segmentation": write_tar(root / "segmentation.tar", segmentation_files()),
    }
    config = EvaluateConfig(
        templates="plain",
        segmentation=SegmentationConfig(64, 32, 16, background_prompts=("black",)),
        bootstrap_samples=50,
    )
    folders = {}
    for suffix, encoder in (("", ColorEncoder), ("_uncurated", BlindEncoder)):
        out = folders[f"evaluate{suffix}"] = root / f"evaluate{suffix}"
        evaluator = Evaluator(config, out, datasets, encoder)
        for name in datasets:
            evaluator.evaluate(name)
        write_flat(out, [json.loads(result_file(out, name).read_text()) for name in datasets])
        train = folders[f"train{suffix}"] = root / f"train{suffix}"
        train.mkdir()
        rows = [{"step": step, "loss": 3.0 - step / 20, "lr": 0.001} for step in range(30)]
        append_jsonl(
            train / "metrics.jsonl", *rows, {"step": 30, "val_loss": 1.5, "batch_accuracy": 0.5}
        )
        (train / "record.json").write_text(json.dumps(RECORD))
    return folders


class References(HTMLParser):
    """Every address that the page would load or point to, and whether its tags are balanced."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in {"script", "link", "iframe"}
        self.addresses += [
            value for name, value in attrs if name in {"src", "href", "srcset"} and value
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_loads_nothing_and_shows_everything(inputs: dict[str, Path], tmp_path: Path) -> None:
    summary = run(ReportConfig(title="Colours & shapes"), out=tmp_path, **inputs)
    page = (tmp_path / "report.html").read_text()
    assert summary["page_bytes"] == len(page.encode()) < 15e6
    references = References()
    references.feed(page)
    assert references.open == []
    assert all(address.startswith(("data:image/", "#")) for address in references.addresses)
    assert "url(" not in page
    assert "@import" not in page
    targets = {address[1:] for address in references.addresses if address.startswith("#")}
    assert targets == {
        "results",
        "training",
        "classification",
        "retrieval",
        "segmentation",
        "lineage",
    }
    assert targets <= set(re.findall(r'id="(\w+)"', page))
    assert "Colours &amp; shapes" in page
    assert "feedbeef00 +" in page
    assert "<dt>time of the steps in the lineage</dt><dd>2 min 30 s</dd>" in page


def test_page_of_one_model_without_records_is_written(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    run(ReportConfig(), out=tmp_path, evaluate=inputs["evaluate"])
    page = (tmp_path / "report.html").read_text()
    assert 'id="results"' in page
    assert 'id="training"' not in page


def test_page_without_scores_shows_training_and_names_the_backbone(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    embed = tmp_path / "embed"
    embed.mkdir()
    (embed / "record.json").write_text(
        json.dumps(RECORD | {"config": {"backbone": {"name": "efficientnet-lite0"}}})
    )
    run(ReportConfig(), out=tmp_path, embed=embed, train=inputs["train"])
    page = (tmp_path / "report.html").read_text()
    assert 'id="training"' in page
    assert 'id="results"' not in page
    assert '<span class="badge warn">Backbone: efficientnet-lite0' in page


def test_stand_in_backbone_is_marked(inputs: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "evaluate"
    folder.mkdir()
    results = read_results(inputs["evaluate"])[:1]
    for result in results:
        tallies = read_tallies(inputs["evaluate"], result["set"])
        write_result(
            folder, {**result, "encoder": "lite: supervised on labels, not DINOv2"}, tallies
        )
    write_flat(folder, results)
    run(ReportConfig(), out=tmp_path, evaluate=folder)
    assert (
        '<span class="badge warn">Backbone: lite: supervised'
        in (tmp_path / "report.html").read_text()
    )


def test_text_from_data_is_escaped(inputs: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "evaluate"
    (folder / "examples" / "retrieval").mkdir(parents=True)
    results = [
        result for result in read_results(inputs["evaluate"]) if result["task"] == "retrieval"
    ]
    for result in results:
        write_result(folder, result, read_tallies(inputs["evaluate"], result["set"]))
    write_flat(folder, results)
    examples = {
        "text_to_image": [{"query": "<script>alert(1)</script>", "image": "", "answers": []}],
        "image_to_text": [],
    }
    (folder / "examples" / "retrieval" / "examples.json").write_text(json.dumps(examples))
    run(ReportConfig(), out=tmp_path, evaluate=folder)
    assert "<script" not in (tmp_path / "report.html").read_text()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: install chromium")
def test_page_shows_both_models_on_a_telephone(inputs: dict[str, Path], tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    run(ReportConfig(), out=tmp_path, **inputs)
    with sync_api.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.goto((tmp_path / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390

        heads = page.locator("#results ~ .scroll >> nth=0 >> th.number")
        assert heads.all_text_contents()[:2] == ["curated", "uncurated"]
        for place in (0, 1):
            box = heads.nth(place).bounding_box()
            assert box["x"] + box["width"] <= 390

        # Words of a narrow column would be cut into letters.
        assert page.evaluate(NARROWEST_CELL) >= 100
        browser.close()


NARROWEST_CELL = """() => Math.min(...[...document.querySelectorAll("td:not(.number)")]
  .filter(cell => cell.offsetParent).map(cell => cell.offsetWidth))"""


def test_differences_are_paired_and_signed(inputs: dict[str, Path]) -> None:
    compared = {scored.name: scored for scored in compare(split_arms(inputs), ReportConfig())}
    (difference,) = compared["classification"].rows[0].differences.values()
    assert difference.value == pytest.approx(1 - 1 / 8)
    assert 0 < difference.low <= difference.value <= difference.high
    assert compared["classification"].rows[0].trivial == pytest.approx(1 / 8)


def test_intervals_without_resamples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"report\.bootstrap_samples is 0: must be at least 1"):
        ReportConfig(bootstrap_samples=0)


def test_arms_come_from_labels() -> None:
    folders = {
        label: Path(label) for label in ("embed", "train", "train_uncurated", "evaluate_uncurated")
    }
    first, second = split_arms(folders)
    assert (first.name, set(first.folders)) == ("curated", {"embed", "train"})
    assert (second.name, set(second.folders)) == ("uncurated", {"train", "evaluate"})
    assert split_arms({"train": Path("train")})[0].name == "model"


def test_models_that_are_only_scored_are_arms_of_their_own() -> None:
    """A page of scores alone must not start with an empty arm, which has no pictures."""
    arms = split_arms({"evaluate_one": Path("1"), "evaluate_two": Path("2")})
    assert [(arm.name, set(arm.folders)) for arm in arms] == [
        ("one", {"evaluate"}),
        ("two", {"evaluate"}),
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(8.24, "8.2 s"), (185.0, "3 min 05 s"), (7800.0, "2 h 10 min")]
)
def test_duration_is_said_as_a_person_says_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_terminal_table_has_a_column_for_each_model(inputs: dict[str, Path]) -> None:
    results = {
        "curated": read_results(inputs["evaluate"]),
        "blind": read_results(inputs["evaluate_uncurated"])[:1],
    }
    console = Console(width=140, record=True, quiet=True)
    console.print(results_table(results))
    table = results_table(results)
    assert [column.header for column in table.columns] == [
        "evaluation set",
        "metric",
        "curated",
        "blind",
        "trivial baseline",
    ]
    assert table.row_count == 3 + 9 + 6
