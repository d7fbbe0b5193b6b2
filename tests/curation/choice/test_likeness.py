"""Thresholds that are read off a pool."""

import numpy as np
import pytest

from curation.choice.config import DuplicatesConfig, LikenessConfig
from curation.choice.likeness import (
    EQUAL,
    LIKELY,
    SURE,
    calibrate,
    hashes_decide,
    least_cosine,
)
from curation.clusters.vectors import to_unit


@pytest.mark.parametrize("false_rate", [1e-2, 1e-3])
def test_the_rate_holds_where_logarithms_are_normal(false_rate):
    nearest = 1 - np.exp(-np.random.default_rng(0).normal(1.9, 0.13, 100_000)).astype(np.float32)
    cosines = calibrate(nearest[:4000], false_rate)
    assert (nearest >= cosines.likely).mean() == pytest.approx(0.01, rel=0.4)
    assert (nearest >= cosines.sure).mean() == pytest.approx(false_rate, rel=0.6)


@pytest.mark.parametrize("dim", [64, 256])
def test_few_random_vectors_pass(dim):
    """Their largest cosines have a longer tail than the model."""
    rng = np.random.default_rng(dim)
    known = to_unit(rng.standard_normal((100, dim)).astype(np.float32))
    asked = to_unit(rng.standard_normal((50_000, dim)).astype(np.float32))
    nearest = (asked @ known.T).max(axis=1)
    assert (nearest >= calibrate(nearest[:4000], 1e-6).sure).mean() < 1e-3


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_copies_among_the_images_leave_likely_where_copies_pass(share):
    nearest = 1 - np.exp(-np.random.default_rng(0).normal(1.9, 0.13, 2000)).astype(np.float32)
    mixed = nearest.copy()
    mixed[: int(share * 2000)] = 0.97
    assert calibrate(nearest, 1e-4).likely < calibrate(mixed, 1e-4).likely < 0.93


def test_few_images_take_the_constants():
    assert calibrate(np.full(30, 0.5, np.float32), 1e-4) == (LIKELY, SURE)


def test_a_cosine_of_one_means_equal_up_to_rounding():
    vectors = to_unit(np.random.default_rng(0).standard_normal((2000, 1024)).astype(np.float32))
    cosines = np.einsum("nd,nd->n", vectors, vectors)
    assert (cosines < 1).any()
    assert (cosines >= least_cosine(LikenessConfig(cosine=1.0), calibrate(cosines, 1e-4))).all()
    assert EQUAL < 1e-5


@pytest.mark.parametrize("cosine", [98.5, float("nan"), -1.5])
def test_a_cosine_out_of_range_is_refused(cosine):
    with pytest.raises(ValueError, match=r"alike.cosine is .*: must be at least -1 and at most 1"):
        LikenessConfig(cosine=cosine)


def test_settings_out_of_range_are_refused():
    with pytest.raises(
        ValueError, match=r"alike.hash_bits is 200: must be at least 0 and at most 128"
    ):
        LikenessConfig(hash_bits=200)
    with pytest.raises(ValueError, match=r"duplicates.neighbors is -1: must be at least 0"):
        DuplicatesConfig(neighbors=-1)


def test_hashes_do_not_decide_where_look_alikes_lie_at_any_distance() -> None:
    copies = np.repeat(np.arange(0, 20, 2), [40, 30, 20, 10, 10, 5, 5, 5, 5, 5]).astype(np.int32)
    drawings = np.arange(400, dtype=np.int32) % 31
    assert hashes_decide(np.tile(copies, 2), 30)
    assert not hashes_decide(drawings, 30)
    assert hashes_decide(drawings[:50], 30)  # too few to tell
