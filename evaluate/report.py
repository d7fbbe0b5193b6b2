"""The step `report`: what the other steps left behind, as one HTML page that needs no network.

Inputs carry the labels of the steps whose folders they are: `train`, `evaluate_uncurated`, ... What
follows the step is the arm; the arm without a suffix comes first and every other one is compared
with it, item by item.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cluster.files import read_jsonl, write_atomic
from curation.encoders.config import describe
from curation.report import curation_sections
from evaluate.config import ReportConfig
from evaluate.figures import COLORS, training_curves
from evaluate.published_figures import Published, published_rows
from evaluate.results import RESULTS, Result, examples_folder, read_results
from evaluate.tables import METRIC_NAMES, RANKS, SMALL_IS_GOOD, percent, shown, trivial_score
from evaluate.tallies import read_tallies
from evaluate.tally import Estimate, paired_difference

PAGE = "report.html"
TEMPLATE = "report.html.jinja"
MAIN_ARM = "curated"
CLASSES_SHOWN = 10
PARTS: dict[Literal["classes", "names"], str] = {
    "classes": "classes",
    "names": "heat maps of single names",
}
"""Tables of a result that the page shows the best and the worst rows of, and their titles."""


@dataclass(frozen=True)
class Arm:
    """One model of the recipe: what its steps put out, by step."""

    name: str
    folders: Mapping[str, Path]

    def results(self) -> dict[str, Result]:
        folder = self.folders.get("evaluate")
        if folder is None or not (folder / RESULTS).exists():
            return {}
        return {result["set"]: result for result in read_results(folder)}

    def encoder(self) -> str:
        """What was measured."""
        return next((result["encoder"] for result in self.results().values()), "")


def run(config: ReportConfig, *, out: Path, **inputs: Path) -> dict[str, float]:
    """Write out/report.html from the folders of finished steps, by label; what is not given is left
    out.
    """
    arms = split_arms(inputs)
    records = {label: _record(folder) for label, folder in inputs.items()}
    curves = training_curves(
        {
            arm.name: read_jsonl(arm.folders["train"] / "metrics.jsonl")
            for arm in arms
            if "train" in arm.folders
        }
    )
    first = arms[0].folders
    page = (
        _environment()
        .get_template(TEMPLATE)
        .render(
            config=config,
            arms=arms,
            colors=COLORS,
            encoder=arms[0].encoder() or _backbone(records),
            facts=_facts(records),
            evaluation_sets=compare(arms, config),
            pairs=list(combinations(range(len(arms)), 2)),
            metric_names=METRIC_NAMES,
            curves=curves,
            curation=curation_sections(first["curate"], first["embed"])
            if {"curate", "embed"} <= first.keys()
            else [],
            examples=_examples(arms[0]),
            lineage=_lineage(records),
            written=datetime.now().astimezone().strftime("%d %B %Y, %H:%M %Z"),
        )
    )
    write_atomic(out / PAGE, page)

    return {"page_bytes": float(len(page.encode()))}


def split_arms(inputs: Mapping[str, Path]) -> list[Arm]:
    """The folders by arm; steps that only the first arm has (the embeddings) belong to it.

    Models that are only scored all have a suffix: then the first of them is the first arm.
    """
    # Labels without a suffix sort first: False is before True, and the sort is stable.
    by_arm: dict[str, dict[str, Path]] = {}
    for label, folder in sorted(inputs.items(), key=lambda item: "_" in item[0]):
        step, _, suffix = label.partition("_")
        by_arm.setdefault(suffix, {})[step] = folder
    by_arm = by_arm or {"": {}}
    is_alone = len(by_arm) == 1
    return [
        Arm(suffix or ("model" if is_alone else MAIN_ARM), folders)
        for suffix, folders in by_arm.items()
    ]


@dataclass(frozen=True)
class Row:
    """One metric: each arm's value, the paired difference of every two arms, and the trivial
    baseline.
    """

    metric: str
    values: Sequence[Mapping[str, float] | None]
    differences: Mapping[tuple[int, int], Estimate]
    trivial: float | None

    @property
    def name(self) -> str:
        return METRIC_NAMES.get(self.metric, self.metric)

    @property
    def is_share(self) -> bool:
        return self.metric not in RANKS

    def show(self, value: float) -> str:
        return shown(self.metric, value)

    def show_difference(self, value: float) -> str:
        return _signed(value) if self.is_share else f"{value:+.3g}".replace("-", "−")

    def is_better(self, difference: Estimate) -> bool:
        """Whether the whole interval is on the good side: above zero, or below it where a small
        value is good.
        """
        return difference.high < 0 if self.metric in SMALL_IS_GOOD else difference.low > 0

    def is_worse(self, difference: Estimate) -> bool:
        return difference.low > 0 if self.metric in SMALL_IS_GOOD else difference.high < 0


@dataclass(frozen=True)
class Compared:
    """One evaluation set in all arms."""

    name: str
    first: Result
    errors: Sequence[str]
    """Why each arm could not be scored; empty where it was."""
    rows: Sequence[Row]
    published: Sequence[Published]
    parts: Mapping[str, Sequence[Mapping[str, Any]]]
    """The best and the worst classes and names of the first arm, with its value, those of the others
    and their intervals.
    """


def compare(arms: Sequence[Arm], config: ReportConfig) -> list[Compared]:
    """Every evaluation set with the scores of all arms; differences are paired by item."""
    results = [arm.results() for arm in arms]
    names = dict.fromkeys(name for scored in results for name in scored)
    compared = []

    for name in names:
        here = [scored.get(name) for scored in results]
        first = next(result for result in here if result is not None)
        metrics = dict.fromkeys(metric for result in here if result for metric in result["metrics"])
        rows = [_row(arms, here, name, metric, config) for metric in metrics]
        published = published_rows(str(first["protocol"].get("set", "")))
        errors = [result["error"] if result else "" for result in here]
        parts = {
            title: best for key, title in PARTS.items() if (best := _best_and_worst(here, key))
        }
        compared.append(Compared(name, first, errors, rows, published, parts))

    return compared


def _row(
    arms: Sequence[Arm],
    results: Sequence[Result | None],
    name: str,
    metric: str,
    config: ReportConfig,
) -> Row:
    # A difference needs a value of both arms on the same items, which equal shapes stand for.
    values = [result["metrics"].get(metric) if result else None for result in results]
    tallies = [
        read_tallies(arm.folders["evaluate"], name)[metric] if value else None
        for arm, value in zip(arms, values, strict=True)
    ]
    differences = {
        (one, other): paired_difference(ours, theirs, config.bootstrap_samples, config.seed)
        for one, ours in enumerate(tallies)
        for other, theirs in enumerate(tallies)
        if one < other and ours and theirs and ours.hits.shape == theirs.hits.shape
    }
    first = next(result for result in results if result)

    return Row(metric, values, differences, trivial_score(first, metric))


def _best_and_worst(
    results: Sequence[Result | None], key: Literal["classes", "names"]
) -> list[dict[str, Any]]:
    """The classes or names with the highest and lowest value in the first arm; all where there are
    few.
    """
    # The first arm decides which ones and their order; the other arms follow by name.
    rows = [result.get(key, []) if result else [] for result in results]
    tables = [{row["name"]: row for row in part if row["value"] is not None} for part in rows]
    counts = {row["name"]: row["n"] for row in rows[0]}
    tried = [(name, row["value"]) for name, row in tables[0].items()]
    ordered = sorted(tried, key=lambda item: (-item[1], item[0]))
    chosen = (
        ordered
        if len(ordered) <= 2 * CLASSES_SHOWN
        else [*ordered[:CLASSES_SHOWN], *ordered[-CLASSES_SHOWN:]]
    )

    return [
        {"name": name, "n": counts[name], "values": [table.get(name) for table in tables]}
        for name, _ in chosen
    ]


def _backbone(records: Mapping[str, Mapping[str, Any]]) -> str:
    """What pairs were embedded with, for a page without scores."""
    name = records.get("embed", {}).get("config", {}).get("backbone", {}).get("name")
    return describe(name) if name else ""


def _facts(records: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What one wants to know first: how much went in, how long it took, from which code."""
    summaries = {label: record.get("summary", {}) for label, record in records.items()}
    pairs = summaries.get("embed", {}).get("rows")
    kept = summaries.get("curate", {}).get("kept")
    steps = records.get("train", {}).get("config", {}).get("num_steps")
    seconds = sum(record.get("seconds", 0.0) for record in records.values())

    # Steps may come from several commits and hosts: the page names those of the newest one.
    newest = max(records.values(), key=lambda record: record.get("finished", ""), default={})
    commit = str(newest.get("commit", ""))[:10] + (" + changes" if newest.get("dirty") else "")
    facts = [
        ("pairs embedded", f"{pairs:,.0f}" if pairs else ""),
        ("pairs selected", f"{kept:,.0f}" if kept else ""),
        ("training steps", f"{steps:,}" if steps else ""),
        ("time of the steps in the lineage", duration(seconds) if seconds else ""),
        ("commit", commit),
        ("host", str(newest.get("host", ""))),
    ]

    return [(name, value) for name, value in facts if value]


