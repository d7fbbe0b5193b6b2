"""Segmentation sets of one's own: images, masks of indices, and a file that names the mask
values.
"""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from curation.pairs.tree import Tree
from evaluate.sets.images import image_names, images_of
from evaluate.sets.kinds import ClassNames, Facts, SegmentationSet
from evaluate.sets.masks import index_masks
from evaluate.sets.names import checked_names, read_json, read_lines, readable

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "JPEGImages")
MASK_FOLDERS = ("masks", "mask", "labels", "annotations", "SegmentationClass")
NAME_FILES = ("labels.json", "labels.txt", "classes.txt", "classnames.txt")
BACKGROUND_WORDS = (
    "background",
    "null",
    "void",
    "unlabeled",
    "unlabelled",
    "unknown",
    "other",
    "none",
    "ignore",
)


def open_masks(tree: Tree, facts: Facts, variant: str = "") -> SegmentationSet:
    """Own sets: images/ and masks/ of the same stems, and the names of the mask values.

    labels.json is {"labels": [...], "ignore_index": i or [i, ...], "first_value": 0 or 1}, or a
    list whose first name is the background; "groups": {"footwear": ["boots", "shoes"]} adds names
    that are true for several classes. A text file has one name per line, or "value: name".
    """
    listing = tree.outermost(*NAME_FILES)
    if listing is None:
        raise ValueError(
            f"no labels.json in {tree.root}: the list of class names by mask value is required"
        )

    root = PurePosixPath(listing).parent
    images, masks = _same_stems(tree, root)
    named, ignored, is_list = _value_names(tree, listing)

    counted = {value: name for value, name in named.items() if value not in ignored}
    names = checked_names(f"{listing} of {tree.root}", list(counted.values())) if counted else ()

    # The first name of a list is the background's, whatever it is called ("null", "void"). In other
    # files, only the class called "background" is.
    called = next((label for label, each in enumerate(names) if "background" in each), None)
    background = 0 if is_list else called

    if len(names) <= (background is not None):
        raise ValueError(
            f"{listing} of {tree.root} names {list(named.values())}: at least one class beside "
            "the background and what is ignored is required; add it"
        )

    # Labels count without gaps: of the mask values 1, 2, 4, the last one is label 2.
    values = {value: label for label, value in enumerate(counted)}
    return SegmentationSet(
        facts,
        images_of(tree, images),
        index_masks(tree, masks),
        names,
        values,
        frozenset(ignored),
        background=background,
        groups=_groups(tree, listing, names),
    )


def _groups(tree: Tree, listing: str, names: ClassNames) -> dict[str, tuple[int, ...]]:
    """The classes that each further name is true for."""
    content = read_json(tree, listing) if listing.endswith(".json") else {}
    groups = content.get("groups", {}) if isinstance(content, dict) else {}
    label_of = {name: label for label, each in enumerate(names) for name in each}

    for group, members in groups.items():
        unknown = [name for name in members if name not in label_of]
        if unknown or not members:
            what = f"{unknown[0]!r}, which is no label" if unknown else "no label"
            raise ValueError(
                f"{listing} of {tree.root}: the group {group!r} names {what}: each group lists "
                "names of labels; correct it"
            )

    if groups:
        checked_names(f"the groups in {listing} of {tree.root}", list(groups))
    return {group: tuple(label_of[name] for name in members) for group, members in groups.items()}


def _same_stems(tree: Tree, root: PurePosixPath) -> tuple[list[str], list[str]]:
    """Images and masks below `root` whose paths in their folders agree but for the suffix."""
    # Of the usual names of each folder, the first that has an image.
    folders = [
        next((name for name in options if image_names(tree, f"{root / name}/")), options[0])
        for options in (IMAGE_FOLDERS, MASK_FOLDERS)
    ]
    images = image_names(tree, f"{root / folders[0]}/")

    if not images:
        raise ValueError(
            f"no image in {tree.root}: files under images/ and masks/ with the same stems are "
            "required"
        )

    masks: dict[str, str] = {}
    for name in image_names(tree, f"{root / folders[1]}/"):
        other = masks.setdefault(_stem(name, root / folders[1]), name)
        if other != name:
            raise ValueError(
                f"{tree.root} has {other} and {name}: each image has one mask; remove the other"
            )

    missing = [name for name in images if _stem(name, root / folders[0]) not in masks]
    if missing:
        raise ValueError(
            f"missing mask for {missing[0]} ({len(missing)} in all) in {tree.root}: "
            f"each {folders[0]}/<stem> needs {folders[1]}/<stem>.png; add it or remove the image"
        )

    return images, [masks[_stem(name, root / folders[0])] for name in images]


def _stem(name: str, folder: PurePosixPath) -> str:
    """The file's path in the folder, without its suffix."""
    return str(PurePosixPath(name).relative_to(folder).with_suffix(""))


def _value_names(tree: Tree, listing: str) -> tuple[dict[int, Any], set[int], bool]:
    """Names by mask value, the mask values that are not counted, and whether a list gave the
    names.
    """
    where = f"{listing} of {tree.root}"
    if not listing.endswith(".json"):
        return _text_names(where, read_lines(tree, listing)), set(), False

    content = read_json(tree, listing)
    if isinstance(content, list):
        _check_starts_with_background(where, content)
        return dict(enumerate(content)), set(), True
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("labels"), list)
        or not content["labels"]
    ):
        raise ValueError(
            f'{where} has no list of labels: [name, ...] or {{"labels": [name, ...], "ignore_index": i}} is required; '
            "correct it"
        )

    unknown = sorted(content.keys() - {"labels", "ignore_index", "first_value", "groups"})
    if unknown:
        raise ValueError(
            f"{where} has a field {unknown[0]!r}: labels, ignore_index, first_value and groups are "
            "known; correct it"
        )

    first = content.get("first_value", 0)
    given = content.get("ignore_index")
    listed = given if isinstance(given, list) else [] if given is None else [given]

    if not all(isinstance(value, int) for value in (first, *listed)):
        raise ValueError(
            f"ignore_index is {given!r} in {where}: must be a mask value, or a list of them; "
            "correct it"
        )

    # Masks that count from 1 leave 0 for pixels without a class.
    ignored = set(listed) | set(range(first))
    return dict(enumerate(content["labels"], start=first)), ignored, False


def _check_starts_with_background(where: str, content: list[object]) -> None:
    first = str(content[0] if content else "").lower()
    if content and not any(word in first for word in BACKGROUND_WORDS):
        raise ValueError(
            f"{where} is a list that starts with {content[0]!r}: the first name of a list is the background's, mask "
            'value 0; write {"labels": [...], "first_value": 0} where 0 is this class, or 1 where 0 is not counted'
        )


def _text_names(where: str, lines: Sequence[str]) -> dict[int, Any]:
    """Lines "value: name", or one name per line from mask value 0."""
    numbered = [re.fullmatch(r"\s*(\d+)\s*[:,\t ]\s*(.+?)\s*", line) for line in lines]
    if all(numbered):
        return {int(match[1]): match[2] for match in numbered if match}
    return {value: readable(line) for value, line in enumerate(lines)}
