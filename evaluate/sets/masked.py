"""Segmentation sets by layout: images, masks, and what each mask value means."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from curation.pairs.tree import Tree
from evaluate.sets.images import find, images_of
from evaluate.sets.kinds import Facts, SegmentationSet
from evaluate.sets.masks import AdeFullMasks, ColorMasks, InstanceMasks, MatlabMasks, index_masks
from evaluate.sets.names import checked_names, read_json, read_lines, table

SPLITS = ("val", "validation", "test", "train", "training")
NO_COLOR = -1  # of pixels of a color that names no class


@dataclass(frozen=True)
class Pairing:
    """Patterns of the paths of images and masks, whose groups `stem` must agree, and `split` if
    they have it.
    """

    images: str
    masks: str
    listing: str = ""
    """Name of a text file that lists the stems to take, one per line; empty: all that have a
    mask.
    """


def paired(tree: Tree, pairing: Pairing) -> tuple[list[str], list[str]]:
    """Image and mask of each stem; of several splits, the first of val, validation, test, ... that
    has masks.
    """
    images, masks = (_by_split(tree, pattern) for pattern in (pairing.images, pairing.masks))
    split = next((name for name in (*SPLITS, "") if name in masks), None)
    if split is None:
        raise ValueError(
            f"no mask in {tree.root}: files that match {pairing.masks} are required; unpack "
            "them there"
        )

    # Images may lie in one folder for all splits, with masks by split.
    these = images.get(split, images.get("", {}))
    those = masks[split]

    listing = next(
        (name for name in tree.files if pairing.listing and name.endswith(pairing.listing)), None
    )
    stems = [line.split()[0] for line in read_lines(tree, listing)] if listing else sorted(those)

    for kind, files in (("image", these), ("mask", those)):
        missing = [stem for stem in stems if stem not in files]
        if missing:
            raise ValueError(
                f"missing {kind} of {missing[0]} ({len(missing)} in all) in {tree.root}: every "
                "listed stem needs an image and a mask; unpack both archives there"
            )

    return [these[stem] for stem in stems], [those[stem] for stem in stems]


def _by_split(tree: Tree, pattern: str) -> dict[str, dict[str, str]]:
    """File names by split and stem."""
    compiled = re.compile(pattern)
    found = dict[str, dict[str, str]]()
    for name in tree.files:
        if match := compiled.search(name):
            groups = match.groupdict()
            found.setdefault(groups.get("split") or "", {})[groups["stem"]] = name
    return found


ADE20K = Pairing(
    r"(^|/)images/(?P<split>\w+)/(?P<stem>ADE_\w+_\d+)\.jpg$",
    r"(^|/)annotations/(?P<split>\w+)/(?P<stem>ADE_\w+_\d+)\.png$",
)


def open_ade20k(tree: Tree, facts: Facts, variant: str = "") -> SegmentationSet:
    """Scene parsing benchmark: 150 classes from mask value 1; 0 is void."""
    images, masks = paired(tree, ADE20K)
    # The benchmark's own list, where it was unpacked, else its copy among our facts.
    rows = _ade_listing(tree) or [(int(value), name) for value, name in table("ade20k_150")]
    names = checked_names(f"the class list of {tree.root}", [name for _, name in rows])
    values = {value: label for label, (value, _) in enumerate(rows)}
    return SegmentationSet(
        facts, images_of(tree, images), index_masks(tree, masks), names, values, frozenset({0, 255})
    )


def _ade_listing(tree: Tree) -> list[tuple[int, str]]:
    """(mask value, first name) of objectInfo150.txt."""
    listing = tree.outermost("objectInfo150.txt")
    cells = [line.split("\t") for line in read_lines(tree, listing)[1:]] if listing else []
    return [(int(row[0]), row[-1].split(",")[0].strip()) for row in cells]


ADE20K_FULL = Pairing(
    r"/(?P<split>training|validation)/.*?(?P<stem>ADE_\w+_\d+)\.jpg$",
    r"/(?P<split>training|validation)/.*?(?P<stem>ADE_\w+_\d+)_seg\.png$",
)
ADE20K_CONVERTED = Pairing(
    r"images_detectron2/(?P<split>\w+)/(?P<stem>ADE_\w+_\d+)\.jpg$",
    r"annotations_detectron2/(?P<split>\w+)/(?P<stem>ADE_\w+_\d+)\.tif$",
)


def open_ade20k_full(tree: Tree, facts: Facts, variant: str = "") -> SegmentationSet:
    """The release of 2021 with the 847 classes that occur in both splits; all other objects are not
    counted.
    """
    images, masks = paired(tree, ADE20K_FULL)
    rows = table("ade20k_847")
    names = checked_names(
        "ADE20K's 847 classes", [words.split(",")[0] for _, words in rows], may_repeat=True
    )
    values = {int(index): label for label, (index, _) in enumerate(rows)}
    files = AdeFullMasks(tree.root, tuple(masks), tuple(tree.files[name] for name in masks))
    return SegmentationSet(facts, images_of(tree, images), files, names, values, ignores_rest=True)


def open_ade20k_converted(tree: Tree, facts: Facts, variant: str = "") -> SegmentationSet:
    """The 847 classes as 16-bit masks of class indices; 65535 is void."""
    images, masks = paired(tree, ADE20K_CONVERTED)
    names = checked_names(
        "ADE20K's 847 classes",
        [row[1].split(",")[0] for row in table("ade20k_847")],
        may_repeat=True,
    )
    values = {label: label for label in range(len(names))}
    return SegmentationSet(
        facts, images_of(tree, images), index_masks(tree, masks), names, values, frozenset({65535})
    )


def cityscapes(kind: str) -> Pairing:
    return Pairing(
        r"(^|/)leftImg8bit/(?P<split>train|val)/[^/]+/(?P<stem>[^/]+)_leftImg8bit\.png$",
        rf"(^|/)gtFine/(?P<split>train|val)/[^/]+/(?P<stem>[^/]+)_gtFine_{kind}\.png$",
    )


def open_cityscapes(tree: Tree, facts: Facts, variant: str = "") -> SegmentationSet:
    """19 classes, from labelTrainIds where they have been made, else from labelIds; everything else
    is void.
    """
    has_train_ids = any(name.endswith("_gtFine_labelTrainIds.png") for name in tree.files)
    images, masks = paired(tree, cityscapes("labelTrainIds" if has_train_ids else "labelIds"))
    rows = table("cityscapes_19")
    names = checked_names("Cityscapes", [row[2] for row in rows])
    values = {int(row[1 if has_train_ids else 0]): label for label, row in enumerate(rows)}
    # labelIds go to 33, of which 19 are classes; the others (ego vehicle, trailer, ...) are void.
    ignored = frozenset({255} if has_train_ids else {*range(34), 255}).difference(values)
    facts = _with_notes(facts, {"masks": "labelTrainIds" if has_train_ids else "labelIds"})
    return SegmentationSet(
        facts, images_of(tree, images), index_masks(tree, masks), names, values, ignored
    )


VOC = Pairing(
    r"(^|/)JPEGImages/(?P<stem>[^/]+)\.jpg$",
    r"(^|/)SegmentationClass/(?P<stem>[^/]+)\.png$",
    "ImageSets/Segmentation/val.txt",
)


def open_voc(tree: Tree, facts: Facts, variant: str = "21") -> SegmentationSet:
    """20 classes and the background; variant "20" does not count background pixels."""
    images, masks = paired(tree, VOC)
    rows = [(int(value), name) for value, name in table("voc_21")]
    return _with_background(facts, tree, images, masks, rows, frozenset({255}), variant != "20")


CONTEXT = Pairing(
    r"(^|/)JPEGImages/(?P<stem>[^/]+)\.jpg$",
    r"(^|/)SegmentationClassContext/(?P<stem>[^/]+)\.png$",
    "ImageSets/SegmentationContext/val.txt",
)
CONTEXT_MATLAB = Pairing(
    r"(^|/)JPEGImages/(?P<stem>[^/]+)\.jpg$", r"(^|/)(?P<stem>\d{4}_\d{6})\.mat$", "val.txt"
)


def open_context(tree: Tree, facts: Facts, variant: str = "60") -> SegmentationSet:
    """59 classes and the background (variant "59": not counted), from the usual masks of 60
    values.
    """
    images, masks = paired(tree, CONTEXT)
    rows = [(int(value), name) for value, _, name in table("context_60")]
    return _with_background(facts, tree, images, masks, rows, frozenset({255}), variant != "59")


def open_context_matlab(tree: Tree, facts: Facts, variant: str = "60") -> SegmentationSet:
    """The same from the release's .mat files, whose 459 labels hold the 59 classes."""
    images, masks = paired(tree, CONTEXT_MATLAB)
    rows = [(int(value), name) for _, value, name in table("context_60")]
    has_background = variant != "59"
    labels = [name for value, name in rows if value or has_background]
    values = {value: labels.index(name) for value, name in rows if name in labels}
    if has_background:  # the other 400 labels
        values |= {value: 0 for value in range(460) if value not in values}

    files = MatlabMasks(tree.root, tuple(masks), tuple(tree.files[name] for name in masks))
    names = checked_names("PASCAL Context", labels)
    background = 0 if has_background else None
    return SegmentationSet(
        facts,
        images_of(tree, images),
        files,
        names,
        values,
        ignores_rest=not has_background,
        background=background,
    )


