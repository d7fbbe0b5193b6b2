"""Search among perceptual hashes: for each hash the nearest of many known ones, by number of bits
that differ.

Up to 30,000 known hashes are all compared, in blocks; more are kept in inverted lists around some
of them, of which a search reads the 64 nearest. Both are FAISS's binary indexes. An all-zero hash
belongs to a flat image and has no neighbor.
"""

from typing import NamedTuple

import faiss
import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt8

from curation.pairs.pdq import HASH_BYTES, ORIENTATIONS, turned

HASH_BITS = 8 * HASH_BYTES
FAR = HASH_BITS + 1  # bits between hashes of which one is missing
ALL_COMPARED = 30_000
PROBES = 64
BLOCK_ROWS = 512


class Nearest(NamedTuple):
    """Per hash, the bits in which the nearest known hash differs, and its number; FAR and -1 where
    there is none.
    """

    bits: Int32[np.ndarray, " n"]
    number: Int64[np.ndarray, " n"]


class HashIndex:
    """Known hashes, numbered in the order they were added; all-zero ones take a number and are
    never returned.
    """

    def __init__(self, sample: UInt8[np.ndarray, "n bytes"], expected: int) -> None:
        """For about `expected` hashes, of which `sample` has some."""
        self.index: faiss.IndexBinary
        if expected <= ALL_COMPARED:
            self.index = faiss.IndexBinaryFlat(HASH_BITS)
        else:
            num_lists = min(int(4 * expected**0.5), len(sample))
            self.quantizer = faiss.IndexBinaryFlat(HASH_BITS)
            self.quantizer.add(sample[np.linspace(0, len(sample) - 1, num_lists).astype(int)])
            lists = faiss.IndexBinaryIVF(self.quantizer, HASH_BITS, num_lists)
            lists.nprobe = PROBES
            self.index = lists

        self.numbers = np.empty(0, np.int64)
        self.num_added = 0

    def add(self, hashes: UInt8[np.ndarray, "n bytes"]) -> None:
        usable = np.flatnonzero(hashes.any(axis=1))
        self.index.add(np.ascontiguousarray(hashes[usable]))
        self.numbers = np.concatenate([self.numbers, self.num_added + usable])
        self.num_added += len(hashes)

    def nearest(self, hashes: UInt8[np.ndarray, "n bytes"]) -> Nearest:
        bits = np.full(len(hashes), FAR, np.int32)
        number = np.full(len(hashes), -1, np.int64)
        usable = np.flatnonzero(hashes.any(axis=1))
        if not len(usable) or not len(self.numbers):
            return Nearest(bits, number)

        distances, places = self.index.search(np.ascontiguousarray(hashes[usable]), 1)
        is_known = places[:, 0] >= 0
        bits[usable[is_known]] = distances[is_known, 0]
        number[usable[is_known]] = self.numbers[places[is_known, 0]]
        return Nearest(bits, number)


def nearest_turned(index: HashIndex, hashes: UInt8[np.ndarray, "n bytes"]) -> Nearest:
    """The nearest known hash to each image, upright, mirrored or turned by quarters; the first of
    equally near ones.
    """
    orientations = turned(hashes)
    orientations[~hashes.any(axis=1)] = 0
    each = index.nearest(orientations.reshape(-1, HASH_BYTES))

    bits = each.bits.reshape(-1, ORIENTATIONS)
    best = bits.argmin(axis=1)
    rows = np.arange(len(hashes))
    return Nearest(bits[rows, best], each.number.reshape(-1, ORIENTATIONS)[rows, best])


class Repeats(NamedTuple):
    """Images (right) that repeat an image before them which is no repeat itself (left), and the
    bits between them.
    """

    left: Int64[np.ndarray, " n"]
    right: Int64[np.ndarray, " n"]
    bits: Int32[np.ndarray, " n"]


