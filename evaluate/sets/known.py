"""What a folder or tar is: the table of known evaluation sets. A new one is a row, at most with a
function to open it.

A row is recognized by file paths below the root, the root's own name first
("imagenet-a/n01498041/1.jpg"): each of its patterns must match one of them. The first row that fits
opens the set; the last of each task is for sets of one's own.
"""

import logging
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from cluster.storage import absolute
from curation.pairs.images import IMAGE_SUFFIXES
from curation.pairs.kinds import tree_of
from curation.pairs.tree import Tree
from evaluate.sets import captioned, described, foils, labelled, masked, packed, scored
from evaluate.sets.kinds import (
    IGNORED,
    TASKS,
    ClassificationSet,
    Facts,
    RetrievalSet,
    SegmentationSet,
    SimilaritySet,
    Task,
)
from evaluate.sets.masks import evenly_spaced

CHECKED_MASKS = 16  # evenly spaced over the set, before anything is encoded
WNID_IMAGE = r"(^|/)n\d{8}/[^/]+\.\w+$"

logger = logging.getLogger(__name__)


class Known(NamedTuple):
    """One known set or layout."""

    task: Task
    name: str
    marks: tuple[str, ...]
    open: Callable[..., Any]
    variants: tuple[str, ...] = ("",)
    """Published ways to score it, the usual one first; `PATH@variant` names one."""
    published: bool = True
    templates: str = "imagenet"


KNOWN = (
    # Classification: a file of names always wins, then the packed layouts, then sets by their folders.
    Known(
        "classification",
        "folders",
        (r"/classes\.json$", r"/[^/]+/[^/]+\.\w+$"),
        labelled.open_folders,
        published=False,
    ),
    Known(
        "classification", "webdataset", (r"/classnames\.txt$", r"\.tar$"), packed.open_webdataset
    ),
    Known(
        "classification",
        "cifar10",
        (r"/test_batch$", r"/batches\.meta$"),
        packed.open_cifar,
        templates="cifar10",
    ),
    Known(
        "classification",
        "cifar100",
        (r"/test$", r"/meta$"),
        packed.open_cifar,
        templates="cifar100",
    ),
    Known(
        "classification",
        "objectnet",
        (r"(?i)/objectnet[^/]*/|/mappings/folder_to", r"/images/[^/]+/[^/]+\.png$"),
        labelled.open_objectnet,
        ("113", "313"),
    ),
    Known(
        "classification",
        "inaturalist2018",
        (r"/val2018\.json$",),
        labelled.open_inaturalist,
        templates="plain",
    ),
    Known(
        "classification",
        "inaturalist2021",
        (r"/\d{5}_[A-Z][a-z]+_[^/]+/[^/]+\.jpg$",),
        labelled.open_inaturalist_folders,
        templates="plain",
    ),
    Known(
        "classification",
        "places365",
        (r"/places365_val\.txt$",),
        labelled.open_places,
        templates="sun397",
    ),
    Known(
        "classification",
        "imagenet-v2",
        (r"(?i)imagenet-?v2", r"/\d{1,3}/[^/]+\.\w+$"),
        labelled.open_imagenet_v2,
    ),
    Known(
        "classification",
        "imagenet-a",
        (r"(?i)imagenet-a/", WNID_IMAGE),
        partial(labelled.open_imagenet, num_classes=200),
    ),
    Known(
        "classification",
        "imagenet-r",
        (r"(?i)imagenet-r/", WNID_IMAGE),
        partial(labelled.open_imagenet, num_classes=200),
    ),
    Known("classification", "imagenet-sketch", (r"(?i)sketch", WNID_IMAGE), labelled.open_imagenet),
    Known("classification", "imagenet", (WNID_IMAGE,), labelled.open_imagenet),
    Known(
        "classification",
        "imagenet",
        (r"/ILSVRC2012_val_\d{8}\.JPEG$",),
        labelled.open_imagenet_flat,
    ),
    Known("classification", "folders", (), labelled.open_folders, published=False),
    # Retrieval
    Known("retrieval", "webdataset", (r"\.tar$",), captioned.open_webdataset_captions),
    Known(
        "retrieval",
        "coco",
        (r"/dataset_coco\.json$|/captions_(val|train)20\d\d\.json$",),
        captioned.open_captions,
    ),
    Known(
        "retrieval",
        "flickr30k",
        (r"/dataset_flickr30k\.json$|/results(_\d+)?\.(token|csv)$",),
        captioned.open_captions,
    ),
    Known(
        "retrieval",
        "sugarcrepe",
        (r"/(add|replace|swap)_(att|obj|rel)\.json$",),
        foils.open_foils,
    ),
    Known("retrieval", "captions", (), captioned.open_captions, published=False),
    # Segmentation
    Known("segmentation", "ade20k", (r"/annotations/\w+/ADE_\w+_\d+\.png$",), masked.open_ade20k),
    Known(
        "segmentation",
        "ade20k-847",
        (r"/annotations_detectron2/\w+/ADE_\w+\.tif$",),
        masked.open_ade20k_converted,
    ),
    Known("segmentation", "ade20k-847", (r"/ADE_\w+_\d+_seg\.png$",), masked.open_ade20k_full),
    Known(
        "segmentation",
        "cityscapes",
        (r"_gtFine_label(Train)?Ids\.png$", r"_leftImg8bit\.png$"),
        masked.open_cityscapes,
    ),
    Known(
        "segmentation",
        "pascal-context",
        (r"/SegmentationClassContext/",),
        masked.open_context,
        ("60", "59"),
    ),
    Known(
        "segmentation",
        "pascal-context",
        (r"/\d{4}_\d{6}\.mat$",),
        masked.open_context_matlab,
        ("60", "59"),
    ),
    Known(
        "segmentation",
        "pascal-voc",
        (r"/SegmentationClass/[^/]+\.png$", r"/ImageSets/Segmentation/val\.txt$"),
        masked.open_voc,
        ("21", "20"),
    ),
    Known(
        "segmentation",
        "coco-stuff",
        (r"/(train|val)2017/\d{12}(_labelTrainIds)?\.png$",),
        masked.open_coco_stuff,
        ("171", "27"),
    ),
    Known("segmentation", "coco-object", (r"/instances_val\d{4}\.json$",), masked.open_coco_object),
    Known("segmentation", "camvid", (r"/testannot/[^/]+\.png$",), masked.open_camvid),
    Known(
        "segmentation",
        "camvid",
        (r"/label_colors\.txt$|/class_dict\.csv$", r"_L\.png$"),
        masked.open_camvid_colors,
        ("11", "32"),
    ),
    Known("segmentation", "images and masks", (), described.open_masks, published=False),
    # Similarity of sentences
    Known("similarity", "sts-benchmark", (r"/sts-(train|dev|test)\.[ct]sv$",), scored.open_scored),
    Known("similarity", "sentence pairs", (), scored.open_scored, published=False),
)


