"""Metrics against slow versions, and what intervals must obey."""

import itertools
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluate.metrics import (
    Ranks,
    chance_of_hit,
    constant_map_miou,
    expected_hits,
    intersections_and_unions,
    ranks,
)
from evaluate.sets.kinds import IGNORED
from evaluate.tally import Tally, estimate, paired_difference, wilson


def proportion(hits: list[int]) -> Tally:
    return Tally(np.array(hits, float)[:, None], np.ones((len(hits), 1)))


@given(st.integers(0, 3), st.integers(0, 3), st.integers(1, 3), st.integers(1, 6))
def test_expected_hits_is_the_mean_over_all_orders_of_the_ties(
    greater: int, wrong: int, right: int, k: int
) -> None:
    tied = "w" * wrong + "r" * right
    orders = list(itertools.permutations(tied))
    found = [("x" * greater + "".join(order))[:k].count("r") > 0 for order in orders]
    one = expected_hits(Ranks(np.array([greater]), np.array([wrong]), np.array([right])), k)
    assert one[0] == pytest.approx(np.mean(found))


def test_ranks_count_the_answers_before_and_beside_the_best_right_one() -> None:
    scores = torch.tensor(
        [[3.0, 2.0, 2.0, 2.0, 1.0], [1.0, 5.0, 0.0, 4.0, 5.0], [1.0, 1.0, torch.nan, 1.0, 1.0]]
    )
    right = torch.tensor([[0, 1, 0, 1, 1], [0, 1, 0, 1, 0], [0, 0, 1, 0, 0]]).bool()
    assert np.stack(ranks(scores, right)).T.tolist() == [[1, 1, 2], [0, 1, 1], [0, 0, 0]]


@given(st.integers(1, 60), st.integers(1, 12))
def test_chance_of_hit_with_one_right_answer_is_k_of_n(candidates: int, k: int) -> None:
    assert chance_of_hit(candidates, 1, k) == pytest.approx(min(1.0, k / candidates))


def test_intersections_and_unions_equal_a_loop_over_pixels() -> None:
    random = np.random.default_rng(0)
    truth, predicted = random.integers(0, 6, (2, 13, 17)).astype(np.int32)
    both = np.zeros(6, int)
    either = np.zeros(6, int)
    for right, guess in zip(truth.ravel(), predicted.ravel(), strict=True):
        if right == 5:
            continue
        for label in range(6):
            both[label] += right == label and guess == label
            either[label] += right == label or guess == label
    result = intersections_and_unions(np.where(truth == 5, IGNORED, truth), predicted, 6)
    np.testing.assert_array_equal(result[0], both)
    np.testing.assert_array_equal(result[1], either)


def test_constant_map_miou_equals_scoring_that_map() -> None:
    truth = np.random.default_rng(1).integers(0, 4, (9, 11)).astype(np.int32)
    pixels = np.bincount(truth.ravel(), minlength=6)
    for label in range(6):
        both, either = intersections_and_unions(truth, np.full_like(truth, label), 6)
        scored = Tally(both[None].astype(float), either[None].astype(float)).value
        assert constant_map_miou(pixels, label) == pytest.approx(scored)


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
