"""Laws of water filling and of the two selections, against plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.choice.balance import (
    ImageBalance,
    TextBalance,
    combine,
    entropy,
    gini,
    tail_threshold,
)
from curation.choice.water import water_fill
from curation.clusters.groups import Entries, one_entry_each


def _fill_slowly(sizes: np.ndarray, budget: int, order: np.ndarray) -> np.ndarray:
    """One row at a time, always to an unfilled child with least; ties by `order`."""
    quotas = np.zeros_like(sizes)
    for _ in range(budget):
        open_children = np.flatnonzero(quotas < sizes)
        least = open_children[quotas[open_children] == quotas[open_children].min()]
        quotas[least[np.argmin(order[least])]] += 1
    return quotas


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=4), st.data()
)
def test_water_fill_equals_filling_one_row_at_a_time(families: list, data: st.DataObject) -> None:
    sizes = np.array([size for family in families for size in family])
    parents = np.repeat(np.arange(len(families)), [len(family) for family in families])
    budgets = np.array([data.draw(st.integers(0, sum(family))) for family in families])
    order = np.random.default_rng(0).random(len(sizes))
    quotas = water_fill(sizes, parents, budgets, order)
    for parent, budget in enumerate(budgets):
        own = parents == parent
        np.testing.assert_array_equal(quotas[own], _fill_slowly(sizes[own], budget, order[own]))


def test_water_fill_refuses_more_than_there_is() -> None:
    with pytest.raises(ValueError, match="a budget of 9 rows for 5"):
        water_fill(np.array([2, 3]), np.array([0, 0]), np.array([9]), np.zeros(2))


def _tree(num_rows: int = 500, seed: int = 0, repeats: int = 1) -> tuple[ImageBalance, TextBalance]:
    rng = np.random.default_rng(seed)
    leaves = np.minimum(rng.geometric(0.08, num_rows) - 1, 39).astype(np.int32)
    image = ImageBalance(
        leaves, [rng.integers(0, 6, 40).astype(np.int32)], 40, rng.random(num_rows), seed, repeats
    )
    clusters = np.minimum(rng.geometric(0.1, num_rows) - 1, 29).astype(np.int32)
    return image, TextBalance(one_entry_each(clusters), rng.random(num_rows))


def _entries(num_rows: int, seed: int = 0) -> Entries:
    """Up to four entries a row, some rows without."""
    rng = np.random.default_rng(seed)
    found = [
        np.unique(np.minimum(rng.geometric(0.1, count) - 1, 29))
        for count in rng.integers(0, 5, num_rows)
    ]
    offsets = np.cumsum([0, *map(len, found)])
    return Entries(offsets, np.concatenate(found).astype(np.int32))


def test_selections_are_nested_and_of_exact_size() -> None:
    image, text = _tree()
    for selection in (
        lambda budget: image.copies(budget) > 0,
        text.keep,
        TextBalance(_entries(500), text.critical).keep,
    ):
        before = selection(0)
        for budget in range(1, 501):
            now = selection(budget)
            assert now.sum() == budget
            assert (now >= before).all()
            before = now


def test_a_last_middle_cluster_without_leaves_takes_no_rows() -> None:
    """Four leaves in two of three middle clusters, which share one top cluster."""
    parents = [np.array([0, 0, 1, 1], np.int32), np.array([0, 0, 0], np.int32)]
    balance = ImageBalance(
        np.repeat(np.arange(4, dtype=np.int32), 5), parents, 4, np.arange(20.0), 0
    )
    assert balance.quotas(8).tolist() == [2, 2, 2, 2]


def test_repeated_selections_are_nested_and_even_within_a_leaf() -> None:
    image, _ = _tree(repeats=3)
    before = image.copies(0)
    for budget in range(1, 1501):
        now = image.copies(budget)
        assert now.sum() == budget
        assert (now - before).sum() == (now - before).max() == 1
        before = now
    assert (now == 3).all()
    half = image.copies(700)
    for leaf in np.unique(image.leaves):
        assert np.ptp(half[image.leaves == leaf]) <= 1


@pytest.mark.parametrize("how", ["intersection", "union"])
@pytest.mark.parametrize("repeats", [1, 4])
@pytest.mark.parametrize("target", [1, 100, 333, 499, 500])
def test_combine_takes_exactly_the_target(how: str, repeats: int, target: int) -> None:
    image, text = _tree(repeats=repeats)
    solved = combine(image, text, target, how)
    assert solved.copies.sum() == target
    joined = solved.image & solved.text if how == "intersection" else solved.image | solved.text
    np.testing.assert_array_equal(solved.copies > 0, joined)
    assert image.copies(solved.image_budget).sum() == solved.image_budget
    assert solved.text.sum() == solved.text_budget


def test_repeats_reach_more_than_there_are_rows() -> None:
    image, text = _tree(repeats=4)
    solved = combine(image, text, 1100, "intersection")
    assert solved.copies.sum() == 1100
    assert 1 < solved.copies.max() <= 4


def test_combine_with_a_fixed_text_threshold_moves_only_the_image_budget() -> None:
    image, text = _tree()
    solved = combine(image, text, 150, "intersection", text.budget(12.0))
    assert solved.copies.sum() == 150
    assert solved.text_budget == text.budget(12.0)
    with pytest.raises(ValueError, match="cannot give 499"):
        combine(image, text, 499, "intersection", text.budget(1.0))
    with pytest.raises(ValueError, match="gives a union above 3"):
        combine(image, text, 3, "union", text.budget(12.0))


def test_text_rows_are_kept_when_their_coin_is_below_the_published_probability() -> None:
    rng = np.random.default_rng(1)
    clusters = rng.integers(0, 20, 400).astype(np.int32)
    coins = rng.random(400)
    text = TextBalance(one_entry_each(clusters), coins)
    budget = text.budget(9.0)
    np.testing.assert_array_equal(text.keep(budget), coins < text.keep_probability(9.0))
    np.testing.assert_array_equal(
        text.keep(120), coins < text.keep_probability(text.threshold(120))
    )


def test_rows_of_several_entries_have_the_published_probability() -> None:
    entries = _entries(400)
    coins = np.random.default_rng(1).random(400)
    text = TextBalance(entries, coins)
    threshold = 7.0
    expected = [
        1 - np.prod([1 - threshold / max(text.counts[entry], threshold) for entry in own])
        if len(own)
        else 1.0
        for own in np.split(entries.values, entries.offsets[1:-1])
    ]
    np.testing.assert_allclose(text.keep_probability(threshold), expected, atol=1e-12)
    np.testing.assert_array_equal(text.keep(text.budget(threshold)), coins < np.array(expected))
    for budget in (150, 250, 390):
        np.testing.assert_array_equal(
            text.keep(budget), coins < text.keep_probability(text.threshold(budget))
        )


@pytest.mark.parametrize("how", ["intersection", "union"])
@pytest.mark.parametrize("repeats", [1, 4])
@pytest.mark.parametrize("target", [60, 200, 499])
def test_rows_without_entries_are_never_left_out_by_text(
    how: str, repeats: int, target: int
) -> None:
    image, _ = _tree(repeats=repeats)
    rng = np.random.default_rng(3)
    is_unmatched = rng.random(500) < (0.5 if how == "intersection" else 0.1)
    offsets = np.cumsum(np.r_[0, ~is_unmatched])
    entries = Entries(offsets, rng.integers(0, 9, offsets[-1]).astype(np.int32))
    solved = combine(image, TextBalance(entries, rng.random(500)), target, how)
    assert solved.copies.sum() == target
    assert solved.text[is_unmatched].all()


def test_rows_without_entries_are_ordered_by_coin() -> None:
    coins = np.random.default_rng(0).random(50)
    text = TextBalance(Entries(np.zeros(51, np.int64), np.empty(0, np.int32)), coins)
    np.testing.assert_array_equal(text.order, np.argsort(coins))


def test_tail_threshold_leaves_the_share_below() -> None:
    counts = np.array([1, 1, 2, 4, 8, 84])
    assert tail_threshold(counts, 0.06) == 4  # entries below 4 hold 4 %, below 8 hold 8 %
    assert counts[counts < tail_threshold(counts, 0.08)].sum() == 8


def test_entropy_and_gini_of_even_and_single_clusters() -> None:
    assert entropy(np.array([5, 5, 5, 5])) == pytest.approx(2.0)
    assert gini(np.array([5, 5, 5, 5])) == pytest.approx(0.0)
    assert entropy(np.array([0, 20, 0, 0])) == 0.0
    assert gini(np.array([0, 20, 0, 0])) == pytest.approx(0.75)
