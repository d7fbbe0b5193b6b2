"""Selections: round trip, and refusal for embeddings they were not made for."""

import numpy as np
import pyarrow as pa
import pytest

from curation.shards.reader import EmbeddingShards
from curation.shards.selection import SelectionError, read_selection, write_selection


@pytest.fixture
def shards(tmp_path, embedding_spec, write_pool):
    def write(name, rows_per_shard):
        write_pool(tmp_path / name, embedding_spec(), rows_per_shard)
        return EmbeddingShards(tmp_path / name)

    return write


def test_selection_round_trip(tmp_path, shards):
    pool = shards("pool", (20, 0, 30))
    rows = np.array([0, 3, 19, 20, 49])
    write_selection(tmp_path, pool, rows)
    selection = read_selection(tmp_path, pool)
    np.testing.assert_array_equal(selection.rows, rows)
    assert selection.keys.to_pylist() == [f"key-{row}" for row in rows]
    assert (
        pa.ipc.open_file(tmp_path / "selection.arrow").schema.field("key").type == pa.large_string()
    )


def test_a_selection_is_of_pairs_whatever_embedded_them(
    tmp_path, embedding_spec, shards, write_pool
):
    write_selection(tmp_path, shards("pool", (9,)), np.array([2, 5]))
    write_pool(tmp_path / "other", embedding_spec(digest="1" * 64, dim=4), (9,))
    np.testing.assert_array_equal(
        read_selection(tmp_path, EmbeddingShards(tmp_path / "other")).rows, [2, 5]
    )


def test_empty_selection(tmp_path, shards):
    pool = shards("pool", (5,))
    write_selection(tmp_path, pool, np.empty(0, np.int64))
    assert len(read_selection(tmp_path, pool).rows) == 0


def test_selection_is_refused_for_other_embeddings(tmp_path, shards, monkeypatch):
    pool = shards("pool", (50,))
    write_selection(tmp_path, pool, np.array([2, 40]))
    with pytest.raises(SelectionError, match="made for 50 embeddings"):
        read_selection(tmp_path, shards("shorter", (49,)))
    other = shards("other", (50,))
    keys = pa.chunked_array([other.keys().combine_chunks().take(np.r_[0:40, 41:50, 40])])
    monkeypatch.setattr(
        other, "strings", lambda column, span: keys.slice(span[0], span[1] - span[0])
    )
    with pytest.raises(SelectionError, match="has key key-40 at row 40"):
        read_selection(tmp_path, other)


def test_missing_selection_names_the_step(tmp_path):
    with pytest.raises(SelectionError, match="run the curate step"):
        read_selection(tmp_path)


def test_more_captions_stay_with_their_row(tmp_path, shards):
    pool = shards("pool", (9,))
    write_selection(tmp_path, pool, np.array([2, 5, 5]), {5: ["another", "one"]})
    selection = read_selection(tmp_path, pool)
    assert selection.num_more_captions().tolist() == [0, 2, 2]
    assert selection.captions(pool, np.array([2, 0])) == [
        ["caption 5", "again 5", "another", "one"],
        ["caption 2", "again 2"],
    ]
