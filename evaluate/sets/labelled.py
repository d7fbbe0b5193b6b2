"""Classification sets by layout: images and the class of each, from the folders that people have on
disk.
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from curation.pairs.tree import Tree
from evaluate.sets.images import Images, find, image_names, images_of
from evaluate.sets.kinds import ClassificationSet, ClassNames, Facts
from evaluate.sets.names import (
    WORDNET_ID,
    checked_names,
    imagenet_names,
    read_json,
    read_lines,
    readable,
)

DIGIT = re.compile(r"\d")
OBJECTNET_BORDER_PX = 2
EVALUATED_SPLITS = ("val", "validation", "test")
CLASSES = "classes.json"
REMEDY = 'add a classes.json: {"folder": "name"}, or {"folder": ["name", "other name"]}'


def open_folders(tree: Tree, facts: Facts, variant: str = "") -> ClassificationSet:
    """One folder per class: names from classes.json, else the folders' own.

    Where folders are WordNet numbers with one image each, the name is the file's if that is in
    words.
    """
    # An image beside the class folders, such as a preview, has no class.
    images = [name for name in image_names(tree) if "/" in name]
    if not images:
        raise ValueError(
            f"no <class>/<image> file in {tree.root}: one folder per class is required"
        )

    _check_one_parent(tree.root, images)

    folders = [PurePosixPath(name).parent.name for name in images]
    classes = sorted(set(folders))
    names = _folder_names(tree, classes, images, folders)

    return _labelled(facts, images_of(tree, images), folders, classes, names)


def _labelled(
    facts: Facts, images: Images, labels: Sequence[str], classes: Sequence[str], names: ClassNames
) -> ClassificationSet:
    """The set whose image i has the class named labels[i]."""
    index = {label: number for number, label in enumerate(classes)}
    return ClassificationSet(
        facts, images, np.array([index[label] for label in labels], np.int64), names
    )


def _check_one_parent(path: Path, images: Sequence[str]) -> None:
    """ValueError when two folders have the name of one class, as with train/dog and val/dog."""
    parents: dict[str, PurePosixPath] = {}
    for folder in dict.fromkeys(PurePosixPath(name).parent for name in images):
        first = parents.setdefault(folder.name, folder.parent)
        if first != folder.parent:
            raise ValueError(
                f"class {folder.name} is in {path} twice, as {first / folder.name} and as "
                f"{folder}: splits must not be mixed, and a class is one folder; give "
                f"{path / max(first, folder.parent)}, or a tar of it alone"
            )


def _folder_names(
    tree: Tree, classes: list[str], images: Sequence[str], folders: list[str]
) -> ClassNames:
    if listing := tree.outermost(CLASSES):
        return _listed_names(tree, classes, read_json(tree, listing))

    unnamed = [folder for folder in classes if WORDNET_ID.fullmatch(folder)]
    if not unnamed:
        return checked_names(
            f"the class folders of {tree.root}", [readable(folder) for folder in classes]
        )

    # What the set's own file says comes second in the union, and so wins.
    known = imagenet_names() | _wordnet_listing(tree)
    unnamed = [folder for folder in unnamed if folder not in known]
    stems = {folder: PurePosixPath(name).stem for folder, name in zip(folders, images, strict=True)}

    # The name of a file can stand for its class only if the class has one image, as in a folder of
    # samples: n01440764/tench.jpg. A number, as in n01440764_36.jpg, is no name.
    if unnamed and (
        len(images) > len(classes) or any(DIGIT.search(stems[folder]) for folder in unnamed)
    ):
        raise ValueError(
            f"class folder {unnamed[0]} ({len(unnamed)} in all) in {tree.root} is a WordNet "
            f"number that ImageNet-1k does not have: prompts need words; {REMEDY}, or the "
            "LOC_synset_mapping.txt or words.txt of the set"
        )

    names = [
        known.get(folder) or readable(stems[folder] if folder in unnamed else folder)
        for folder in classes
    ]

    return checked_names(f"the class folders of {tree.root}", names, may_repeat=True)


def _wordnet_listing(tree: Tree) -> dict[str, str]:
    """The first name of each WordNet number in a file of the set that lists them, as ImageNet's
    releases have.
    """
    listing = tree.outermost(
        "LOC_synset_mapping.txt", "words.txt", "synset_words.txt", "README.txt"
    )
    names = {}
    for line in read_lines(tree, listing) if listing else ():
        wordnet_id, _, words = line.replace("\t", " ").partition(" ")
        if WORDNET_ID.fullmatch(wordnet_id) and words.strip():
            names[wordnet_id] = words.split(",")[0].strip()
    return names


def _listed_names(tree: Tree, classes: list[str], listing: Any) -> ClassNames:
    """The names of classes.json: an object by folder, or a list in the order of the folders."""
    where = f"{CLASSES} of {tree.root}"
    if isinstance(listing, list) and len(listing) == len(classes):
        return checked_names(where, _in_folder_order(where, classes, listing))
    if not isinstance(listing, dict):
        raise ValueError(
            f"{where} does not name the {len(classes)} class folders: "
            "an object {folder: name} or a list of as many names is required"
        )

    unknown = [folder for folder in classes if folder not in listing]
    if unknown:
        raise ValueError(
            f"unknown class {unknown[0]} ({len(unknown)} in all) in {tree.root}: "
            f"each class folder needs its name in {CLASSES}; add it there or remove the folder"
        )

    return checked_names(where, [listing[folder] for folder in classes])


def _in_folder_order(where: str, classes: list[str], listing: list[object]) -> list[object]:
    """The names of a list for the sorted folders. Folders 0, 1, ..., 10 are numbers: name i is
    folder i's.
    """
    if not any(folder.isdigit() for folder in classes):
        return listing
    # As text, 10 sorts before 2: the folders' numbers decide, if they leave no gap.
    numbers = [int(folder) if folder.isdigit() else -1 for folder in classes]
    first = min(numbers)
    if sorted(numbers) != list(range(first, first + len(classes))) or first not in (0, 1):
        raise ValueError(
            f"{where} is a list, but the folders {classes[0]}, {classes[-1]} do not count from 0 "
            f"or 1 without a gap: it is not clear which name is whose; {REMEDY}"
        )
    return [listing[number - first] for number in numbers]


def open_imagenet(tree: Tree, facts: Facts, num_classes: int = 1000) -> ClassificationSet:
    """Folders named by WordNet numbers of ImageNet-1k; of several splits, the validation images."""
    images = _of_split(tree, [name for name in image_names(tree) if "/" in name])
    if not all(WORDNET_ID.fullmatch(PurePosixPath(name).parent.name) for name in images):
        # A mix of numbers and names is a set of one's own.
        return open_folders(tree, Facts("folders"))

    _check_one_parent(tree.root, images)
    folders = [PurePosixPath(name).parent.name for name in images]
    return _imagenet(tree, facts, images_of(tree, images), folders, num_classes)


def _imagenet(
    tree: Tree, facts: Facts, images: Images, wordnet_ids: Sequence[str], num_classes: int = 1000
) -> ClassificationSet:
    """Images with WordNet numbers. The classes are those that have an image, as the published
    subsets have it.
    """
    names = imagenet_names()
    unknown = sorted(set(wordnet_ids) - names.keys())
    if unknown:  # another part of ImageNet: its own list has to name the classes
        return open_folders(tree, Facts("folders"))

    classes = sorted(set(wordnet_ids))
    if len(classes) < num_classes:
        # Under another name, so that no table shows the published figures beside it.
        notes = {**facts.notes, "classes": f"{len(classes)} of the {num_classes:,} of {facts.kind}"}
        kind = f"{facts.kind}, {len(classes)} classes"
        facts = Facts(kind, facts.published, facts.templates, notes)

    checked = checked_names(str(tree.root), [names[each] for each in classes], may_repeat=True)
    return _labelled(facts, images, wordnet_ids, classes, checked)


def _of_split(tree: Tree, names: Sequence[str]) -> list[str]:
    """The images below a folder named after the first of val, validation, test; all where no folder
    is.
    """
    for split in EVALUATED_SPLITS:
        chosen = [name for name in names if split in PurePosixPath(name).parts[:-2]]
        if chosen:
            return chosen
    return list(names)


def open_imagenet_v2(tree: Tree, facts: Facts, variant: str = "") -> ClassificationSet:
    """Folders 0 to 999 are class indices, in the order of ImageNet-1k's sorted WordNet numbers."""
    images = [name for name in image_names(tree) if PurePosixPath(name).parent.name.isdigit()]
    _check_one_parent(tree.root, images)
    numbered = list(imagenet_names())
    numbers = [int(PurePosixPath(name).parent.name) for name in images]
    if max(numbers) >= len(numbered):
        raise ValueError(
            f"{tree.root} has a class folder {max(numbers)}: ImageNet-V2 has 0 to 999; remove it"
        )
    return _imagenet(tree, facts, images_of(tree, images), [numbered[number] for number in numbers])


