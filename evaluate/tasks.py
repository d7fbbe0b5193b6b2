"""The four tasks: an encoder and the files of a set to tallies, with what is said about them.

A large set is done in two steps. `compute` does what costs time, the images, for one part; `measure`
scores the set from what the parts gave, and computes what they did not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

from evaluate import examples
from evaluate.classification import classify
from evaluate.config import EvaluateConfig, SegmentationConfig
from evaluate.encoder import Encoder
from evaluate.features import Shelf, image_parts
from evaluate.metrics import chance_of_hit
from evaluate.parts import Parts
from evaluate.prompts import Prompts, choose_prompts
from evaluate.retrieval import chance_recalls, retrieve
from evaluate.segmentation import Segmenter, scene_parts, segmentation_baselines
from evaluate.sets.kinds import (
    ClassificationSet,
    Facts,
    RetrievalSet,
    SegmentationSet,
    SimilaritySet,
    first_names,
    split_name,
)
from evaluate.sets.known import (
    open_classification,
    open_retrieval,
    open_segmentation,
    open_similarity,
)
from evaluate.sets.masks import evenly_spaced
from evaluate.similarity import compare_sentences
from evaluate.tally import Estimate, Tally, estimate_columns
from evaluate.vectors import SetVectors
from evaluate.views import View, choose_view
from evaluate.wordnet import Nouns

Dataset = ClassificationSet | RetrievalSet | SegmentationSet | SimilaritySet


def open_set(name: str, path: Path, split: str) -> Dataset:
    """The set of this name; ValueError says why it cannot be read."""
    task, variant = split_name(name)
    match task:
        case "classification":
            return open_classification(path, variant)
        case "retrieval":
            return open_retrieval(path, split, variant)
        case "segmentation":
            return open_segmentation(path, variant)
        case "similarity":
            return open_similarity(path, variant)


def parts_of(dataset: Dataset, batch_size: int) -> list[range]:
    """The parts that workers share, as numbers of images; one of all items where a set is not cut."""
    match dataset:
        case SimilaritySet():
            return [range(len(dataset.sentences))]
        case SegmentationSet():
            return scene_parts(len(dataset.images))
        case _:
            return image_parts(len(dataset.images), batch_size)


@dataclass(frozen=True)
class Job:
    """One evaluation set and all that scoring it needs; kept while its parts are computed."""

    encoder: Encoder
    name: str
    """Its task, with any _suffix."""
    path: Path
    templates: Path | None
    """File of prompt templates; None: those that the config names."""
    wordnet: Path | None
    """Folder of WordNet, for Open-mIoU; None: without."""
    config: EvaluateConfig
    pictures: Path
    """Folder for example pictures."""
    shelf: Shelf
    """Where models share features."""
    parts: Parts
    """Where workers leave what they compute of the set."""
    advance: Callable[[int], None]
    """Called with the number of items that were scored since the last call."""

    @cached_property
    def dataset(self) -> Dataset:
        """The opened set."""
        return open_set(self.name, self.path, self.config.split)

    @cached_property
    def prompts(self) -> Prompts:
        """The templates for the names of classes."""
        return choose_prompts(self.config.templates, self.dataset.facts.templates, self.templates)

    @cached_property
    def view(self) -> View:
        """How the images of classification and retrieval are cut."""
        return choose_view(self.config.view, self.dataset.facts, self.encoder.protocol)

    @cached_property
    def vectors(self) -> SetVectors:
        """What encodes the texts and images of classification and retrieval."""
        dataset = self.dataset
        assert isinstance(dataset, ClassificationSet | RetrievalSet)
        is_named = isinstance(dataset, ClassificationSet)
        return SetVectors(
            self.encoder,
            dataset,
            self.prompts.templates if is_named else (),
            self.view,
            self.config.batch_size,
            self.shelf,
            self.parts,
        )

    @cached_property
    def segmenter(self) -> Segmenter:
        """What segments the images of the set."""
        dataset = self.dataset
        assert isinstance(dataset, SegmentationSet)
        alike = Nouns(self.wordnet).similarities(dataset.labels) if self.wordnet else None
        shown = evenly_spaced(len(dataset.images), self.config.num_examples)
        return Segmenter(
            self.encoder, dataset, self.prompts.templates, self.config.segmentation, alike, shown
        )


@dataclass(frozen=True)
class Measured:
    """What one task hands back, before intervals."""

    tallies: dict[str, Tally]
    baselines: dict[str, dict[str, float]]
    sizes: dict[str, int]
    protocol: dict[str, object]
    classes: list[dict[str, Any]] = field(default_factory=list)
    names: list[dict[str, Any]] = field(default_factory=list)


def compute(job: Job, images: range) -> object:
    """What `measure` needs of some images: vectors, or the counts of segmentation. ValueError for
    damaged images, and for vectors that are not finite.
    """
    source = job.segmenter if isinstance(job.dataset, SegmentationSet) else job.vectors
    return source.compute(images, job.advance)


def measure(job: Job) -> Measured:
    """Score a set and write its example pictures. ValueError says why a set cannot be scored."""
    match job.dataset:
        case ClassificationSet() as dataset:
            return _classification(job, dataset)
        case RetrievalSet() as dataset:
            return _retrieval(job, dataset)
        case SegmentationSet() as dataset:
            return _segmentation(job, dataset)
        case SimilaritySet() as dataset:
            return _similarity(job, dataset)


def _image_protocol(facts: Facts, view: View) -> dict[str, object]:
    return {"set": facts.kind, **facts.notes, "image": view.describe(), "text": "whole text vector"}


def _classification(job: Job, dataset: ClassificationSet) -> Measured:
    config = job.config
    prompts = job.prompts
    result = classify(dataset, job.vectors.texts(), job.vectors.images(job.advance))
    examples.write_classification(job.pictures, dataset, result, config.num_examples)

    # By chance, each class has the accuracy of the whole set, and so has the mean over classes.
    num_classes = len(dataset.class_names)
    chance = {
        f"top{k}": chance_of_hit(num_classes, 1, k) for k in (1, 5) if f"top{k}" in result.tallies
    }
    chance["mean_per_class"] = chance["top1"]
    protocol = {"prompts": prompts.describe(), **_image_protocol(dataset.facts, job.view)}
    sizes = {"images": len(dataset.images), "classes": num_classes}
    names = first_names(dataset.class_names)
    classes = _column_rows(names, result.tallies["mean_per_class"], config)

    return Measured(result.tallies, {"chance": chance}, sizes, protocol, classes)


def _column_rows(
    names: Sequence[str], tally: Tally, config: EvaluateConfig
) -> list[dict[str, Any]]:
    """Name, trials, ratio and interval of each column of a tally; None where it was never tried."""
    estimates = estimate_columns(tally, config.bootstrap_samples, config.seed)
    columns = zip(tally.trials_per_column().tolist(), estimates, strict=True)

    # The columns of a tally end with the last class that has an image.
    rows = zip_longest(names, columns, fillvalue=(0, None))
    return [
        {
            "name": name,
            "n": int(trials),
            **(each._asdict() if each else dict.fromkeys(Estimate._fields)),
        }
        for name, (trials, each) in rows
    ]


def _retrieval(job: Job, dataset: RetrievalSet) -> Measured:
    config = job.config
    result = retrieve(dataset, job.vectors.texts(), job.vectors.images(job.advance))
    examples.write_retrieval(job.pictures, dataset, result, config.num_examples)

    sizes = {"images": len(dataset.images), "captions": len(dataset.captions)}
    protocol: dict[str, object] = {
        "split": dataset.split,
        "right": "an image's own captions; image to text counts the best of them",
        **_image_protocol(dataset.facts, job.view),
    }

    chance = chance_recalls(dataset.owners) | ({"foil_accuracy": 0.5} if dataset.foils else {})
    return Measured(result.tallies, {"chance": chance}, sizes, protocol)


def _similarity(job: Job, dataset: SimilaritySet) -> Measured:
    tallies = compare_sentences(job.encoder, dataset, job.advance)
    cosines = tallies["spearman"].hits[:, 0]
    examples.write_similarity(job.pictures, dataset, cosines, job.config.num_examples)
    protocol: dict[str, object] = {
        "set": dataset.facts.kind,
        **dataset.facts.notes,
        "similarity": "Spearman's rank correlation of cosines with scores",
        "text": "whole text vector",
        "ties": "equal values share their mean rank",
    }

    # Cosines in random order correlate with nothing.
    sizes = {"pairs of sentences": len(dataset.sentences)}
    return Measured(tallies, {"chance": {"spearman": 0.0}}, sizes, protocol)


def _segmentation(job: Job, dataset: SegmentationSet) -> Measured:
    config = job.config
    segmenter = job.segmenter
    result = segmenter.segment(job.advance, job.parts)
    examples.write_segmentation(job.pictures, dataset, result)

    values = ", ".join(map(str, sorted(dataset.ignored))) or "none"
    protocol: dict[str, object] = {
        "set": dataset.facts.kind,
        **dataset.facts.notes,
        "prompts": job.prompts.describe(),
        "segmentation": config.segmentation.describe(),
        "text": "half trained against patches",
        "background": "none" if dataset.background is None else _background(config.segmentation),
        "ignored": f"mask values {values}"
        + (" and all without a class" if dataset.ignores_rest else ""),
    }
    if job.wordnet:
        protocol["alike"] = "path similarity of the nearest senses in WordNet"
    sizes = {"images": len(dataset.images), "classes": len(dataset.labels)}
    classes = _column_rows(first_names(dataset.labels), result.tallies["miou"], config)
    # The trials of an IoU are its union; people ask how many pixels a class has.
    for row, pixels in zip(classes, result.pixels.tolist(), strict=True):
        row["n"] = pixels

    baselines = segmentation_baselines(result.pixels, dataset.background, segmenter.alike)
    names = []
    if "name_ap" in result.tallies:
        names = _column_rows(result.names.shown, result.tallies["name_ap"], config)
        baselines["maps_without_heat"] = {"name_ap": result.chance_of_name}

    return Measured(result.tallies, baselines, sizes, protocol, classes, names)


def _background(config: SegmentationConfig) -> str:
    if config.background == "threshold":
        return f"where no class has a cosine above {config.background_cosine:g}"
    return "best of the prompts " + ", ".join(config.background_prompts)
