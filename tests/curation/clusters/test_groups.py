"""Rows by cluster and rows of several entries, against plain loops."""

import numpy as np

from curation.clusters.groups import (
    Entries,
    even_parts,
    one_entry_each,
    rank_in_groups,
    rows_by_cluster,
)


def test_rows_by_cluster_are_those_of_a_loop():
    labels = np.random.default_rng(0).integers(0, 9, 200).astype(np.int32)
    members, offsets = rows_by_cluster(labels, 12)
    for cluster in range(12):
        np.testing.assert_array_equal(
            members[offsets[cluster] : offsets[cluster + 1]], np.flatnonzero(labels == cluster)
        )


def test_even_parts_cover_every_cluster_once():
    sizes = np.r_[np.zeros(3, np.int64), np.random.default_rng(0).geometric(0.1, 100), 5000, 0]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    for num_parts in (1, 7, 500):
        parts = even_parts(offsets, num_parts)
        assert len(parts) <= num_parts
        assert [cluster for part in parts for cluster in range(*part)] == list(range(len(sizes)))
    largest = max(offsets[stop] - offsets[start] for start, stop in even_parts(offsets[:-2], 10))
    assert largest <= offsets[-3] / 10 + sizes[:-2].max()


def test_rank_in_groups_is_the_place_within_the_group():
    groups = np.array([2, 0, 2, 2, 0])
    order = np.array([0.5, 0.1, 0.2, 0.5, 0.0])
    np.testing.assert_array_equal(rank_in_groups(groups, order), [1, 1, 0, 2, 0])


def test_entries_of_some_rows_in_any_order():
    entries = Entries(np.array([0, 2, 2, 5]), np.array([4, 7, 1, 2, 3], np.int32))
    np.testing.assert_array_equal(entries.rows(), [0, 0, 2, 2, 2])
    some = entries.take(np.array([2, 1, 0]))
    np.testing.assert_array_equal(some.values, [1, 2, 3, 4, 7])
    np.testing.assert_array_equal(some.offsets, [0, 3, 3, 5])
    labels = np.array([3, 1], np.int32)
    np.testing.assert_array_equal(one_entry_each(labels).take(np.array([1])).values, [1])