def open_imagenet_flat(tree: Tree, facts: Facts, variant: str = "") -> ClassificationSet:
    """The archive ILSVRC2012_img_val.tar: images without folders, and the classes in one of four
    files beside them.
    """
    images = [
        name for name in image_names(tree) if PurePosixPath(name).name.startswith("ILSVRC2012_val_")
    ]
    truth = _imagenet_truth(tree)
    missing = [name for name in images if PurePosixPath(name).stem not in truth]

    if missing:
        raise ValueError(
            f"{tree.root} holds {len(images):,} images of ImageNet's validation archive without "
            f"their classes ({missing[0]} is one): put LOC_val_solution.csv, val.txt, "
            "imagenet_2012_validation_synset_labels.txt, or the development kit "
            "(ILSVRC2012_validation_ground_truth.txt and meta.mat) beside them"
        )

    return _imagenet(
        tree, facts, images_of(tree, images), [truth[PurePosixPath(name).stem] for name in images]
    )


def _imagenet_truth(tree: Tree) -> dict[str, str]:
    """The WordNet number of each image of the validation archive, from whichever file of the set
    says it.
    """
    if listing := tree.outermost("LOC_val_solution.csv"):  # ImageId,"n03995372 85 1 499 272"
        rows = csv.reader(io.StringIO("\n".join(read_lines(tree, listing))))
        return {
            row[0]: row[1].split()[0] for row in rows if len(row) > 1 and WORDNET_ID.match(row[1])
        }

    numbered = list(imagenet_names())
    # In Caffe's list, a class is its place among the sorted WordNet numbers.
    if listing := tree.outermost("val.txt"):  # ILSVRC2012_val_00000001.JPEG 65
        pairs = [line.split() for line in read_lines(tree, listing)]
        return {PurePosixPath(name).stem: numbered[int(number)] for name, number in pairs}

    if listing := tree.outermost("imagenet_2012_validation_synset_labels.txt"):
        return _by_position(read_lines(tree, listing))

    listing = tree.outermost("ILSVRC2012_validation_ground_truth.txt")
    meta = tree.outermost("meta.mat")
    if not listing or not meta:
        return {}

    import scipy.io  # takes long to import, and no other layout needs it

    # The development kit numbers the classes from 1 in an order of its own.
    synsets = scipy.io.loadmat(io.BytesIO(tree.files[meta].read()), squeeze_me=True)["synsets"]
    by_id = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}

    return _by_position([by_id[int(line)] for line in read_lines(tree, listing)])


