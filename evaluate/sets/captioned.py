"""Retrieval sets by layout: Karpathy's JSON, COCO's captions, Flickr30k's token file, tables,
WebDataset tars.

Every image counts here, where a training pool would do without a bad record: what is not as it
should be is an error. Only the captions file is parsed; COCO's other files are longer than memory
should have to hold.
"""

import json
import posixpath
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from curation.pairs.annotations import annotated_images, annotation_kind
from curation.pairs.beside import TEXT_SUFFIXES, caption_files
from curation.pairs.config import SourceConfig
from curation.pairs.images import IMAGE_SUFFIXES
from curation.pairs.records import read_list
from curation.pairs.text import clean_captions, decode_text
from curation.pairs.tree import Tree
from evaluate.sets.images import Images, images_of
from evaluate.sets.kinds import Facts, RetrievalSet
from evaluate.sets.names import read_lines
from evaluate.sets.packed import IMAGE_KINDS, tar_samples, tars_of_split

SPLITS = ("test", "val")
TABLES = (".csv", ".tsv", ".jsonl", ".json")
LONGEST_UNNAMED_JSON = 32_000_000
"""Bytes up to which a file is opened to see whether it lists captions, when its name does not say
so: instances_train2017.json of COCO has 450 MB.
"""
PUBLISHED_CAPTIONS = 5
"""Captions per image in published figures: COCO has images with six and seven."""


class Entry(NamedTuple):
    """One image with its captions, as a captions file has it."""

    split: str
    file_name: str
    folder: str
    captions: tuple[object, ...]


def open_captions(tree: Tree, facts: Facts, split: str = "auto") -> RetrievalSet:
    """`split` "auto": test if there is one, else val, else every image; "" is every image."""
    listing, entries = _listed(tree, split)
    present = {entry.split for entry in entries}
    if split == "auto":
        split = next((name for name in SPLITS if name in present), "")

    chosen = [entry for entry in entries if not split or entry.split == split]
    if not chosen:
        raise ValueError(
            f"no image of split {split!r} in {listing} of {tree.root}: splits there are "
            f"{sorted(present)}; set evaluate.split to one"
        )

    return _captioned(tree, facts, listing, split, chosen)


def _captioned(
    tree: Tree, facts: Facts, listing: str, split: str, entries: Sequence[Entry]
) -> RetrievalSet:
    """The set of some entries. An image that is listed twice is one image with the captions of
    both.
    """
    captions: dict[str, list[str]] = {}
    for entry in entries:
        texts = clean_captions(entry.captions)
        if not texts or len(texts) < len(entry.captions):
            raise ValueError(
                f"{entry.file_name} has no caption or an empty one in {listing} of {tree.root}: "
                "each image needs at least one, with text; add it, or delist the image"
            )
        captions.setdefault(_locate(tree, listing, entry), []).extend(texts)

    notes = dict(facts.notes) | {"listing": PurePosixPath(listing).name}
    if facts.published:
        captions = {name: texts[:PUBLISHED_CAPTIONS] for name, texts in captions.items()}
        notes["captions"] = f"the first {PUBLISHED_CAPTIONS} of each image"
    if len(captions) < len(entries):
        notes["listed twice"] = f"{len(entries) - len(captions)} images, merged"

    facts = Facts(facts.kind, facts.published, facts.templates, notes)
    return _retrieval_set(
        facts, images_of(tree, list(captions)), split or "all", list(captions.values())
    )


def _retrieval_set(
    facts: Facts, images: Images, split: str, captions: Sequence[Sequence[str]]
) -> RetrievalSet:
    """Captions without repetitions within an image, flat, with the image that each describes."""
    # A caption that an image has twice would find its copy as a sibling: a hit for nothing.
    distinct = [list(dict.fromkeys(texts)) for texts in captions]
    owners = np.repeat(np.arange(len(distinct)), [len(texts) for texts in distinct])
    return RetrievalSet(
        facts, images, split, tuple(text for texts in distinct for text in texts), owners
    )


def _locate(tree: Tree, listing: str, entry: Entry) -> str:
    """The image of an entry: in its own folder, under images/, beside the list, or the only file
    whose path ends so.
    """
    near = posixpath.dirname(listing)
    folders = (posixpath.join(near, "images"), posixpath.join(near, entry.folder), near)
    for candidate in (posixpath.join(entry.folder, entry.file_name), entry.file_name):
        names = tree.find(candidate, *folders)
        if len(names) == 1:
            return names[0]

    problem = f"several files of {tree.root} can be" if names else f"{tree.root} has no image"
    raise ValueError(
        f"{problem} {entry.file_name}, which {listing} lists: unpack the images beside it, list "
        "them with their folders, or delist it"
    )


def _listed(tree: Tree, split: str) -> tuple[str, list[Entry]]:
    """The captions file and its entries: the first of Karpathy's, COCO's of the split, a token file
    or a table.
    """
    for name in _json_names(tree, split):
        content = _parsed(tree, name)
        kind = annotation_kind(content)
        if kind in ("karpathy", "coco"):
            return name, _annotated(tree, name, content, kind)

    for name in tree.with_suffix(".token"):
        return name, _token(tree, name)

    for name in sorted(_tables(tree), key=lambda name: ("caption" not in name.lower(), name)):
        if entries := _table(tree, name):
            return name, entries

    if siblings := _siblings(tree):
        return "the text file beside each image", siblings

    raise ValueError(
        f'no caption file in {tree.root}: a JSON with "images" that have "filename" and "sentences" (Karpathy), or '
        '"file_name" and "annotations" with "image_id" and "caption" (COCO), Flickr30k\'s .token, or a table of image '
        "names and captions (.csv, .tsv, .jsonl) is required; add it"
    )