def open_classification(path: Path, variant: str = "") -> ClassificationSet:
    """The labelled images of a folder or tar."""
    return _open("classification", path, variant)


def open_retrieval(path: Path, split: str = "auto", variant: str = "") -> RetrievalSet:
    """The captioned images of a folder, a tar, or a captions file beside its images."""
    return _open("retrieval", path, variant, split)


def open_segmentation(path: Path, variant: str = "") -> SegmentationSet:
    """The masked images of a folder or tar; the values of some masks are checked."""
    dataset: SegmentationSet = _open("segmentation", path, variant)
    check_masks(dataset)
    return dataset


def open_similarity(path: Path, variant: str = "") -> SimilaritySet:
    """The scored pairs of sentences of a table, or of the table in a folder or tar."""
    return _open("similarity", path, variant)


def _open(task: Task, path: Path, variant: str, *arguments: object) -> Any:
    tree = _tree(path)
    row = recognize(task, tree)
    if variant and variant not in row.variants:
        choices = ", ".join(name for name in row.variants if name) or "none"
        raise ValueError(
            f"{path}@{variant}: {row.name} has no variant {variant!r}: it has {choices}; correct it"
        )

    # The usual variant is part of the name too: "pascal-voc-21" must not be compared with "-20".
    chosen = variant or row.variants[0]
    name = f"{row.name}-{chosen}" if chosen else row.name
    facts = Facts(name, row.published, row.templates)
    logger.info("evaluation_set=%s recognized_as=%s", path.name, name)

    # Openers of retrieval take a split, others the variant, if their sets have several.
    return row.open(tree, facts, *(arguments or ((chosen,) if len(row.variants) > 1 else ())))


