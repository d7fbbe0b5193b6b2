"""The search among hashes against plain loops over all pairs."""

import numpy as np
import pytest

import curation.choice.hashes
from curation.choice.hashes import (
    FAR,
    HashIndex,
    distances,
    form_distances,
    nearest_turned,
    repeats_in_order,
)
from curation.pairs.pdq import turned


def random_hashes(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32), dtype=np.uint8)


def with_flips(hashes, count, seed):
    """The hashes with `count` bits of each inverted."""
    rng = np.random.default_rng(seed)
    bits = np.unpackbits(hashes, axis=1)
    for row in bits:
        row[rng.choice(256, count, replace=False)] ^= 1
    return np.packbits(bits, axis=1)


def in_any_orientation(hashes, seed):
    orientation = np.random.default_rng(seed).integers(0, 8, len(hashes))
    return turned(hashes)[np.arange(len(hashes)), orientation]


def by_hand(ours, theirs):
    """Bits between all, the least over orientations of ours."""
    between = (
        np.bitwise_count(turned(ours)[:, :, None] ^ theirs).sum(axis=3).min(axis=1).astype(int)
    )
    between[~ours.any(axis=1)] = FAR
    between[:, ~theirs.any(axis=1)] = FAR
    return between


def test_nearest_turned_equals_a_loop_over_all_orientations():
    known = random_hashes(50)
    known[7] = 0
    asked = np.concatenate([in_any_orientation(with_flips(known, 20, 1), 2), random_hashes(30, 3)])
    index = HashIndex(known, len(known))
    index.add(known[:20])
    index.add(known[20:])
    nearest = nearest_turned(index, asked)
    expected = by_hand(asked, known)
    np.testing.assert_array_equal(nearest.bits, expected.min(axis=1))
    compared = nearest.number >= 0
    np.testing.assert_array_equal(
        expected[np.flatnonzero(compared), nearest.number[compared]], nearest.bits[compared]
    )
    assert (nearest.number[:7] == np.arange(7)).all()


def test_inverted_lists_find_the_copies(monkeypatch):
    """Random hashes are the worst case: nothing about them is clustered."""
    monkeypatch.setattr(curation.choice.hashes, "ALL_COMPARED", 1000)
    known = random_hashes(8000)
    index = HashIndex(known, len(known))
    index.add(known)
    for bits, least in ((10, 0.995), (30, 0.93)):
        nearest = index.nearest(with_flips(known[::4], bits, bits))
        assert (nearest.number == np.arange(0, 8000, 4)).mean() >= least


@pytest.mark.parametrize("block_rows", [7, 512])
def test_repeats_equal_going_through_images_in_order(monkeypatch, block_rows):
    monkeypatch.setattr(curation.choice.hashes, "BLOCK_ROWS", block_rows)
    first = random_hashes(40)
    chained = with_flips(first, 18, 1)
    hashes = np.concatenate(
        [first, in_any_orientation(chained, 2), with_flips(chained, 18, 3), first * 0]
    )
    hashes = hashes[np.random.default_rng(4).permutation(len(hashes))]
    bits = by_hand(hashes, hashes)

    kept = []
    expected = {}
    for row in range(len(hashes)):
        nearest = min(kept, key=lambda other: bits[row, other], default=None)
        if nearest is None or bits[row, nearest] > 20:
            kept.append(row)
        else:
            expected[row] = bits[row, nearest]

    repeats = repeats_in_order(hashes, 20)
    assert dict(zip(repeats.right.tolist(), repeats.bits.tolist(), strict=True)) == expected
    assert set(repeats.left.tolist()) <= set(kept)
    assert len(expected) > 30


def test_distances_equal_a_loop():
    hashes = random_hashes(20)
    hashes[3] = 0
    np.testing.assert_array_equal(distances(hashes), by_hand(hashes, hashes))


def test_form_distances_take_the_nearest_of_all_forms():
    ours = random_hashes(15 * 4).reshape(15, 4, 32)
    theirs = random_hashes(15 * 3, 1).reshape(15, 3, 32)
    theirs[0, 2] = turned(ours[0, :1])[0, 5]
    ours[1, 3] = theirs[1, 0]
    theirs[2, 0] = 0
    expected = [
        min(by_hand(a[:1], b).min(), by_hand(b[:1], a).min()) if b[0].any() else FAR
        for a, b in zip(ours, theirs, strict=True)
    ]
    np.testing.assert_array_equal(form_distances(ours, theirs), expected)
    assert expected[:3] == [0, 0, FAR]
