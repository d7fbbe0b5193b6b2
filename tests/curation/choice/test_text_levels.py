"""Captions with levels of clusters: laws of the critical values, against plain loops."""

import numpy as np
import pytest

from curation.choice.balance import TextBalance
from curation.choice.water import Vessels
from curation.clusters.groups import one_entry_each

Tree = tuple[np.ndarray, list[np.ndarray]]


def _tree(seed: int, num_rows: int = 400) -> Tree:
    """Rows in some of 24 leaves, of which several are equal in size, below 6 and 3 clusters."""
    rng = np.random.default_rng(seed)
    leaves = np.minimum(rng.geometric(0.15, num_rows) - 1, 20).astype(np.int32)
    leaves[:12] = np.repeat([21, 22], 6)
    middle = rng.integers(0, 5, 24).astype(np.int32)
    return leaves, [middle, rng.integers(0, 3, 6).astype(np.int32)]


def _critical_slowly(
    leaves: np.ndarray, parents: list[np.ndarray], coin: float, leaf: int
) -> float:
    """The critical value of one row, carried up cluster by cluster."""
    sizes = [int((leaves == cluster).sum()) for cluster in range(24)]
    cluster = leaf
    critical = coin * sizes[leaf]

    for labels in parents:
        cluster = labels[cluster]
        children = [size for size, label in zip(sizes, labels, strict=True) if label == cluster]
        critical = sum(min(size, critical) for size in children)
        sizes = [
            sum(size for size, label in zip(sizes, labels, strict=True) if label == parent)
            for parent in range(6)
        ]

    return critical


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_levels", [1, 2])
def test_critical_values_equal_those_of_a_loop_over_the_tree(seed: int, num_levels: int) -> None:
    leaves, parents = _tree(seed)
    coins = np.random.default_rng(seed).random(len(leaves))
    text = TextBalance(one_entry_each(leaves), coins, parents[:num_levels])
    expected = [
        _critical_slowly(leaves, parents[:num_levels], coin, leaf)
        for coin, leaf in zip(coins, leaves, strict=True)
    ]
    np.testing.assert_allclose(text.critical, expected, rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_top_clusters_that_have_one_leaf_each_change_nothing(seed: int) -> None:
    leaves, _ = _tree(seed)
    coins = np.random.default_rng(seed).random(len(leaves))
    flat = TextBalance(one_entry_each(leaves), coins)
    alone = TextBalance(one_entry_each(leaves), coins, [np.arange(24, dtype=np.int32)])
    np.testing.assert_array_equal(flat.critical, alone.critical)
    np.testing.assert_array_equal(flat.keep_probability(7.3), alone.keep_probability(7.3))


@pytest.mark.parametrize("threshold", [0.5, 8.0, 33.3, 90.0, 1000.0])
def test_a_row_is_kept_where_its_coin_is_below_its_probability(threshold: float) -> None:
    leaves, parents = _tree(0)
    coins = np.random.default_rng(1).random(len(leaves))
    text = TextBalance(one_entry_each(leaves), coins, parents)
    probability = text.keep_probability(threshold)
    np.testing.assert_array_equal(coins < probability, text.keep(text.budget(threshold)))

    # Each top cluster keeps the threshold in expectation, or all its rows if they are fewer.
    top = parents[1][parents[0][leaves]]
    sizes = np.bincount(top, minlength=3)
    np.testing.assert_allclose(
        np.bincount(top, probability, 3), np.minimum(sizes, threshold), rtol=1e-12
    )


def test_probabilities_are_the_shares_kept_over_many_coins() -> None:
    leaves, parents = _tree(2)
    rng = np.random.default_rng(3)
    times_kept = np.zeros(len(leaves))
    for _ in range(400):
        text = TextBalance(one_entry_each(leaves), rng.random(len(leaves)), parents)
        times_kept += text.keep(text.budget(40.0))

    # Rows of a leaf have the same probability: at least 400 draws stand behind each share.
    sizes = np.bincount(leaves, minlength=24)
    shares = np.bincount(leaves, times_kept / 400, 24)[leaves] / sizes[leaves]
    np.testing.assert_allclose(shares, text.keep_probability(40.0), atol=0.08)


def test_selections_are_nested_and_thresholds_give_their_budgets() -> None:
    leaves, parents = _tree(4)
    text = TextBalance(
        one_entry_each(leaves), np.random.default_rng(4).random(len(leaves)), parents
    )
    before = text.keep(0)
    for budget in range(len(leaves) + 1):
        now = text.keep(budget)
        assert now.sum() == budget == text.budget(text.threshold(budget))
        assert (now >= before).all()
        before = now


def test_the_example_of_the_docstring() -> None:
    leaves = np.repeat(np.arange(3, dtype=np.int32), [2, 4, 9])
    coins = np.full(15, 1 / 3)
    text = TextBalance(one_entry_each(leaves), coins, [np.zeros(3, np.int32)])
    assert text.critical[-1] == pytest.approx(8)
    assert text.keep_probability(8.0)[-1] == pytest.approx(1 / 3)


def test_a_parent_holds_no_more_than_its_rows_at_any_level() -> None:
    vessels = Vessels(np.array([2, 4, 9]), np.array([1, 1, 1]), 3)
    held = vessels.held(np.full(4, 1), np.array([0.0, 3.0, 9.0, 50.0]))
    assert held.tolist() == [0, 8, 15, 15]
    assert vessels.levels(np.array([1.0, 8.0, 1.0])).tolist() == [np.inf, 3, np.inf]
