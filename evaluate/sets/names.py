"""Class names as prompts need them, and the tables of known sets in evaluate/sets/data."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from curation.pairs.text import clean_captions
from curation.pairs.tree import Tree
from evaluate.sets.kinds import ClassNames

DATA = Path(__file__).parent / "data"
WORDNET_ID = re.compile(r"n\d{8}")
WORD = re.compile(r"[^\W\d_]{2,}|[\u0e00-\u9fff\uac00-\ud7af]")
"""Two letters in a row, or one character of a script that writes words with one."""
NUMBERED = re.compile(r"(class|category|label|cls|id|c|n)[ _-]?\d+", re.IGNORECASE)


@cache
def table(name: str) -> tuple[tuple[str, ...], ...]:
    """Rows of a tab-separated table of a known set; its first line states the columns and the
    source.
    """
    lines = (DATA / f"{name}.tsv").read_text().splitlines()
    return tuple(tuple(line.split("\t")) for line in lines if not line.startswith("#"))


@cache
def imagenet_names() -> dict[str, str]:
    """The name in CLIP's prompts of each of the 1,000 WordNet numbers, in the order of their class
    indices.
    """
    return dict(table("imagenet_classes"))  # type: ignore[arg-type]  # rows of two


def checked_names(where: str, names: Sequence[object], *, may_repeat: bool = False) -> ClassNames:
    """The names of every class, each a string or a list of strings, as any tokenizer can read them.

    ValueError for a class without a name, names that are numbers or ids, and two classes with one
    name.
    """
    listed = [list(each) if isinstance(each, list | tuple) else [each] for each in names]
    cleaned = tuple(clean_captions(each) for each in listed)
    bad = [
        index for index, each in enumerate(cleaned) if not each or len(each) < len(listed[index])
    ]
    if bad or not cleaned:
        what = f"class {bad[0]} has the name {names[bad[0]]!r}" if bad else "no class is named"
        raise ValueError(f"{where}: {what}, but prompts need words; name every class, in quotes")

    for each in cleaned:
        for name in each:
            if not WORD.search(name) or NUMBERED.fullmatch(name) or WORDNET_ID.fullmatch(name):
                raise ValueError(
                    f"{where}: the class name {name!r} is a number, an id or one letter, but prompts need words; "
                    'give words in a classes.json: {"folder": "name"}, or {"folder": ["name", "other name"]}'
                )

    # Two equal names cannot be told apart by any model; ImageNet's published list has two such
    # pairs.
    repeated = [
        name for name, count in Counter(each[0].lower() for each in cleaned).items() if count > 1
    ]

    if repeated and not may_repeat:
        raise ValueError(
            f"{where}: two classes are called {repeated[0]!r}, but names must differ; rename one"
        )

    return cleaned


def readable(name: str) -> str:
    """A folder's name as words."""
    return " ".join(name.replace("_", " ").split())


def read_json(tree: Tree, name: str) -> Any:
    """The content of a JSON file of the tree."""
    try:
        return json.loads(tree.files[name].read())
    except ValueError as error:
        raise ValueError(
            f"{name} of {tree.root} is not JSON ({error}): correct the file"
        ) from error


def read_lines(tree: Tree, name: str) -> list[str]:
    """The lines of a text file of the tree that hold something."""
    text = tree.files[name].read().decode("utf-8-sig", "replace")
    return [line for line in text.splitlines() if line.strip()]
