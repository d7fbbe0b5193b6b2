"""Metrics against slow versions."""

import itertools

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
from evaluate.tally import Tally


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
