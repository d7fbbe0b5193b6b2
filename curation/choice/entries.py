"""Metadata entries: strings that are sought in captions, to balance over what a pool is asked to
cover (MetaCLIP, arXiv:2309.16671).

The published spacing: a caption gets a space at both ends and around each of , . ; : ? ! and `, its
tabs and line ends become spaces; an entry matches where it stands with a space on both sides. Case
counts, and an entry is taken as it is written. Scripts without spaces have no such borders: there,
an entry matches as a run of characters (MetaCLIP 2, arXiv:2507.22062, asks a tokenizer per language
instead). All entries are looked for at once by Aho-Corasick; a pair has those that any of its
captions has.
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

SPACING = str.maketrans(
    {**{mark: f" {mark} " for mark in ",.;:?!`"}, **dict.fromkeys("\t\n\r", " ")}
)


def read_entries(path: Path) -> list[str]:
    """The entries of a text file, one a line, without empty lines and repetitions; ValueError when
    there are none.
    """
    lines = (line.strip(" \r") for line in path.read_text(encoding="utf-8-sig").split("\n"))
    entries = list(dict.fromkeys(line for line in lines if line))
    if not entries:
        raise ValueError(
            f"{path} has no entries: one string a line is needed; write some, or leave "
            "data.metadata out"
        )
    return entries


def match_captions(points: Points, path: Path) -> Entries:
    """The entries of every row of the shards that the points are of, ascending in each; ValueError
    when none is met.
    """
    counts = [np.zeros(1, np.int64)]
    values = [np.empty(0, np.int32)]
    for _, (span_counts, span_values) in points.scan("apply", match_span, path):
        counts.append(span_counts)
        values.append(span_values)
    found = Entries(np.cumsum(np.concatenate(counts)), np.concatenate(values))
    check_matched(found, read_entries(path))
    return found


def check_matched(found: Entries, names: Sequence[str]) -> None:
    """ValueError when no row has an entry: nothing could be balanced."""
    if not len(found.values):
        raise ValueError(
            f"no caption of {len(found.counts()):,} pairs holds any of {len(names):,} entries, "
            f"e.g. {names[:3]}: an entry must stand in captions as it is written, and case "
            "counts; write entries of these captions' words, or leave data.metadata out"
        )


def match_span(
    span: Span, points: Points, path: Path
) -> tuple[Int64[np.ndarray, " rows"], Int32[np.ndarray, " pairs"]]:
    """The number of entries of each row of a span, and the entries: what one worker does."""
    assert isinstance(points.vectors, ShardVectors)
    automaton = _automaton(path)
    found = [
        sorted({entry for caption in captions for _, entry in automaton.iter(_spaced(caption))})
        for captions in points.vectors.shards.captions(np.arange(*span))
    ]
    counts = np.array([len(own) for own in found], np.int64)

    return counts, np.fromiter(
        (entry for own in found for entry in own), np.int32, int(counts.sum())
    )


@functools.lru_cache(maxsize=1)
def _automaton(path: Path) -> ahocorasick.Automaton:
    automaton = ahocorasick.Automaton()
    for number, entry in enumerate(read_entries(path)):
        automaton.add_word(f" {space_out(entry)} ", number)
    automaton.make_automaton()
    return automaton


def _spaced(caption: str) -> str:
    return space_out(f" {caption} ".translate(SPACING))
