"""Values against slow versions, and what intervals must obey."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluate.tally import Tally, estimate, paired_difference, wilson


def proportion(hits: list[int]) -> Tally:
    return Tally(np.array(hits, float)[:, None], np.ones((len(hits), 1)))


@given(st.lists(st.integers(0, 1), min_size=1, max_size=200))
def test_wilson_contains_the_share_and_stays_in_range(hits: list[int]) -> None:
    interval = wilson(float(sum(hits)), len(hits))
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    assert interval.high > interval.low


def test_wilson_narrows_with_more_trials() -> None:
    widths = [wilson(0.3 * n, n).high - wilson(0.3 * n, n).low for n in (10, 100, 1000)]
    assert widths == sorted(widths, reverse=True)


def test_wilson_equals_the_published_value() -> None:
    interval = wilson(81.0, 263)  # Newcombe 1998, table I, method 3
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.2553, 0.3662)


def test_estimate_by_bootstrap_agrees_with_wilson_on_plain_proportions() -> None:
    hits = [1] * 120 + [0] * 280
    twice = Tally(2 * proportion(hits).hits, 2 * proportion(hits).trials)
    bootstrap = estimate(twice, samples=4000, seed=0)
    plain = estimate(proportion(hits), samples=1, seed=0)
    assert bootstrap.value == plain.value
    assert bootstrap.low == pytest.approx(plain.low, abs=0.01)
    assert bootstrap.high == pytest.approx(plain.high, abs=0.01)


def test_estimate_is_the_same_for_the_same_seed() -> None:
    tally = Tally(np.random.default_rng(0).random((50, 3)), np.ones((50, 3)))
    assert estimate(tally, 200, seed=3) == estimate(tally, 200, seed=3)


def test_tally_leaves_out_columns_that_were_never_tried() -> None:
    tally = Tally(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[2.0, 0.0], [2.0, 0.0]]))
    assert tally.value == 0.5


def test_paired_difference_of_a_model_with_itself_is_exactly_zero() -> None:
    tally = proportion([1, 0, 1, 1, 0])
    assert paired_difference(tally, tally, 100, 0)._asdict() == {
        "value": 0.0,
        "low": 0.0,
        "high": 0.0,
    }


def test_paired_difference_is_narrower_than_unpaired_for_models_that_agree() -> None:
    random = np.random.default_rng(0)
    hits = random.integers(0, 2, 400)
    better = np.maximum(hits, random.random(400) < 0.05)
    difference = paired_difference(proportion(better.tolist()), proportion(hits.tolist()), 1000, 0)
    one = estimate(proportion(hits.tolist()), 1000, 0)
    assert 0 < difference.low < difference.value < difference.high
    assert difference.high - difference.low < one.high - one.low


def test_resamples_are_those_drawn_all_at_once() -> None:
    random = np.random.default_rng(4)
    tally = Tally(random.random((31, 3)), random.integers(1, 4, (31, 3)).astype(float))
    drawn = np.random.default_rng(7).integers(0, 31, (150, 31), dtype=np.int32)
    values = [(tally.hits[rows].sum(0) / tally.trials[rows].sum(0)).mean() for rows in drawn]
    interval = estimate(tally, samples=150, seed=7)
    assert [interval.low, interval.high] == pytest.approx(np.quantile(values, [0.025, 0.975]))


def test_intervals_hold_few_resamples_in_memory() -> None:
    tally = Tally(np.random.default_rng(0).random((4000, 1)), np.full((4000, 1), 2.0))
    tracemalloc.start()
    paired_difference(tally, tally, samples=2000, seed=0)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 8e6  # all 2,000 at once: 48 MB


def test_paired_difference_of_other_items_is_an_error() -> None:
    with pytest.raises(ValueError, match="same evaluation set"):
        paired_difference(proportion([1]), proportion([1, 0]), 10, 0)


def test_median_of_ranks_draws_the_ranks_of_one_image_together() -> None:
    ranks = [[1.0, 40.0, 3.0], [7.0], [2.0, 2.0], [9.0, 30.0], [1.0]]
    hits = np.array([row + [0.0] * (3 - len(row)) for row in ranks])
    trials = np.array([[1.0] * len(row) + [0.0] * (3 - len(row)) for row in ranks])
    tally = Tally(hits, trials, statistic="median")
    assert tally.value == 3  # of 1 1 2 2 3 7 9 30 40

    drawn = np.random.default_rng(7).integers(0, 5, (150, 5), dtype=np.int32)
    pooled = [sorted(rank for image in images for rank in ranks[image]) for images in drawn]
    medians = [each[(len(each) - 1) // 2] for each in pooled]
    interval = estimate(tally, samples=150, seed=7)
    assert [interval.low, interval.high] == pytest.approx(np.quantile(medians, [0.025, 0.975]))
