"""Shuffles are permutations, frozen, and those by blocks touch few blocks at a time."""

import numpy as np
import pytest

from train.config import ShuffleConfig
from train.shuffle import key_hashes, mix, permute, shuffled


@pytest.mark.parametrize("size", [1, 2, 3, 64, 65, 1000])
def test_permutation_reaches_every_place_once(size: int) -> None:
    images = permute(np.arange(size), size, key=5)
    assert sorted(images.tolist()) == list(range(size))


def test_permutations_of_other_keys_differ_and_none_is_ordered() -> None:
    first, second = (permute(np.arange(1000), 1000, key) for key in (1, 2))
    assert (first == second).mean() < 0.02
    assert abs(np.corrcoef(np.arange(1000), first)[0, 1]) < 0.1


def test_shuffle_is_frozen() -> None:
    """Golden: a change here silently breaks the resume of every run under way."""
    first = permute(np.arange(10), 1000, mix(0, 0)).tolist()
    assert first == [386, 241, 339, 151, 262, 919, 740, 427, 637, 222]
    assert key_hashes(["a"]).tolist() == [3405396810240292928]


@pytest.mark.parametrize("size", [1, 9, 10, 39, 40, 41, 200, 1003])
@pytest.mark.parametrize("key", [0, 7, mix(3)])
def test_shuffle_by_blocks_reaches_every_row_once(size: int, key: int) -> None:
    order = shuffled(np.arange(size), size, key, ShuffleConfig("blocks", 10, 4))
    assert sorted(order.tolist()) == list(range(size))


def test_a_window_of_the_shuffle_by_blocks_touches_its_blocks_only() -> None:
    size = 10_000
    key = 5
    config = ShuffleConfig("blocks", 50, 8)
    order = shuffled(np.arange(size), size, key, config)
    for window in range(size // 400):
        blocks = (order[window * 400 : (window + 1) * 400] - key) % size // 50
        assert len(np.unique(blocks)) == 8
    assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < 0.2
    assert (order == shuffled(np.arange(size), size, key + 1, config)).mean() < 0.02


def test_any_part_of_the_shuffle_by_blocks_is_computed_alone() -> None:
    size = 1003
    config = ShuffleConfig("blocks", 10, 4)
    whole = shuffled(np.arange(size), size, 9, config)
    for start, stop in ((0, 3), (37, 95), (990, 1003)):
        assert (
            shuffled(np.arange(start, stop), size, 9, config).tolist() == whole[start:stop].tolist()
        )


def test_sizes_without_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shuffle\.block_rows is 0"):
        ShuffleConfig("blocks", block_rows=0)