def repeats_in_order(hashes: UInt8[np.ndarray, "n bytes"], most_bits: int) -> Repeats:
    """Go through images in order: one within `most_bits`, in any orientation, of an earlier one
    that stays is a repeat.

    Memory is that of the index: no pair is held but one per repeat.
    """
    index = HashIndex(hashes, len(hashes))
    first = np.empty(0, np.int64)  # positions of the images in the index
    found = [Repeats(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int32))]

    for start in range(0, len(hashes), BLOCK_ROWS):
        block = hashes[start : start + BLOCK_ROWS]
        before = nearest_turned(index, block)
        is_repeat = before.bits <= most_bits
        positions = np.flatnonzero(is_repeat)
        found.append(
            Repeats(first[before.number[positions]], start + positions, before.bits[positions])
        )

        # the others may repeat one another
        rest = np.flatnonzero(~is_repeat)
        within = _repeats_within(block[rest], most_bits)
        found.append(Repeats(start + rest[within.left], start + rest[within.right], within.bits))

        fresh = np.setdiff1d(np.arange(len(rest)), within.right)
        index.add(block[rest[fresh]])
        first = np.concatenate([first, start + rest[fresh]])

    return Repeats(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def _repeats_within(hashes: UInt8[np.ndarray, "n bytes"], most_bits: int) -> Repeats:
    """The same for a block, by all distances."""
    bits = distances(hashes)
    is_close = np.tril(bits <= most_bits, -1)

    left = []
    right = []
    is_repeat = np.zeros(len(hashes), bool)

    for row in np.flatnonzero(is_close.any(axis=1)).tolist():
        earlier = np.flatnonzero(is_close[row] & ~is_repeat)
        if len(earlier):
            is_repeat[row] = True
            left.append(earlier[bits[row, earlier].argmin()])
            right.append(row)

    pairs = np.array([left, right], np.int64)
    return Repeats(pairs[0], pairs[1], bits[pairs[1], pairs[0]])


def distances(hashes: UInt8[np.ndarray, "n bytes"]) -> Int32[np.ndarray, "n n"]:
    """Bits between all images, the least over the orientations of the first."""
    signs = _signs(hashes)
    orientations = turned(hashes)
    nearest = np.full((len(hashes), len(hashes)), FAR, np.int32)

    for number in range(ORIENTATIONS):
        # of signs +1 and -1, the product is 256 less twice the number of bits that differ, exactly
        products = _signs(orientations[:, number]) @ signs.T
        nearest = np.minimum(nearest, ((HASH_BITS - products) / 2).astype(np.int32))

    is_flat = ~hashes.any(axis=1)
    nearest[is_flat] = FAR
    nearest[:, is_flat] = FAR
    return nearest


def _signs(hashes: UInt8[np.ndarray, "n bytes"]) -> Float32[np.ndarray, "n bits"]:
    return np.unpackbits(hashes, axis=1).astype(np.float32) * 2 - 1


def form_distances(
    ours: UInt8[np.ndarray, "pairs hashes bytes"], theirs: UInt8[np.ndarray, "pairs forms bytes"]
) -> Int32[np.ndarray, " pairs"]:
    """Per pair of images, the fewest bits between one in any orientation and the other or one of
    its forms.

    The first hash of an image is its own, further ones are those of its forms.
    """
    bits = np.minimum(_to_forms(ours[:, 0], theirs), _to_forms(theirs[:, 0], ours))
    bits[~(ours[:, 0].any(axis=1) & theirs[:, 0].any(axis=1))] = FAR
    return bits


def _to_forms(
    images: UInt8[np.ndarray, "pairs bytes"], forms: UInt8[np.ndarray, "pairs forms bytes"]
) -> Int32[np.ndarray, " pairs"]:
    nearest = np.full(len(images), FAR, np.int32)
    orientations = np.ascontiguousarray(turned(images)).view(np.uint64)
    words = np.ascontiguousarray(forms).view(np.uint64)
    for number in range(ORIENTATIONS):
        differing = np.bitwise_count(orientations[:, number, None] ^ words).sum(
            axis=2, dtype=np.int32
        )
        nearest = np.minimum(nearest, differing.min(axis=1))
    return nearest
