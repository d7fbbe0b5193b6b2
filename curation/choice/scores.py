"""Scores of pairs by key, from a quality or safety filter that the user has run.

A score file is a .csv, .tsv, .jsonl or .parquet table with the columns `key` and `score`, or with
two columns of any name in that order.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from jaxtyping import Float64

from cluster.storage import open_file
from curation.choice.decisions import Decisions

KEY = "key"
SCORE = "score"
DELIMITERS = {".csv": ",", ".tsv": "\t"}
KEYS_SHOWN = 3


class Scores(NamedTuple):
    """The rows of a score file."""

    keys: pa.Array
    values: Float64[np.ndarray, " n"]
    """NaN where there is no number."""


def drop_low_scores(
    decisions: Decisions, path: Path, min_score: float, error_budget: float
) -> None:
    """Drop pairs whose score is lower than `min_score`, and pairs without a score.

    Raises ValueError when more than a share of `error_budget` has no score, and when no pair has
    the minimum score.
    """
    scores = read_scores(path)
    keys = decisions.shards.keys()
    positions = pc.index_in(keys, value_set=scores.keys).combine_chunks()

    # A pair that is not in the file has no score, like a pair whose score is empty there.
    rows = np.flatnonzero(positions.is_valid().to_numpy(zero_copy_only=False))
    values = np.full(len(keys), np.nan)
    values[rows] = scores.values[positions.drop_null().to_numpy()]
    missing = np.flatnonzero(np.isnan(values))

    if len(missing) > error_budget * len(keys):
        raise ValueError(
            f"{path} has no score for {len(missing):,} of {len(keys):,} pairs, such as "
            f"{decisions.shards.keys_of(missing[:KEYS_SHOWN])} (keys of the file: "
            f"{scores.keys[:KEYS_SHOWN].to_pylist()}): every pair of the pool needs one, except "
            f"for a share of {error_budget}; add them to the file, or raise curate.error_budget "
            "to drop these pairs"
        )

    if not (values >= min_score).any():
        raise ValueError(
            f"no pair of {len(keys):,} has a score of at least {min_score:g} (scores of {path} "
            f"are {np.nanmin(values):g} to {np.nanmax(values):g}): at least one must be left; "
            "lower curate.min_score"
        )

    decisions.drop(missing, "score: missing")
    decisions.drop(np.flatnonzero(values < min_score), "score: too low")


def read_scores(path: Path) -> Scores:
    """The rows of a score file.

    Raises ValueError when it is not a table of unique keys and numbers.
    """
    suffix = path.suffix.lower()
    try:
        if suffix in DELIMITERS:
            table = _read_text(path, DELIMITERS[suffix])
        elif suffix in (".jsonl", ".ndjson"):
            with open_file(path) as file:
                table = pyarrow.json.read_json(file)
        elif suffix == ".parquet":
            with open_file(path) as file:
                table = pyarrow.parquet.read_table(file)
        else:
            raise _no_scores(path, f"its suffix is {suffix!r}")
    except pa.ArrowInvalid as error:
        raise _no_scores(path, str(error)) from error

    key, score = _columns(path, table.column_names)
    try:
        keys = table[key].cast(pa.large_string()).combine_chunks()
        values = table[score].cast(pa.float64()).combine_chunks().to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise _no_scores(path, str(error)) from error

    if len(pc.unique(keys)) < len(keys):
        counts = pc.value_counts(keys)
        repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        raise ValueError(
            f"{path} has {len(repeated):,} keys more than once, such as "
            f"{repeated[:KEYS_SHOWN].to_pylist()}: a pair has one score; remove the others"
        )

    return Scores(keys, values)


def _read_text(path: Path, delimiter: str) -> pa.Table:
    """A delimited table; its first line is a header unless its second field is a number."""
    with open_file(path) as file:
        first = next(
            csv.reader([file.readline().decode("utf-8-sig", "replace")], delimiter=delimiter), []
        )
        file.seek(0)
        # Without a header, the columns get names, and the first line is data.
        names = [name.strip() for name in first] if not _is_number(first[1:2]) else [KEY, SCORE]
        has_header = names == [name.strip() for name in first]

        # Keys are text even where all of them are numbers: 007 is not 7.
        types = {names[0] if KEY not in names else KEY: pa.large_string()} if names else {}
        return pyarrow.csv.read_csv(
            file,
            pyarrow.csv.ReadOptions(column_names=names, skip_rows=int(has_header)),
            pyarrow.csv.ParseOptions(delimiter=delimiter),
            pyarrow.csv.ConvertOptions(column_types=types),
        )


def _is_number(fields: Sequence[str]) -> bool:
    try:
        return bool(fields) and float(fields[0]) is not None
    except ValueError:
        return False


def _columns(path: Path, names: Sequence[str]) -> tuple[str, str]:
    """The columns of keys and scores."""
    if KEY in names and SCORE in names:
        return KEY, SCORE
    if len(names) == 2:
        return names[0], names[1]
    raise _no_scores(path, f"its columns are {', '.join(names) or 'none'}")


def _no_scores(path: Path, what: str) -> ValueError:
    return ValueError(
        f"{path} cannot be read as scores ({what}): a .csv, .tsv, .jsonl or .parquet with the "
        f"columns {KEY} and {SCORE} is required, one number per pair; write one, or leave "
        "curate.scores out"
    )
