"""Evaluation sets, one function for each layout; the same inside a folder and inside a .tar.

Classification: `<class>/<image>`. Retrieval: images and Karpathy's JSON or COCO's. Segmentation: `images/`, `masks/`
and `labels.json`. What can be wrong with names is found when a set is opened, before anything is encoded; pixels are
decoded on demand.
"""

import io
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Int32
from PIL import Image

from curation.pairs.images import IMAGE_SUFFIXES, ImageError, decode
from curation.pairs.text import clean_captions
from curation.pairs.tree import Tree, open_tree
from evaluate.captioned import captioned, locate, read_json
from evaluate.prompts import IMAGENETTE_NAMES

Task = Literal["classification", "retrieval", "segmentation"]
MAX_PIXELS = 64_000_000
WORDNET_ID = re.compile(r"n\d{8}")
DIGIT = re.compile(r"\d")


def task_of(benchmark: str) -> Task:
    """The task that the first word of a benchmark's name says."""
    for task in get_args(Task):
        if benchmark == task or benchmark.startswith(f"{task}_"):
            return task
    raise ValueError(f"unknown benchmark {benchmark!r}: names begin with {', '.join(get_args(Task))}; rename the input")


@dataclass(frozen=True)
class ClassificationSet:
    """Images with one class each."""

    tree: Tree
    images: tuple[str, ...]
    targets: tuple[int, ...]
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class RetrievalSet:
    """Images with one or more captions each; caption j describes image owners[j]."""

    tree: Tree
    split: str
    images: tuple[str, ...]
    captions: tuple[str, ...]
    owners: tuple[int, ...]


@dataclass(frozen=True)
class SegmentationSet:
    """Images with label maps; `background` is the index of "none of these", `ignore` is never counted."""

    tree: Tree
    images: tuple[str, ...]
    masks: tuple[str, ...]
    labels: tuple[str, ...]
    background: int | None
    ignore: int | None


def _images(tree: Tree, folder: str = "") -> list[str]:
    return [name for name in tree.with_suffix(*IMAGE_SUFFIXES) if name.startswith(folder)]


def load_images(tree: Tree, names: Sequence[str]) -> list[Image.Image]:
    """The named images as RGB. An undecodable one is an error: leaving it out would change the score."""
    return [_load_image(tree, name) for name in names]


def _load_image(tree: Tree, name: str) -> Image.Image:
    try:
        return decode(tree.files[name].read(), MAX_PIXELS)
    except ImageError as error:
        raise ValueError(f"cannot decode {name} of {tree.root} ({error}): replace or remove the file") from error


def open_classification(path: Path) -> ClassificationSet:
    """A set with one folder for each class.

    Names come from classes.json ({folder: name}, or a list in folder order), else from the folders. Where those are
    WordNet numbers, it is ours of Imagenette, or the file's stem when every class has one image that is named in words.
    """
    tree = open_tree(path)
    images = tuple(name for name in _images(tree) if "/" in name)
    if not images:
        raise ValueError(f"no <class>/<image> file in {path}: one folder for each class is required")
    _check_one_parent(path, images)
    folders = [PurePosixPath(name).parent.name for name in images]
    classes = sorted(set(folders))
    index = {folder: position for position, folder in enumerate(classes)}
    names = _class_names(tree, classes, images, folders)
    return ClassificationSet(tree, images, tuple(index[folder] for folder in folders), names)


def _check_one_parent(path: Path, images: Sequence[str]) -> None:
    """ValueError when two folders have the name of one class, as with train/dog and val/dog."""
    parents: dict[str, PurePosixPath] = {}
    for folder in dict.fromkeys(PurePosixPath(name).parent for name in images):
        first = parents.setdefault(folder.name, folder.parent)
        if first != folder.parent:
            raise ValueError(
                f"class {folder.name} is in {path} twice, as {first / folder.name} and as {folder}: splits must not be "
                f"mixed, and a class is one folder; give {path / max(first, folder.parent)}, or a tar of it alone"
            )


