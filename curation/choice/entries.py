"""Metadata entries: strings that are searched in captions (MetaCLIP, arXiv:2309.16671).

Entries list the concepts that a pool should cover, and the selection is balanced over them. The
published spacing is used: a caption gets a space at both ends and around each of , . ; : ? ! and `,
and its tabs and line ends become spaces. An entry matches where it stands with a space on both
sides, written in the same way; case counts. Scripts without spaces have no such borders: there, an
entry matches any run of its characters (MetaCLIP 2, arXiv:2507.22062, uses a tokenizer per language
instead). Aho-Corasick searches all entries at once. A pair has the entries of all its captions.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import ahocorasick
import numpy as np
from jaxtyping import Int32, Int64

from curation.clusters.groups import Entries
from curation.clusters.scan import Points
from curation.clusters.spans import Span
from curation.clusters.vectors import ShardVectors
from curation.encoders.scripts import space_out

# str.maketrans and translate replace single characters by strings in one pass.
SPACING = str.maketrans(
    {**{mark: f" {mark} " for mark in ",.;:?!`"}, **dict.fromkeys("\t\n\r", " ")}
)


def read_entries(path: Path) -> list[str]:
    """The entries of a text file, one per line, without empty lines and repetitions.

    Raises ValueError when there are none.
    """
    # Not splitlines, which would also cut at characters that an entry may hold; utf-8-sig drops a
    # byte-order mark.
    lines = (line.strip(" \r") for line in path.read_text(encoding="utf-8-sig").split("\n"))
    entries = list(dict.fromkeys(line for line in lines if line))
    if not entries:
        raise ValueError(
            f"{path} has no entries: one string per line is needed; write some, or leave "
            "data.metadata out"
        )
    return entries


def match_captions(points: Points, path: Path) -> Entries:
    """The numbers of the entries in the captions of every row, ascending per row.

    The points must be vectors of shards, whose captions are read. Raises ValueError when no caption
    has an entry.
    """
    # The leading zero makes the running sum of the counts the offsets.
    counts = [np.zeros(1, np.int64)]
    values = [np.empty(0, np.int32)]
    for _, (span_counts, span_values) in points.scan("apply", match_span, path):
        counts.append(span_counts)
        values.append(span_values)
    entries = Entries(np.cumsum(np.concatenate(counts)), np.concatenate(values))
    check_matched(entries, read_entries(path))
    return entries


def check_matched(matches: Entries, names: Sequence[str]) -> None:
    """Raise ValueError when no row has an entry: there would be nothing to balance over."""
    if not len(matches.values):
        raise ValueError(
            f"no caption of {len(matches.counts()):,} pairs holds any of {len(names):,} entries, "
            f"e.g. {names[:3]}: an entry matches only as it is written, and case counts; write "
            "entries in the words of these captions, or leave data.metadata out"
        )


def match_span(
    span: Span, points: Points, path: Path
) -> tuple[Int64[np.ndarray, " rows"], Int32[np.ndarray, " pairs"]]:
    """(number of entries per row, entries of all rows) of a span: the work of one worker."""
    assert isinstance(points.vectors, ShardVectors)
    automaton = _automaton(path)
    entries_of_rows = [
        sorted({entry for caption in captions for _, entry in automaton.iter(_spaced(caption))})
        for captions in points.vectors.shards.captions(np.arange(*span))
    ]
    counts = np.array([len(own) for own in entries_of_rows], np.int64)

    return counts, np.fromiter(
        (entry for own in entries_of_rows for entry in own), np.int32, int(counts.sum())
    )


@functools.lru_cache(maxsize=1)
def _automaton(path: Path) -> ahocorasick.Automaton:
    """The automaton of an entry file, built once per process."""
    automaton = ahocorasick.Automaton()
    for number, entry in enumerate(read_entries(path)):
        automaton.add_word(f" {space_out(entry)} ", number)
    automaton.make_automaton()
    return automaton


def _spaced(caption: str) -> str:
    return space_out(f" {caption} ".translate(SPACING))
