"""Score files in each format, and what a filter by score drops."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from curation.choice.decisions import Decisions
from curation.choice.scores import drop_low_scores, read_scores
from curation.shards.reader import EmbeddingShards

ROWS = {"007": 0.25, 'a "b", c.jpg': -1.0, "猫.jpg": 3.0}


def write_scores(folder: Path, kind: str) -> Path:
    """ROWS in one of the formats."""
    path = folder / f"scores.{kind.split()[0]}"
    if kind.startswith("csv"):
        header = "" if "bare" in kind else "key,score\n"
        path.write_text(header + '007,0.25\n"a ""b"", c.jpg",-1\n猫.jpg,3\n')
    elif kind == "tsv":
        path.write_text(
            "score\tother\tkey\n0.25\tx\t007\n" + '-1\tx\t"a ""b"", c.jpg"\n' + "3\tx\t猫.jpg\n"
        )
    elif kind == "jsonl":
        path.write_text(
            "".join(json.dumps({"key": key, "score": score}) + "\n" for key, score in ROWS.items())
        )
    else:
        pa.parquet.write_table(pa.table({"key": list(ROWS), "score": list(ROWS.values())}), path)
    return path


@pytest.mark.parametrize("kind", ["csv", "csv bare", "tsv", "jsonl", "parquet"])
def test_scores_are_the_same_in_every_format(tmp_path: Path, kind: str) -> None:
    scores = read_scores(write_scores(tmp_path, kind))
    assert dict(zip(scores.keys.to_pylist(), scores.values.tolist(), strict=True)) == ROWS


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("s.csv", "key,score\na,high\n", "high"),
        ("s.csv", "name,nsfw,watermark\na,1,2\n", "its columns are name, nsfw, watermark"),
        ("s.csv", "key,score\na,1\na,2\n", "'a'"),
        ("s.csv", "key,score\na,1,2\n", "Expected 2 columns"),
        ("s.npy", "", "its suffix is '.npy'"),
        ("s.csv", "", "cannot be read as scores"),
    ],
)
def test_a_file_that_holds_no_scores_is_an_error_that_names_it(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=r"s\.(csv|npy)") as caught:
        read_scores(tmp_path / name)
    assert message in str(caught.value)


@pytest.fixture
def decisions(tmp_path, embedding_spec, write_pool) -> Decisions:
    """Of the pool key-0 ... key-9, in shards of 4 and 6."""
    write_pool(tmp_path / "pool", embedding_spec(), (4, 6))
    return Decisions(EmbeddingShards(tmp_path / "pool"), {})


def scores_of(folder: Path, values: dict[int, float | str]) -> Path:
    """A score file, in the order of `values`."""
    path = folder / "scores.csv"
    path.write_text(
        "key,score\n" + "".join(f"key-{row},{value}\n" for row, value in values.items())
    )
    return path


def test_pairs_below_the_score_are_dropped_and_those_at_it_stay(
    tmp_path: Path, decisions: Decisions
) -> None:
    # The file has another order than the pool, and rows of pairs that the pool does not have.
    path = scores_of(tmp_path, {row: row / 10 for row in reversed(range(20))})
    drop_low_scores(decisions, path, 0.3, 0.0)
    np.testing.assert_array_equal(decisions.surviving(), np.arange(3, 10))
    assert decisions.counts()["score: too low"] == 3


def test_pairs_without_a_score_are_dropped_within_the_budget_only(
    tmp_path: Path, decisions: Decisions
) -> None:
    path = scores_of(tmp_path, dict.fromkeys(range(9), 1.0) | {4: ""})
    with pytest.raises(
        ValueError, match=r"no score for 2 of 10 pairs, such as \[.key-4., .key-9.\]"
    ):
        drop_low_scores(decisions, path, 0.5, 0.1)
    drop_low_scores(decisions, path, 0.5, 0.2)
    assert decisions.counts()["score: missing"] == 2
    np.testing.assert_array_equal(decisions.surviving(), [0, 1, 2, 3, 5, 6, 7, 8])


def test_a_score_that_no_pair_reaches_is_an_error_with_the_range(
    tmp_path: Path, decisions: Decisions
) -> None:
    path = scores_of(tmp_path, {row: row for row in range(10)})
    with pytest.raises(ValueError, match=r"at least 11 .* are 0 to 9"):
        drop_low_scores(decisions, path, 11.0, 0.0)