def _class_names(tree: Tree, classes: list[str], images: Sequence[str], folders: list[str]) -> tuple[str, ...]:
    if listing := tree.outermost("classes.json"):
        return _listed_names(tree, classes, read_json(tree, listing))
    unnamed = [folder for folder in classes if WORDNET_ID.fullmatch(folder) and folder not in IMAGENETTE_NAMES]
    if not unnamed:
        return tuple(IMAGENETTE_NAMES.get(folder) or _readable(folder) for folder in classes)
    stems = {folder: PurePosixPath(name).stem for folder, name in zip(folders, images, strict=True)}
    if len(images) > len(classes) or any(DIGIT.search(stems[folder]) for folder in unnamed):
        raise ValueError(
            f"class folder {unnamed[0]} ({len(unnamed)} in all) in {tree.root} is a WordNet number: "
            "prompts need words; add a classes.json that gives each folder its name"
        )
    return tuple(_readable(stems[folder] if WORDNET_ID.fullmatch(folder) else folder) for folder in classes)


def _listed_names(tree: Tree, classes: list[str], listing: Any) -> tuple[str, ...]:
    if isinstance(listing, list) and len(listing) == len(classes):
        return _names(tree, "classes.json", listing)
    if not isinstance(listing, dict):
        raise ValueError(
            f"classes.json of {tree.root} does not name the {len(classes)} class folders: "
            f"an object {{folder: name}} or a list of as many names is required"
        )
    unknown = [folder for folder in classes if folder not in listing]
    if unknown:
        raise ValueError(
            f"unknown class {unknown[0]} ({len(unknown)} in all) in {tree.root}: "
            "each class folder needs its name in classes.json; add it there or remove the folder"
        )
    return _names(tree, "classes.json", [listing[folder] for folder in classes])


def _names(tree: Tree, listing: str, names: Collection[object]) -> tuple[str, ...]:
    """Class names as any tokenizer can read them."""
    cleaned = clean_captions(names)
    if not cleaned or len(cleaned) < len(names):
        raise ValueError(
            f"{listing} of {tree.root} has {len(names)} class names, {len(cleaned)} of them with text: prompts need "
            "words; name every class, in quotes"
        )
    return cleaned


def _readable(name: str) -> str:
    return name.replace("_", " ").strip()


def open_retrieval(path: Path, split: str = "auto") -> RetrievalSet:
    """`split` "auto": test if there is one, else val, else every image; "" is every image."""
    tree = open_tree(path)
    entries = captioned(tree)
    present = {entry.split for entry in entries}
    if split == "auto":
        split = next((name for name in ("test", "val") if name in present), "")
    chosen = [entry for entry in entries if not split or entry.split == split]
    if not chosen:
        raise ValueError(
            f"no image of split {split!r} in {entries[0].listing} of {path}: splits there are {sorted(present)}; "
            "set evaluate.split to one"
        )
    images = tuple(locate(tree, entry) for entry in chosen)
    captions = [clean_captions(entry.captions) for entry in chosen]
    for image, entry, texts in zip(images, chosen, captions, strict=True):
        if not texts or len(texts) < len(entry.captions):
            raise ValueError(
                f"{image} has no caption or an empty one in {entry.listing} of {path}: each image needs at least one, "
                "with text; add it, or delist the image"
            )
    owners = tuple(index for index, texts in enumerate(captions) for _ in texts)
    return RetrievalSet(tree, split or "all", images, tuple(text for texts in captions for text in texts), owners)


