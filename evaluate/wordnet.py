"""How alike the names of classes are in WordNet (Miller 1995, CACM 38:39-41), for Open-mIoU.

Read are the two files of nouns as WordNet distributes them, and as Debian's package wordnet-base
installs them in /usr/share/wordnet; their format is that of its manual page wndb(5WN).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from evaluate.sets.kinds import ClassNames

WORDNET_INPUT = "wordnet"
"""The name that the folder of WordNet has among the inputs of the step evaluate."""

INDEX = "index.noun"
DATA = "data.noun"
HYPERNYMS = ("@", "@i")
"""Pointers from a sense to the more general ones: of a kind, and of a single thing."""
PLURALS = (("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"))
MORE_PLURALS = (("ies", "y"), ("s", ""))

Sense = str
"""The place of a sense in the data file, as the index writes it."""


def check_wordnet(folder: Path) -> None:
    """ValueError if the folder lacks WordNet's files of nouns."""
    missing = [name for name in (INDEX, DATA) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"evaluate.segmentation.wordnet is {folder}, which has no {' and no '.join(missing)}: "
            "the folder of WordNet's database files is required (/usr/share/wordnet of Debian's "
            "package wordnet-base)"
        )


class Nouns:
    """The nouns of WordNet, and the paths between their senses."""

    def __init__(self, folder: Path) -> None:
        check_wordnet(folder)
        self._senses = dict(map(_indexed, _lines(folder / INDEX)))
        self._general = dict(map(_hypernyms, _lines(folder / DATA)))

    def senses(self, name: str) -> tuple[Sense, ...]:
        """The senses of a name, or of the singular of its last word; nothing for an unknown name."""
        lemma = "_".join(name.lower().split())
        if lemma in self._senses:
            return self._senses[lemma]

        singulars = (
            lemma.removesuffix(plural) + singular
            for plural, singular in (*PLURALS, *MORE_PLURALS)
            if lemma.endswith(plural)
        )
        return next((self._senses[each] for each in singulars if each in self._senses), ())

    def similarities(self, names: ClassNames) -> Float64[np.ndarray, "classes classes"]:
        """Path similarity of classes, between 0 and 1: 1 / (1 + links), where `links` is the length of
        the shortest path between their senses over more general ones.

        A class with several names or senses counts with the nearest. A class whose names are all
        unknown is like itself alone. Example: dog and cat are four links apart, which gives 0.2.
        """
        above = [self._distances([s for name in each for s in self.senses(name)]) for each in names]
        alike = np.eye(len(names))
        for row, ours in enumerate(above):
            for column, theirs in enumerate(above[:row]):
                shared = ours.keys() & theirs.keys()
                if shared:
                    links = min(ours[sense] + theirs[sense] for sense in shared)
                    alike[row, column] = alike[column, row] = 1 / (1 + links)
        return alike

    def _distances(self, senses: Sequence[Sense]) -> dict[Sense, int]:
        """Links from the nearest of some senses to each sense that is more general, and to itself."""
        links = dict.fromkeys(senses, 0)
        waiting = list(links)
        # The list grows while it is read: breadth first, so that the first visit is the shortest way.
        for sense in waiting:
            for general in self._general[sense]:
                if general not in links:
                    links[general] = links[sense] + 1
                    waiting.append(general)
        return links


def _lines(path: Path) -> Iterator[list[str]]:
    """The fields of each line; those of the license at the top begin with blanks."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.startswith(" "):
                yield line.split()


def _indexed(fields: list[str]) -> tuple[str, tuple[Sense, ...]]:
    """A lemma and its senses, the most frequent first: they are the last fields of the line."""
    return fields[0], tuple(fields[-int(fields[2]) :])


def _hypernyms(fields: list[str]) -> tuple[Sense, tuple[Sense, ...]]:
    """A sense and the more general ones.

    The line has the sense, its file, its kind, the number of words (hexadecimal), two fields per
    word, the number of pointers, and four fields per pointer.
    """
    begin = 4 + 2 * int(fields[3], 16)
    count = int(fields[begin])
    pointers = fields[begin + 1 : begin + 1 + 4 * count]
    symbols, targets = pointers[0::4], pointers[1::4]
    return fields[0], tuple(
        target for symbol, target in zip(symbols, targets, strict=True) if symbol in HYPERNYMS
    )