def _json_names(tree: Tree, split: str) -> list[str]:
    """JSON files in the order to look at: Karpathy's names, captions of the wanted split, others if
    they are short.
    """
    wanted = ("test", "val", "train") if split in ("auto", "") else (split,)

    def rank(name: str) -> tuple[int, int, str]:
        base = PurePosixPath(name).name.lower()
        kind = 0 if base.startswith("dataset") else 1 if "caption" in base else 2
        place = next((number for number, each in enumerate(wanted) if each in base), len(wanted))
        return kind, place, name

    names = tree.with_suffix(".json")
    return sorted(
        (
            name
            for name in names
            if rank(name)[0] < 2 or tree.files[name].size < LONGEST_UNNAMED_JSON
        ),
        key=rank,
    )


def _parsed(tree: Tree, name: str) -> Any:
    try:
        return json.loads(tree.files[name].read())
    except ValueError as error:
        raise ValueError(
            f"{name} of {tree.root} is not JSON ({error}): correct the file"
        ) from error


def _annotated(tree: Tree, listing: str, content: dict[str, Any], kind: str) -> list[Entry]:
    """Records of Karpathy's and COCO's files; the split of COCO's is the one that the file is named
    after.
    """
    images = annotated_images(content)
    bad = next((image for image in images if image.problem), None)
    if bad is not None:
        raise ValueError(
            f"record {bad.place} of {listing} in {tree.root} names no image: {bad.problem}; "
            "correct it, or remove it"
        )

    name = PurePosixPath(listing).name.lower()
    of_file = (
        next((split for split in ("test", "val", "train") if split in name), "")
        if kind == "coco"
        else ""
    )

    return [
        Entry(image.split or of_file, image.file_name, image.folder, image.captions)
        for image in images
    ]


def _tables(tree: Tree) -> list[str]:
    """Files that may list images with captions."""
    # Of text files, only those that say so: others are lists of names, or captions beside images.
    named = [
        name for name in tree.with_suffix(".txt") if "caption" in PurePosixPath(name).name.lower()
    ]
    return [
        name
        for name in (*tree.with_suffix(*TABLES), *named)
        if tree.files[name].size < LONGEST_UNNAMED_JSON
    ]


def _siblings(tree: Tree) -> list[Entry]:
    """A text file beside each image, one caption per line; nothing unless every image has one."""
    images = tree.with_suffix(*IMAGE_SUFFIXES)
    texts = caption_files(images, tree.with_suffix(*TEXT_SUFFIXES))
    if not images or len(texts) < len(images):
        return []
    return [
        Entry("", name, "", tuple(decode_text(tree.files[texts[name][0]].read()).splitlines()))
        for name in images
    ]


def _table(tree: Tree, name: str) -> list[Entry]:
    """The pool's reader of tables; nothing where the file is none."""
    try:
        listed = read_list(name, tree.files[name].read(), SourceConfig(split=""))
    except ValueError:
        return []
    captions: dict[str, list[object]] = {}
    for entry in listed.entries:
        # A record without an image keeps a name, so that the error about it can say which it is.
        captions.setdefault(entry.image or f"record {entry.place}", []).extend(
            clean_captions(entry.captions)
        )
    return _with_splits(tree, captions.items())


def _token(tree: Tree, name: str) -> list[Entry]:
    """Flickr's lines `1000092795.jpg#0<tab>caption`, with the split of a list of names beside
    it.
    """
    captions: dict[str, list[object]] = {}
    for line in read_lines(tree, name):
        key, tab, caption = line.partition("\t")
        if not tab:
            raise ValueError(
                f"{name} of {tree.root} has the line {line!r:.80}: name#number, a tab, a caption; "
                "correct it"
            )
        captions.setdefault(key.partition("#")[0], []).append(caption)
    return _with_splits(tree, captions.items())


def _with_splits(tree: Tree, captions: Iterable[tuple[str, Sequence[object]]]) -> list[Entry]:
    """Entries with the split of the text files that list images by split, such as
    Flickr_8k.testImages.txt.
    """
    split_of: dict[str, str] = {}
    for listing in tree.with_suffix(".txt"):
        base = PurePosixPath(listing).name.lower()
        split = next((split for split in ("test", "val", "dev", "train") if split in base), "")
        if split:
            names = (line.strip() for line in read_lines(tree, listing))
            # Such lists may leave out the suffix; Flickr calls its validation split dev.
            split_of |= {
                name if "." in name else f"{name}.jpg": "val" if split == "dev" else split
                for name in names
            }
    return [Entry(split_of.get(name, ""), name, "", tuple(texts)) for name, texts in captions]


def open_webdataset_captions(tree: Tree, facts: Facts, split: str = "auto") -> RetrievalSet:
    """CLIP_benchmark's layout: tars of .jpg and .txt, one caption per line; of several splits, the
    test's.
    """
    names = []
    parts = []
    captions = []

    for tar in tars_of_split(tree):
        for key, files in tar_samples(tree.root / tar):
            kind = next((kind for kind in IMAGE_KINDS if kind in files), None)
            texts = (
                clean_captions(files["txt"].read().decode("utf-8", "replace").splitlines())
                if "txt" in files
                else ()
            )
            if kind is None or not texts:
                raise ValueError(
                    f"{key} of {tar} in {tree.root} needs an image and a .txt with captions; "
                    "correct it"
                )
            names.append(f"{tar}/{key}")
            parts.append(files[kind])
            captions.append(texts)

    return _retrieval_set(facts, Images(tree.root, tuple(names), tuple(parts)), "all", captions)