def open_segmentation(path: Path) -> SegmentationSet:
    """A set with an image and a mask of class indices for each stem.

    labels.json is a list whose index 0 is the background, or {"labels": [...], "ignore_index": i}, where a label called
    "background" is the background unless it is ignored, and the index may be missing.
    """
    tree = open_tree(path)
    listing = tree.outermost("labels.json")
    if listing is None:
        raise ValueError(f"no labels.json in {path}: the list of class names by mask value is required")
    root = PurePosixPath(listing).parent
    masks_by_stem = _masks(tree, root / "masks")
    images = tuple(_images(tree, f"{root / 'images'}/"))
    if not images:
        raise ValueError(f"no image in {path}: files under images/ and masks/ with the same stems are required")
    missing = [name for name in images if _stem(name, root / "images") not in masks_by_stem]
    if missing:
        raise ValueError(
            f"missing mask for {missing[0]} ({len(missing)} in all) in {path}: "
            "each images/<stem> needs masks/<stem>.png; add it or remove the image"
        )
    masks = tuple(masks_by_stem[_stem(name, root / "images")] for name in images)
    labels, background, ignore = _labels(tree, listing)
    if not set(range(len(labels))) - {background, ignore}:
        raise ValueError(
            f"{listing} of {tree.root} names {list(labels)}: at least one class beside the background and what is "
            "ignored is required; add it"
        )
    return SegmentationSet(tree, images, masks, labels, background, ignore)


def _masks(tree: Tree, folder: PurePosixPath) -> dict[str, str]:
    """The mask of each stem."""
    masks: dict[str, str] = {}
    for name in _images(tree, f"{folder}/"):
        other = masks.setdefault(_stem(name, folder), name)
        if other != name:
            raise ValueError(f"{tree.root} has {other} and {name}: each image has one mask; remove the other")
    return masks


def _labels(tree: Tree, listing: str) -> tuple[tuple[str, ...], int | None, int | None]:
    """Class names by mask value, the index of the background and the mask value that is ignored."""
    content = read_json(tree, listing)
    if isinstance(content, list):
        return _names(tree, listing, content), 0, None
    if not isinstance(content, dict) or not isinstance(content.get("labels"), list):
        raise ValueError(
            f'{listing} of {tree.root} has no list of labels: [name, ...] or {{"labels": [name, ...], '
            '"ignore_index": i} is required; correct it'
        )
    names, ignore = _names(tree, listing, content["labels"]), content.get("ignore_index")
    if not isinstance(ignore, int | None):
        raise ValueError(f"ignore_index is {ignore!r} in {listing} of {tree.root}: must be a mask value; correct it")
    background = names.index("background") if "background" in names else None
    return names, None if background == ignore else background, ignore


def _stem(name: str, folder: PurePosixPath) -> str:
    """The file's path in the folder, without its suffix."""
    return str(PurePosixPath(name).relative_to(folder).with_suffix(""))


def load_mask(dataset: SegmentationSet, index: int, size: tuple[int, int]) -> Int32[np.ndarray, "h w"]:
    """The label map of one image, whose (width, height) it must have."""
    name = dataset.masks[index]
    where = f"{name} of {dataset.tree.root}"
    try:
        with Image.open(io.BytesIO(dataset.tree.files[name].read())) as picture:
            kind, mode, mask = picture.format, picture.mode, np.asarray(picture)
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
        raise ValueError(f"cannot decode {where} ({type(error).__name__}: {error}): replace the file") from error
    if mask.ndim != 2 or mask.dtype.kind == "f" or kind == "JPEG":
        raise ValueError(
            f"{where} is a {kind} of mode {mode}: one channel of whole class indices, not blurred by a lossy format, "
            "is required; save it as such a PNG"
        )
    if mask.shape != (size[1], size[0]):
        raise ValueError(
            f"size mismatch: {where} is {mask.shape[1]} x {mask.shape[0]}, its image {size[0]} x {size[1]}; "
            "both must be the same"
        )
    values = np.unique(mask)
    unknown = [int(value) for value in values if not 0 <= value < len(dataset.labels) and value != dataset.ignore]
    if unknown:
        raise ValueError(
            f"unknown class {unknown[0]} in {where}: labels.json names {len(dataset.labels)} classes, from 0; "
            'extend it, or set its "ignore_index"'
        )
    return mask.astype(np.int32)
