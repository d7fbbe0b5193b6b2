"""Captions with foils: for each caption of an image a second one that is wrong, by a word added,
replaced or swapped (SugarCrepe, Hsieh et al. 2023, arXiv:2306.14610).
"""

from pathlib import PurePosixPath

import numpy as np

from curation.pairs.text import clean_captions
from curation.pairs.tree import Tree
from evaluate.sets.images import images_of
from evaluate.sets.kinds import Facts, RetrievalSet
from evaluate.sets.names import read_json

FIELDS = ("filename", "caption", "negative_caption")


def open_foils(tree: Tree, facts: Facts, split: str = "auto") -> RetrievalSet:
    """All files {"0": {"filename": ..., "caption": ..., "negative_caption": ...}, ...} of the tree,
    beside COCO's val2017; one file alone where its path is given.
    """
    pairs: dict[str, list[tuple[str, str]]] = {}
    listings = [name for name in tree.with_suffix(".json") if _is_foils(tree, name)]
    for listing in listings:
        for place, row in read_json(tree, listing).items():
            texts = clean_captions(row.get(field) for field in FIELDS)
            if len(texts) != len(FIELDS):
                raise ValueError(
                    f"record {place} of {listing} in {tree.root} is {row}: {', '.join(FIELDS)} are "
                    "required, each a text; correct it"
                )

            # The files of all kinds share images: each image is one item, with all its pairs.
            image = _locate(tree, listing, texts[0])
            pairs.setdefault(image, []).append((texts[1], texts[2]))

    # Flat, image by image: with 2 pairs and 1 pair, owners are [0, 0, 1].
    owners = np.repeat(np.arange(len(pairs)), [len(each) for each in pairs.values()])
    captions, foils = zip(*(pair for each in pairs.values() for pair in each), strict=True)
    kinds = ", ".join(PurePosixPath(name).stem for name in listings)
    facts = Facts(facts.kind, facts.published, facts.templates, {**facts.notes, "foils": kinds})

    return RetrievalSet(facts, images_of(tree, list(pairs)), "all", captions, owners, foils)


def _is_foils(tree: Tree, name: str) -> bool:
    """Whether a JSON file of the tree holds foils, by its first record."""
    content = read_json(tree, name)
    first = next(iter(content.values()), None) if isinstance(content, dict) else None
    return isinstance(first, dict) and FIELDS[-1] in first


def _locate(tree: Tree, listing: str, name: str) -> str:
    names = tree.find(name, str(PurePosixPath(listing).parent), "val2017", "images")
    if len(names) != 1:
        what = f"several files {name}" if names else f"no image {name}"
        raise ValueError(
            f"{tree.root} has {what}, which {listing} lists: put COCO's val2017 beside it"
        )
    return names[0]