def _with_background(
    facts: Facts,
    tree: Tree,
    images: Sequence[str],
    masks: Sequence[str],
    rows: Sequence[tuple[int, str]],
    ignored: frozenset[int],
    counts_background: bool,
) -> SegmentationSet:
    """A set whose mask value 0 is the background, which is a class or is not counted."""
    counted = [(value, name) for value, name in rows if value or counts_background]
    names = checked_names(str(tree.root), [name for _, name in counted])
    values = {value: label for label, (value, _) in enumerate(counted)}
    background = 0 if counts_background else None
    void = ignored if counts_background else ignored | {0}
    facts = _with_notes(facts, {} if counts_background else {"background": "not counted"})

    return SegmentationSet(
        facts,
        images_of(tree, images),
        index_masks(tree, masks),
        names,
        values,
        void,
        background=background,
    )


COCO_STUFF = Pairing(
    r"(^|/)(?:images/)?(?P<split>train|val)2017/(?P<stem>\d{12})\.jpg$",
    r"(^|/)(?:annotations|stuffthingmaps|masks|labels)/(?:\w+/)?(?P<split>train|val)2017/(?P<stem>\d{12})(?:_labelTrainIds)?\.png$",
)


def open_coco_stuff(tree: Tree, facts: Facts, variant: str = "171") -> SegmentationSet:
    """171 classes whose mask values have gaps; variant "27": the coarse classes. Value 255 is
    void.
    """
    images, masks = paired(tree, COCO_STUFF)
    rows = [(int(value), name, coarse) for value, name, coarse in table("coco_stuff_171")]
    # The masks of MMSegmentation's converter count the classes without gaps.
    if masks[0].endswith("_labelTrainIds.png"):
        rows = [(label, name, coarse) for label, (_, name, coarse) in enumerate(rows)]

    labels = [coarse if variant == "27" else name for _, name, coarse in rows]
    # Several classes share a coarse name: each name once, in the order of its first class.
    distinct = list(dict.fromkeys(labels))
    values = {
        value: distinct.index(label) for (value, _, _), label in zip(rows, labels, strict=True)
    }
    names = checked_names("COCO-Stuff", distinct)

    return SegmentationSet(
        facts, images_of(tree, images), index_masks(tree, masks), names, values, frozenset({255})
    )