def _lineage(records: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    return [
        {
            "label": label.replace("_", " @ ", 1),
            "fingerprint": str(record.get("fingerprint", ""))[:12],
            "inputs": ", ".join(sorted(record.get("inputs", {}))),
            "duration": duration(record["seconds"]) if "seconds" in record else "",
            "finished": str(record.get("finished", ""))[:16].replace("T", " "),
            "host": str(record.get("host", "")),
            "choices": "; ".join(record.get("choices", {}).values()),
            "commit": str(record.get("commit", ""))[:10] + (" +" if record.get("dirty") else ""),
        }
        for label, record in records.items()
        if record
    ]


def duration(seconds: float) -> str:
    """Seconds as a person says them: 8.2 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes} min {rest:02d} s"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60:02d} min"
    )


def _record(folder: Path) -> dict[str, Any]:
    path = folder / "record.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _examples(arm: Arm) -> dict[str, list[dict[str, Any]]]:
    """The examples of every evaluation set by task, each with its name and its pictures inlined."""
    examples: dict[str, list[dict[str, Any]]] = {}
    for name, result in arm.results().items():
        folder = examples_folder(arm.folders["evaluate"], name)
        if (folder / "examples.json").exists():
            listing = _inlined(json.loads((folder / "examples.json").read_text()), folder)
            examples.setdefault(result["task"], []).append({"set": name, **listing})
    return examples


def _inlined(value: Any, folder: Path) -> Any:
    """The listing with the names of pictures replaced by their data URIs."""
    if isinstance(value, dict):
        return {key: _inlined(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [_inlined(item, folder) for item in value]
    if isinstance(value, str) and value.endswith(".jpg") and (folder / value).is_file():
        return "data:image/jpeg;base64," + base64.b64encode((folder / value).read_bytes()).decode()
    return value


def _environment() -> Environment:
    # Captions and class names come from data: they are escaped, unless the filter `markup` says
    # otherwise. A name that the template misspells is an error, not an empty place on the page.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "percent": percent,
        "signed": _signed,
        "plain": _plain,
        "markup": Markup,
    }

    return environment


def _signed(share: float) -> str:
    """Percentage points with their sign; the minus sign is as wide as the plus, a hyphen is not."""
    return f"{100 * share:+.1f}".replace("-", "−")


def _plain(text: str) -> str:
    return text.replace("_", " ")