def _by_position(wordnet_ids: Iterable[str]) -> dict[str, str]:
    return {
        f"ILSVRC2012_val_{number:08d}": each.strip()
        for number, each in enumerate(wordnet_ids, start=1)
    }


def open_objectnet(tree: Tree, facts: Facts, variant: str = "") -> ClassificationSet:
    """The 113 classes that ImageNet has too (variant "313": all), without the red border of two
    pixels.
    """
    listing, mapping = (
        tree.outermost(f"{name}.json")
        for name in ("folder_to_objectnet_label", "objectnet_to_imagenet_1k")
    )

    if not listing or not mapping:
        missing = "objectnet_to_imagenet_1k" if listing else "folder_to_objectnet_label"
        raise ValueError(
            f"{tree.root} has no mappings/{missing}.json: ObjectNet's own mappings name its "
            "classes; give the folder that holds mappings/ and images/"
        )

    labels: dict[str, str] = read_json(tree, listing)
    mapped = set(read_json(tree, mapping))
    # The mapping to ImageNet is by label ("Alarm clock"), the folders have names of their own.
    wanted = {folder for folder, label in labels.items() if variant == "313" or label in mapped}

    images = [name for name in image_names(tree) if PurePosixPath(name).parent.name in wanted]

    if not images:
        raise ValueError(
            f"no image of a mapped class in {tree.root}: images/<class>/<image>.png is required"
        )

    folders = [PurePosixPath(name).parent.name for name in images]
    classes = sorted(set(folders))
    notes = {
        "classes": "all of ObjectNet" if variant == "313" else "those that ImageNet has too",
        "border": f"{OBJECTNET_BORDER_PX} px cut from each side",
    }
    names = checked_names(str(tree.root), [labels[folder].lower() for folder in classes])
    facts = Facts(facts.kind, facts.published, facts.templates, notes)

    return _labelled(facts, images_of(tree, images, OBJECTNET_BORDER_PX), folders, classes, names)