def _tree(path: Path) -> Tree:
    """The files of a folder or tar; of a file that lists images, it and the images around it."""
    tree, listing = tree_of(path)
    if not listing:
        return tree
    files = {
        name: part
        for name, part in tree.files.items()
        if name == listing or name.lower().endswith(IMAGE_SUFFIXES)
    }
    return Tree(tree.root, tree.is_file, files)


def recognize(task: Task, tree: Tree) -> Known:
    """The first row of a task all of whose patterns match a file."""
    # One search per pattern over all names at once, a line each: a set has millions of files, and ^
    # and $ are the ends of a line. The last row of each task has no pattern and fits anything.
    root = absolute(tree.root).name
    paths = "\n".join(f"{root}/{name}" for name in tree.files)
    rows = [row for row in KNOWN if row.task == task]
    return next(
        row for row in rows if all(re.search(mark, paths, re.MULTILINE) for mark in row.marks)
    )


def tasks_of(path: Path) -> list[Task]:
    """The tasks that a known set at this path is for; of a set of one's own, those that its files
    name.
    """
    tree = _tree(path)
    known = [task for task in TASKS if recognize(task, tree).marks]
    if known:
        return known
    has_labels = tree.outermost("labels.json", "labels.txt") is not None
    return ["segmentation"] if has_labels else []


def check_masks(dataset: SegmentationSet, most: int = CHECKED_MASKS) -> None:
    """ValueError for a mask value without a class among some masks, before hours are spent."""
    values = set[int]()
    for index in evenly_spaced(len(dataset.images), most):
        raw = dataset.masks.raw(index)
        mapped(dataset, index, raw)
        values.update(int(value) for value in np.unique(raw))

    # Masks that count from 1 under names that count from 0: the last value occurs, the first never.
    known = sorted(dataset.values)
    if known[0] == 0 and not dataset.facts.published and 0 not in values and known[-1] in values:
        logger.warning(
            "evaluation_set=%s mask_value_0=unused: if the masks count from 1, set first_value "
            "to 1 in labels.json",
            dataset.images.root.name,
        )


def load_mask(
    dataset: SegmentationSet, index: int, size: tuple[int, int]
) -> Int32[np.ndarray, "h w"]:
    """The class of every pixel of an image of this (width, height); IGNORED where none counts."""
    raw = dataset.masks.raw(index)
    if raw.shape != (size[1], size[0]):
        where = f"{dataset.masks.names[index]} of {dataset.images.root}"
        raise ValueError(
            f"size mismatch: {where} is {raw.shape[1]} x {raw.shape[0]}, its image {size[0]} x "
            f"{size[1]}; both must be the same"
        )
    return mapped(dataset, index, raw)


def mapped(dataset: SegmentationSet, index: int, raw: np.ndarray) -> Int32[np.ndarray, "h w"]:
    """Mask values to classes. ValueError names a value that is neither a class nor ignored."""
    # Each distinct value is looked up once, instead of each pixel; `places` says which distinct
    # value a pixel has.
    present, places = np.unique(raw, return_inverse=True)
    classes = np.full(len(present), IGNORED, np.int32)
    for number, value in enumerate(present.tolist()):
        if value in dataset.values:
            classes[number] = dataset.values[value]
        elif value not in dataset.ignored and not dataset.ignores_rest:
            raise ValueError(_unknown_value(dataset, index, value))
    return classes[places].reshape(raw.shape)


def _unknown_value(dataset: SegmentationSet, index: int, value: int) -> str:
    where = f"{dataset.masks.names[index]} of {dataset.images.root}"
    known = sorted(dataset.values)
    is_next = value == known[-1] + 1 and known == list(range(known[0], value))
    hint = (
        f"; as the values are one above the last, the masks probably count from {known[0] + 1}: then set "
        f'"first_value": {known[0] + 1}'
        if is_next and not dataset.facts.published
        else ""
    )

    return (
        f"unknown class {value} in {where}: {len(dataset.labels)} classes have the values {known[0]} to {known[-1]}; "
        f'extend labels.json, or set its "ignore_index"{hint}'
    )
