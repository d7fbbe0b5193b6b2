"""The step `evaluate`: a model and evaluation sets to results.json, per-item tallies and example pictures.

Each evaluation set is an independent job for a pool of Ray workers that load the model once. A set's result is written
whole, last, so that a run that was interrupted does only what is missing.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cluster.devices import settled
from cluster.fanout import Pool
from cluster.files import write_atomic
from cluster.machine import settled_precision
from cluster.progress import progress
from cluster.storage import kind_of
from evaluate import examples
from evaluate.classification import classify
from evaluate.config import EvaluateConfig, SegmentationConfig
from evaluate.dinotxt import load_encoder
from evaluate.encoder import Encoder
from evaluate.metrics import Tally, chance_of_hit, estimate
from evaluate.openclip import OpenClipEncoder
from evaluate.prompts import TEMPLATES
from evaluate.results import RESULTS, Result, as_measure, examples_folder, result_file, write_result
from evaluate.retrieval import chance_recalls, retrieve
from evaluate.segmentation import scored_labels, segment, segmentation_baselines
from evaluate.sets import open_classification, open_retrieval, open_segmentation, task_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """What one task hands back, before intervals."""

    tallies: dict[str, Tally]
    baselines: dict[str, dict[str, float]]
    sizes: dict[str, int]
    protocol: dict[str, object]


def run(config: EvaluateConfig, *, out: Path, model: Path | None = None, **datasets: Path) -> dict[str, float]:
    """Evaluate `model`, or open_clip's, on every set named classification, retrieval or segmentation (any _suffix).

    Returns every metric as "<benchmark>/<metric>". Results that `out` holds already are kept.
    """
    if model:
        precision = settled_precision(settled(config, config.resources).precision)
        return evaluate_sets(config, out, datasets, partial(load_encoder, model, config.backbone, precision))
    architecture, _, weights = config.open_clip.partition(":")
    return evaluate_sets(config, out, datasets, partial(OpenClipEncoder, architecture, weights))


def evaluate_sets(
    config: EvaluateConfig, out: Path, datasets: Mapping[str, Path], load: Callable[[], Encoder]
) -> dict[str, float]:
    """The step for any encoder: `load` is called once in each worker process."""
    chosen = _chosen(config, datasets)
    missing = [name for name in chosen if not result_file(out, name).exists()]
    logger.info("benchmarks=%d finished=%d", len(chosen), len(chosen) - len(missing))
    if missing:
        with (
            Pool(Evaluator, config, out, datasets, load, resources=config.resources, max_workers=len(missing)) as pool,
            progress(len(chosen), "evaluate", unit="benchmarks") as advance,
        ):
            advance(len(chosen) - len(missing))
            for _ in pool.map("evaluate", missing):
                advance(1)
    results: list[Result] = [json.loads(result_file(out, name).read_text()) for name in chosen]
    write_atomic(out / RESULTS, json.dumps(results, indent=1, ensure_ascii=False))
    return {
        f"{result['benchmark']}/{metric}": measure["value"]
        for result in results
        for metric, measure in result["metrics"].items()
    }


def _chosen(config: EvaluateConfig, datasets: Mapping[str, Path]) -> list[str]:
    """Names of the sets to run, checked before any work: known, of a known task, and there."""
    unknown = [name for name in config.benchmarks if name not in datasets]
    if unknown:
        raise ValueError(f"no evaluation set {unknown[0]!r}: given are {sorted(datasets)}; correct evaluate.benchmarks")
    chosen = list(config.benchmarks or datasets)
    if not chosen:
        raise ValueError("no evaluation set given: at least one is required; name one in the recipe's data")
    for name in chosen:
        task_of(name)
        if not kind_of(datasets[name]):
            raise ValueError(f"no evaluation set at {datasets[name]} ({name}): a folder or .tar file is required")
    return chosen


class Evaluator:
    """A worker: loads the model once and evaluates the sets that it is given."""

    def __init__(
        self, config: EvaluateConfig, out: Path, datasets: Mapping[str, Path], load: Callable[[], Encoder]
    ) -> None:
        self._config, self._out, self._datasets = config, out, datasets
        self._encoder = load()

    def evaluate(self, benchmark: str) -> None:
        """Measure one set; its examples, tallies and result are on disk afterwards."""
        started = time.monotonic()
        pictures = examples_folder(self._out, benchmark)
        pictures.mkdir(parents=True, exist_ok=True)
        task, path = task_of(benchmark), self._datasets[benchmark]
        measure = {"classification": _classification, "retrieval": _retrieval, "segmentation": _segmentation}[task]
        measured = measure(self._encoder, path, self._config, pictures)
        config = self._config
        result: Result = {
            "benchmark": benchmark,
            "task": task,
            "metrics": {
                name: as_measure(estimate(tally, config.bootstrap_samples, config.seed))
                for name, tally in measured.tallies.items()
            },
            "baselines": measured.baselines,
            "sizes": measured.sizes,
            "protocol": {"data": path.name, **measured.protocol, **self._encoder.protocol, **_intervals(config)},
            "encoder": self._encoder.description,
            "seconds": round(time.monotonic() - started, 2),
        }
        write_result(self._out, result, measured.tallies)


def _intervals(config: EvaluateConfig) -> dict[str, object]:
    return {
        "intervals": f"95 %: Wilson for one trial an image, else bootstrap over images ({config.bootstrap_samples})",
        "ties": "expected value under random order",
    }


def _classification(encoder: Encoder, path: Path, config: EvaluateConfig, pictures: Path) -> Measured:
    dataset = open_classification(path)
    result = classify(encoder, dataset, TEMPLATES[config.templates], config.batch_size)
    examples.write_classification(pictures, dataset, result, config.num_examples)
    classes = len(dataset.class_names)
    chance = {name: chance_of_hit(classes, 1, int(name.removeprefix("top"))) for name in result.tallies}
    sizes = {"images": len(dataset.images), "classes": classes}
    protocol: dict[str, object] = {
        "prompts": f"{config.templates}, {len(TEMPLATES[config.templates])} templates, mean of unit vectors",
        "image": "short side resized (bicubic), centre crop",
        "text": "whole text vector",
    }
    return Measured(result.tallies, {"chance": chance}, sizes, protocol)


def _retrieval(encoder: Encoder, path: Path, config: EvaluateConfig, pictures: Path) -> Measured:
    dataset = open_retrieval(path, config.split)
    result = retrieve(encoder, dataset, config.batch_size)
    examples.write_retrieval(pictures, dataset, result, config.num_examples)
    sizes = {"images": len(dataset.images), "captions": len(dataset.captions)}
    protocol: dict[str, object] = {
        "split": dataset.split,
        "right": "an image's own captions; image to text counts the best of them",
        "image": "short side resized (bicubic), centre crop",
        "text": "whole text vector",
    }
    return Measured(result.tallies, {"chance": chance_recalls(dataset.owners)}, sizes, protocol)


def _segmentation(encoder: Encoder, path: Path, config: EvaluateConfig, pictures: Path) -> Measured:
    dataset, how = open_segmentation(path), config.segmentation
    shown = examples.evenly_spaced(len(dataset.images), config.num_examples)
    result = segment(encoder, dataset, TEMPLATES[config.templates], how, shown)
    examples.write_segmentation(pictures, dataset, result)
    baselines = segmentation_baselines(result.pixels, dataset.background)
    scored = len(scored_labels(dataset))
    protocol: dict[str, object] = {
        "prompts": f"{config.templates}, {len(TEMPLATES[config.templates])} templates, mean of unit vectors",
        "window": f"short side {how.short_side} px, window {how.window} px, stride {how.stride} px",
        "scores": f"soft-max of {how.logit_scale:g} x cosine, mean over windows, bilinear, arg-max",
        "text": "half trained against patches",
        "background": "none" if dataset.background is None else _background(how),
        "ignored": "none" if dataset.ignore is None else f"mask value {dataset.ignore}",
    }
    return Measured(result.tallies, baselines, {"images": len(dataset.images), "classes": scored}, protocol)


def _background(config: SegmentationConfig) -> str:
    if config.background == "threshold":
        return f"where no class has a cosine above {config.background_cosine:g}"
    return "best of the prompts " + ", ".join(config.background_prompts)