def open_inaturalist(tree: Tree, facts: Facts, variant: str = "") -> ClassificationSet:
    """The validation images of the COCO-style listing, named by species."""
    listing = next(name for name in ("val2018.json", "val.json") if tree.outermost(name))
    content = read_json(tree, str(tree.outermost(listing)))
    files = {image["id"]: image["file_name"] for image in content["images"]}
    category_of = {row["image_id"]: row["category_id"] for row in content["annotations"]}
    names = {row["id"]: row["name"] for row in content["categories"]}

    # File names in the listing count from its own folder, wherever the set was unpacked.
    near = str(PurePosixPath(str(tree.outermost(listing))).parent)
    parts = {key: find(tree, file, near) for key, file in files.items() if key in category_of}
    present = [key for key, part in parts.items() if part is not None]

    if not present:
        raise ValueError(
            f"no image that {listing} lists is in {tree.root}: unpack the images beside it"
        )
    if len(present) < len(parts):
        lost = next(files[key] for key, part in parts.items() if part is None)
        raise ValueError(
            f"{lost} ({len(parts) - len(present)} in all) of {listing} is not in {tree.root}: "
            "every listed image counts; unpack all images"
        )

    categories = [category_of[key] for key in present]
    classes = sorted(set(categories))
    images = Images(
        tree.root,
        tuple(files[key] for key in present),
        tuple(part for part in parts.values() if part),
    )

    if all(str(names[each]).isdigit() for each in classes):
        raise ValueError(
            f"{listing} of {tree.root} names its species by numbers, as the competition's file "
            f"did: take the one with names (categories.json of the data's page), or {REMEDY}"
        )

    checked = checked_names(f"{listing} of {tree.root}", [names[each] for each in classes])
    return _labelled(
        facts, images, [str(each) for each in categories], [str(each) for each in classes], checked
    )


def open_inaturalist_folders(tree: Tree, facts: Facts, variant: str = "") -> ClassificationSet:
    """Folders of 2021: number, kingdom to family, then genus and species, which are the name."""
    # 00000_Animalia_Annelida_Clitellata_Haplotaxida_Lumbricidae_Lumbricus_terrestris
    pattern = re.compile(r"\d{5}(_[^_]+){6}_.+")
    images = _of_split(
        tree,
        [name for name in image_names(tree) if pattern.fullmatch(PurePosixPath(name).parent.name)],
    )
    _check_one_parent(tree.root, images)
    folders = [PurePosixPath(name).parent.name for name in images]
    classes = sorted(set(folders))
    names = checked_names(str(tree.root), [" ".join(folder.split("_")[6:]) for folder in classes])
    return _labelled(facts, images_of(tree, images), folders, classes, names)


def open_places(tree: Tree, facts: Facts, variant: str = "") -> ClassificationSet:
    """Places365's validation images with places365_val.txt; "/a/apartment_building/outdoor" is one
    class.
    """
    listing = tree.outermost("places365_val.txt")
    categories = tree.outermost("categories_places365.txt")
    if not listing or not categories:
        raise ValueError(
            f"{tree.root} lacks places365_val.txt or categories_places365.txt: both say which "
            "image shows what; put them beside the images"
        )

    paths = [line.split()[0] for line in read_lines(tree, categories)]
    # "/a/apartment_building/outdoor": after the first letter comes the name.
    names = [readable(path.split("/", 2)[-1].replace("/", " ")) for path in paths]

    files = []
    numbers = []

    for line in read_lines(tree, listing):
        name, number = line.split()
        files.append(name)
        numbers.append(int(number))

    places = {name: tree.by_basename.get(PurePosixPath(name).name, []) for name in files}
    lost = [name for name, places_of in places.items() if not places_of]
    if lost:
        raise ValueError(
            f"{lost[0]} ({len(lost)} in all) of places365_val.txt is not in {tree.root}: unpack "
            "val_256 or val_large"
        )

    images = images_of(tree, [places[name][0] for name in files])
    present = sorted(set(numbers))
    checked = checked_names(str(tree.root), [names[number] for number in present])
    return _labelled(
        facts,
        images,
        [str(number) for number in numbers],
        [str(number) for number in present],
        checked,
    )