def open_coco_object(tree: Tree, facts: Facts, variant: str = "") -> SegmentationSet:
    """The objects of COCO's instances file; what no object covers is background."""
    listing = next(name for name in tree.files if re.search(r"instances_val\d{4}\.json$", name))
    content = read_json(tree, listing)
    categories = content.get("categories") or []

    if not categories or not any(
        row.get("segmentation") for row in content.get("annotations") or []
    ):
        raise ValueError(
            f"{listing} of {tree.root} has no categories or no segmentations: COCO's instances "
            "file holds both; take that one"
        )

    # COCO's category ids have gaps; labels count from 1, because 0 is the background.
    labels = {row["id"]: label for label, row in enumerate(categories, start=1)}
    objects: dict[int, list[tuple[int, Any]]] = {image["id"]: [] for image in content["images"]}
    for row in content["annotations"]:
        objects[row["image_id"]].append((labels[row["category_id"]], row["segmentation"]))

    near = str(PurePosixPath(listing).parent)
    names = [image["file_name"] for image in content["images"]]
    parts = [find(tree, name, near) for name in names]
    missing = [name for name, part in zip(names, parts, strict=True) if part is None]

    if missing:
        raise ValueError(
            f"{missing[0]} ({len(missing)} in all) of {listing} is not in {tree.root}: unpack "
            "all images"
        )

    # From a place in the tree back to its name there, under which `images_of` looks it up.
    lookup = {part: name for name, part in tree.files.items()}
    sizes = tuple((int(image["height"]), int(image["width"])) for image in content["images"])
    masks = InstanceMasks(
        tree.root, tuple(names), sizes, tuple(tuple(each) for each in objects.values())
    )
    classes = checked_names(listing, ["background", *(row["name"] for row in categories)])
    values = {label: label for label in range(len(classes))}
    images = images_of(tree, [lookup[part] for part in parts if part])
    facts = _with_notes(
        facts, {"masks": "objects in file order, later ones on top, crowds included"}
    )

    return SegmentationSet(facts, images, masks, classes, values, background=0)


