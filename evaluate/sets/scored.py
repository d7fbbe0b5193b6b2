"""Pairs of sentences with a score of how alike they are: the STS Benchmark (Cer et al. 2017,
arXiv:1708.00055) as published, and tables of two sentences and a score.
"""

import csv
import io
import math
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from curation.pairs.text import clean_captions, decode_text
from curation.pairs.tree import Tree
from evaluate.sets.kinds import Facts, SimilaritySet

TABLES = (".csv", ".tsv")
SPLITS = ("test", "dev")  # the first one that a folder has is scored
HEADER = ("sentence1", "sentence2", "score")
PUBLISHED_COLUMNS = ("genre", "file", "year", "id", "score", "sentence1", "sentence2")
"""Columns of the STS Benchmark, which has no header; its training file has further ones behind."""


class Columns(NamedTuple):
    """Where a table has the two sentences and the score."""

    sentence1: int
    sentence2: int
    score: int


def open_scored(tree: Tree, facts: Facts) -> SimilaritySet:
    """The pairs of a table: with a header that names sentence1, sentence2 and score; with the columns
    of the STS Benchmark; or with two sentences and a score.

    ValueError names the line of a row without two sentences and a number.
    """
    listing = _listing(tree)
    where = f"{listing} of {tree.root}"
    rows = _rows(where, decode_text(tree.files[listing].read()))
    columns, has_header = _columns(where, rows)

    sentences = []
    scores = []
    for line, cells in rows[has_header:]:
        sentences.append(_sentences(where, line, cells, columns))
        scores.append(_score(where, line, cells, columns))

    if len(set(scores)) < 2:
        raise ValueError(
            f"{where} has {len(scores)} pairs with {len(set(scores))} different scores: at least 2 "
            "are required, or there is no order to compare with; correct the file"
        )

    low, high = min(scores), max(scores)
    notes = {
        **facts.notes,
        "listing": PurePosixPath(listing).name,
        "scores": f"{low:g} to {high:g}",
    }
    facts = Facts(facts.kind, facts.published, facts.templates, notes)
    return SimilaritySet(facts, tuple(sentences), np.array(scores))


def _listing(tree: Tree) -> str:
    """The one table, or that of the test split, else of the development split."""
    tables = tree.with_suffix(*TABLES)
    by_split = [name for split in SPLITS for name in tables if split in _words(name)]
    chosen = tables if len(tables) == 1 else by_split[:1]

    if not chosen:
        found = f"{len(tables)} tables, none called test or dev" if tables else "no table"
        raise ValueError(
            f"{tree.root} has {found} ({', '.join(TABLES)}): name the file with two sentences and "
            "a score per line"
        )
    return chosen[0]


def _words(name: str) -> list[str]:
    return re.split(r"[^a-z]+", PurePosixPath(name).stem.lower())


def _rows(where: str, text: str) -> list[tuple[int, list[str]]]:
    """(line number, cells) of each line that is not empty.

    As published, quotes are text in a table with tabs, which has .csv as its suffix too.
    """
    first = text.lstrip().partition("\n")[0]
    lines = io.StringIO(text, newline="")
    reader = (
        csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        if "\t" in first
        else csv.reader(lines, strict=True)
    )

    try:
        return [(reader.line_num, cells) for cells in reader if any(map(str.strip, cells))]
    except csv.Error as error:
        raise ValueError(
            f"line {reader.line_num} of {where} is no row of a table ({error}): correct it"
        ) from error


def _columns(where: str, rows: Sequence[tuple[int, list[str]]]) -> tuple[Columns, bool]:
    """Where the fields are, and whether the first row is a header."""
    first = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    if set(HEADER) <= set(first):
        return Columns(*(first.index(name) for name in HEADER)), True
    if len(first) >= len(PUBLISHED_COLUMNS):
        return Columns(*(PUBLISHED_COLUMNS.index(name) for name in HEADER)), False
    if len(first) == len(HEADER):
        return Columns(*range(len(HEADER))), False

    raise ValueError(
        f"{where} has {len(first)} columns: a header with {', '.join(HEADER)}, the columns "
        f"{', '.join(PUBLISHED_COLUMNS)}, or two sentences and a score are required; correct it"
    )


def _sentences(where: str, line: int, cells: Sequence[str], columns: Columns) -> tuple[str, str]:
    texts = clean_captions(cells[place] for place in columns[:2] if place < len(cells))
    if len(texts) != 2:
        raise ValueError(
            f"line {line} of {where} is {cells}: two sentences and a score are required; correct it"
        )
    return texts[0], texts[1]


def _score(where: str, line: int, cells: Sequence[str], columns: Columns) -> float:
    cell = cells[columns.score] if columns.score < len(cells) else ""
    try:
        score = float(cell)
    except ValueError:
        score = math.nan

    if not math.isfinite(score):
        raise ValueError(
            f"line {line} of {where} has the score {cell!r}: a number is required; correct it, or "
            f"name the columns {', '.join(HEADER)} in a header"
        )
    return score
