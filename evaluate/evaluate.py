"""The step `evaluate`: a model and evaluation sets to results, per-item tallies and example
pictures.

A pool of Ray workers, which load the model once, scores small sets whole and shares the images of
large ones in parts. A set's result is written whole, last, so that a run that was interrupted does
only what is missing. A set that cannot be scored is a result too, with its reason, and all others
are scored.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from hashlib import sha256
from pathlib import Path

from cluster.devices import settled
from cluster.fanout import Pool
from cluster.files import sha256_file
from cluster.machine import settled_precision
from cluster.progress import progress
from cluster.storage import kind_of
from curation.pairs.identity import source_digest
from evaluate.config import EvaluateConfig
from evaluate.dinotxt import load_encoder
from evaluate.encoder import Encoder
from evaluate.features import Shelf
from evaluate.openclip import OpenClipEncoder
from evaluate.parts import PARTS, Part, Parts
from evaluate.prompts import TEMPLATES_INPUT, named_templates
from evaluate.results import Result, examples_folder, result_file, write_flat
from evaluate.sets.kinds import split_name
from evaluate.tallies import write_result
from evaluate.tally import Tally, estimate
from evaluate.tasks import Job, Measured, compute, measure, open_set, parts_of
from evaluate.wordnet import WORDNET_INPUT

FINGERPRINT = 12  # hexadecimal digits that results show of a fingerprint
TELL_EVERY_S = 0.5

logger = logging.getLogger(__name__)


def run(
    config: EvaluateConfig, *, out: Path, model: Path | None = None, **inputs: Path
) -> dict[str, float]:
    """Evaluate `model`, or open_clip's, on every set named classification, retrieval,
    segmentation or similarity (any _suffix).

    Among the inputs, `templates` is a file of prompt templates, and `wordnet` the folder of WordNet.
    Returns every metric as
    "<set>/<metric>", and how many sets could not be scored as "failed_sets". Results that `out`
    holds already are kept.
    """
    if not model:
        architecture, _, weights = config.open_clip.partition(":")
        return evaluate_sets(
            config, out, inputs, partial(OpenClipEncoder, architecture, weights), config.open_clip
        )

    precision = settled_precision(settled(config, config.resources).precision)
    load = partial(load_encoder, model, config.backbone, precision)
    return evaluate_sets(config, out, inputs, load, model_fingerprint(model))


def model_fingerprint(folder: Path) -> str:
    """Identity of the files of a model: their names and contents, not where they lie."""
    # Sorted, because file systems list a folder in orders of their own.
    digest = sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(f"{path.name} {sha256_file(path)}\n".encode())
    return digest.hexdigest()[:FINGERPRINT]


def evaluate_sets(
    config: EvaluateConfig,
    out: Path,
    inputs: Mapping[str, Path],
    load: Callable[[], Encoder],
    model: str = "",
) -> dict[str, float]:
    """The step for any encoder: `load` is called once in each worker process."""
    # A set whose result file is there was scored by an earlier run of this step.
    chosen = _chosen(config, inputs)
    missing = [name for name in chosen if not result_file(out, name).exists()]
    logger.info("evaluation_sets=%d finished=%d", len(chosen), len(chosen) - len(missing))

    if missing:
        _score(config, out, {name: inputs[name] for name in missing}, (inputs, load, model))

    # All sets are scored. Nothing is there if none is large.
    shutil.rmtree(out / PARTS, ignore_errors=True)

    # From the files, whether this run or an earlier one wrote them.
    results: list[Result] = [json.loads(result_file(out, name).read_text()) for name in chosen]
    write_flat(out, results)
    scores = {
        f"{result['set']}/{metric}": measure["value"]
        for result in results
        for metric, measure in result["metrics"].items()
    }
    failed = [result for result in results if result["error"]]
    for result in failed:
        logger.error("evaluation_set=%s failed=%r", result["set"], result["error"])

    return scores | ({"failed_sets": float(len(failed))} if failed else {})


def _chosen(config: EvaluateConfig, inputs: Mapping[str, Path]) -> list[str]:
    """Names of the sets to run, checked before any work: known, of a known task, and there."""
    files = (TEMPLATES_INPUT, WORDNET_INPUT)
    sets = {name: path for name, path in inputs.items() if name not in files}
    unknown = [name for name in config.sets if name not in sets]
    if unknown:
        raise ValueError(
            f"no evaluation set {unknown[0]!r}: there are {sorted(sets)}; correct evaluate.sets"
        )

    chosen = list(config.sets or sets)
    if not chosen:
        raise ValueError(
            "no evaluation set is named: at least one is required; name one in the recipe's data"
        )

    for name in chosen:
        split_name(name)
        if not kind_of(sets[name]):
            raise ValueError(
                f"no evaluation set at {sets[name]} ({name}): a folder or .tar file is required"
            )

    if (
        TEMPLATES_INPUT not in inputs
        and config.templates != "auto"
        and config.templates not in named_templates()
    ):
        raise ValueError(
            f"evaluate.templates is {config.templates!r}: one of {', '.join(named_templates())}, "
            "or a text file with one template per line, is required; correct it"
        )

    return chosen


def _score(
    config: EvaluateConfig, out: Path, sets: Mapping[str, Path], arguments: tuple[object, ...]
) -> None:
    """Score these sets by workers. Parts that an earlier run has left are not computed again."""
    cuts = {name: _cut(config, name, path) for name, path in sets.items()}
    parts = [
        Part(name, images, len(cut) == 1)
        for name, cut in cuts.items()
        for images in cut
        if not Parts(out / PARTS / name).has(images)
    ]
    shared = [name for name, cut in cuts.items() if len(cut) > 1]
    total = sum(len(part.images) for part in parts)

    with (
        Pool(
            Evaluator,
            config,
            out,
            *arguments,
            resources=config.resources,
            max_workers=max(len(parts), len(shared)),
        ) as pool,
        progress(total, "evaluate", unit="items") as meter,
    ):
        for part, _ in pool.map("work_counted", parts, on_count=meter.under_way):
            meter(len(part.images))

        # What remains of each of these sets, to compare vectors or add up counts, one worker does.
        for _ in pool.map("evaluate", shared):
            pass


def _cut(config: EvaluateConfig, name: str, path: Path) -> list[range]:
    """The parts of a set; one of no item where it cannot be opened, which its result will say."""
    try:
        return parts_of(open_set(name, path, config.split), config.batch_size)
    except ValueError:
        return [range(0)]


class Evaluator:
    """A worker: loads the model once, and scores sets and computes parts of sets one after another."""

    def __init__(
        self,
        config: EvaluateConfig,
        out: Path,
        inputs: Mapping[str, Path],
        load: Callable[[], Encoder],
        model: str = "",
    ) -> None:
        self._config = config
        self._out = out
        self._inputs = inputs
        self._model = model
        self._encoder = load()
        self._count = 0
        self._jobs: dict[str, Job] = {}
        self._failed: set[str] = set()
        """Sets of which a part failed here."""

    def work_counted(self, part: Part) -> Iterator[int]:
        """The same as `work`, which tells now and then how many images it has seen."""
        # The work is done in a thread, so that this one is free to tell the count.
        self._count = 0
        with ThreadPoolExecutor(1) as threads:
            done = threads.submit(self.work, part)
            while not done.done():
                wait([done], timeout=TELL_EVERY_S)
                yield self._count
            done.result()

    def work(self, part: Part) -> None:
        """Measure a set that is not cut; of all others, leave on disk what this part gives."""
        if part.is_whole:
            self.evaluate(part.name)
            return
        if part.name in self._failed:
            return

        try:
            job = self._job(part.name)
            computed = compute(job, part.images)
        except Exception as error:
            # No more work for this set: scoring it meets the first damaged image in the order of
            # the set, whichever worker failed first, and says so in the result.
            self._failed.add(part.name)
            logger.warning(
                "evaluation_set=%s images=%d..%d failed=%r",
                part.name,
                part.images.start,
                part.images.stop,
                _reason(error),
            )
            return

        job.parts.write(part.images, computed)

    def evaluate(self, name: str) -> None:
        """Measure one set; its examples, tallies and result are on disk afterwards, or the reason
        why not.
        """
        started = time.monotonic()
        tallies: dict[str, Tally] = {}
        data = ""
        try:
            job = self._job(name)
            data = job.shelf.data
            measured = measure(job)
            tallies = measured.tallies
            result = self._result(name, measured, data)
        except Exception as error:  # one set may not take down the others: its reason is its result
            logger.exception("evaluation_set=%s failed=true", name)
            result = self._result(name, Measured({}, {}, {}, {}), data, _reason(error))

        result["seconds"] = round(time.monotonic() - started, 2)
        write_result(self._out, result, tallies)

    def _job(self, name: str) -> Job:
        """A set with what has been read and encoded of it, for all of its parts that come here."""
        if name not in self._jobs:
            data = source_digest(self._inputs[name])
            pictures = examples_folder(self._out, name)
            pictures.mkdir(parents=True, exist_ok=True)
            self._jobs[name] = Job(
                self._encoder,
                name,
                self._inputs[name],
                self._inputs.get(TEMPLATES_INPUT),
                self._inputs.get(WORDNET_INPUT),
                self._config,
                pictures,
                Shelf(self._out, data),
                Parts(self._out / PARTS / name),
                self._advance,
            )
        return self._jobs[name]

    def _advance(self, count: int) -> None:
        self._count += count

    def _result(self, name: str, measured: Measured, data: str, error: str = "") -> Result:
        config = self._config
        metrics = {}
        for metric, tally in measured.tallies.items():
            interval = estimate(tally, config.bootstrap_samples, config.seed)
            metrics[metric] = {**interval._asdict(), "n": len(tally.hits)}

        path = self._inputs[name]
        task, _ = split_name(name)
        samples = config.bootstrap_samples
        shared = {
            "intervals": "95 %: Wilson for one trial per image, else bootstrap over images "
            f"({samples})",
            "ties": "expected value under random order",
        }
        if task == "similarity":
            shared = {"intervals": f"95 %: bootstrap over pairs of sentences ({samples})"}
        return {
            "set": name,
            "task": task,
            "error": error,
            "metrics": metrics,
            "baselines": measured.baselines,
            "sizes": measured.sizes,
            "protocol": {
                "data": path.name,
                **measured.protocol,
                **self._encoder.protocol,
                **shared,
            },
            "classes": measured.classes,
            "names": measured.names,
            "encoder": self._encoder.description,
            "model": self._model,
            "data": data[:FINGERPRINT],
            "seconds": 0.0,
        }


def _reason(error: Exception) -> str:
    """What happened, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    # A ValueError of ours is a sentence for the user; of other errors, the type says most.
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"