CAMVID = Pairing(
    r"(^|/)(?P<split>train|val|test)/(?P<stem>[^/]+)\.png$",
    r"(^|/)(?P<split>train|val|test)annot/(?P<stem>[^/]+)\.png$",
)
CAMVID_COLORS = Pairing(
    r"(^|/)(?:701_StillsRaw_full|(?P<split>train|val|test))/(?P<stem>[^/]+?)(?<!_L)\.png$",
    r"(^|/)(?:LabeledApproved_full|(?P<split>train|val|test)_labels)/(?P<stem>[^/]+)_L\.png$",
)
CAMVID_11 = (
    "sky",
    "building",
    "pole",
    "road",
    "sidewalk",
    "tree",
    "traffic sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)


def open_camvid(tree: Tree, facts: Facts, variant: str = "") -> SegmentationSet:
    """SegNet's 11 classes as masks of indices; 11 is void. The published split is test."""
    images, masks = paired(_only(tree, r"(^|/)test(annot)?/") or tree, CAMVID)
    names = checked_names("CamVid", CAMVID_11)
    values = {label: label for label in range(len(names))}
    return SegmentationSet(
        facts,
        images_of(tree, images),
        index_masks(tree, masks),
        names,
        values,
        frozenset({11, 255}),
    )


def _only(tree: Tree, pattern: str) -> Tree | None:
    """The files that match; None without one."""
    files = {name: part for name, part in tree.files.items() if re.search(pattern, name)}
    return Tree(tree.root, tree.is_file, files) if files else None


def open_camvid_colors(tree: Tree, facts: Facts, variant: str = "11") -> SegmentationSet:
    """The release: colors by label_colors.txt or class_dict.csv, grouped to 11 classes (variant
    "32": all but Void).
    """
    images, masks = paired(tree, CAMVID_COLORS)
    colors = _color_names(tree)
    groups = {
        raw: (words if variant == "32" else group) for raw, words, group in table("camvid_32")
    }
    labels = list(dict.fromkeys(groups.values())) if variant == "32" else list(CAMVID_11)
    unknown = sorted(set(colors.values()) - groups.keys() - {"Void"})

    if unknown:
        raise ValueError(
            f"the colors of {tree.root} name {unknown[0]!r}, which is no class of CamVid; correct "
            "the list"
        )

    names = checked_names("CamVid", labels)
    numbers = {
        color: NO_COLOR if raw == "Void" else labels.index(groups[raw])
        for color, raw in colors.items()
    }
    files = ColorMasks(tree.root, tuple(masks), tuple(tree.files[name] for name in masks), numbers)
    values = {label: label for label in range(len(names))}

    return SegmentationSet(
        facts, images_of(tree, images), files, names, values, frozenset({NO_COLOR})
    )


def _color_names(tree: Tree) -> dict[tuple[int, int, int], str]:
    """The class of each color, from `64 128 64 Animal` or `Animal,64,128,64` lines."""
    listing = tree.outermost("label_colors.txt", "class_dict.csv")
    if not listing:
        raise ValueError(
            f"{tree.root} has no label_colors.txt or class_dict.csv: one names the colors of "
            "the masks"
        )

    colors = {}
    for line in read_lines(tree, listing):
        words = re.findall(r"[A-Za-z_]+", line)
        numbers = [int(number) for number in re.findall(r"\d+", line)]
        if words and len(numbers) == 3:
            colors[(numbers[0], numbers[1], numbers[2])] = words[0]

    return colors


def _with_notes(facts: Facts, notes: Mapping[str, object]) -> Facts:
    return Facts(facts.kind, facts.published, facts.templates, {**facts.notes, **notes})
