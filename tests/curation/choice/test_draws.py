"""Coins: the same for a key wherever it stands, uniform, independent of one another."""

import numpy as np
import pyarrow as pa
from scipy import stats

from curation.choice.draws import coins

KEYS = [f"part-{i % 7}/{i:06d}" for i in range(5000)] + [
    "",
    "é",
    "a" * 300,
    "a" * 299 + "b",
    "ключ",
    "鍵🙂",
]


def _coins(keys, chunks=1, seed=0, purpose="text"):
    cut = np.array_split(np.array(keys, object), chunks)
    return coins(
        pa.chunked_array([pa.array(part.tolist(), pa.string()) for part in cut]), seed, purpose
    )


def test_coins_depend_on_the_key_only():
    expected = dict(zip(KEYS, _coins(KEYS), strict=True))
    order = np.random.default_rng(0).permutation(len(KEYS))
    shuffled = [KEYS[index] for index in order]
    assert dict(zip(shuffled, _coins(shuffled, chunks=13), strict=True)) == expected


def test_coins_of_a_sliced_array_respect_its_offset():
    whole = pa.array(KEYS, pa.string())
    np.testing.assert_array_equal(
        coins(pa.chunked_array([whole.slice(11, 90)]), 0, "text"), _coins(KEYS)[11:101]
    )


def test_coins_are_uniform_and_differ_by_seed_and_purpose():
    first = _coins(KEYS)
    assert len(np.unique(first)) == len(KEYS)
    assert stats.kstest(first, "uniform").pvalue > 0.01
    for other in (_coins(KEYS, seed=1), _coins(KEYS, purpose="leaf")):
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.05


def test_golden_coins():
    """Frozen: another hash would change every selection that was ever made."""
    np.testing.assert_allclose(_coins(["a", "b", "key-0"]), GOLDEN, rtol=0, atol=1e-15)


GOLDEN = [0.2818355544869633, 0.5422492044723332, 0.392914486629921]


def test_no_keys():
    assert coins(pa.chunked_array([], pa.string()), 0, "text").shape == (0,)
