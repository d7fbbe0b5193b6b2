"""Search among perceptual hashes: the nearest known hash, by the number of bits that differ.

Up to 30,000 known hashes are all compared. More of them are stored in inverted lists around some of
them, and a search reads the 64 nearest lists. Both are binary indexes of FAISS. An all-zero hash
belongs to a flat image and has no neighbor.
"""

from typing import NamedTuple

import faiss
import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt8

from curation.pairs.pdq import HASH_BYTES, ORIENTATIONS, turned

HASH_BITS = 8 * HASH_BYTES
FAR = HASH_BITS + 1  # stands for the bits between two hashes of which one is missing
ALL_COMPARED = 30_000
PROBES = 64
BLOCK_ROWS = 512


class Nearest(NamedTuple):
    """Per hash, the bits to the nearest known hash, and its number; FAR and -1 if there is none."""

    bits: Int32[np.ndarray, " n"]
    number: Int64[np.ndarray, " n"]


class HashIndex:
    """Known hashes, numbered in the order of addition.

    All-zero hashes have numbers, too, but a search never returns them.
    """

    def __init__(self, sample: UInt8[np.ndarray, "n bytes"], expected: int) -> None:
        """An empty index for about `expected` hashes, such as those of the `sample`."""
        self.index: faiss.IndexBinary
        if expected <= ALL_COMPARED:
            self.index = faiss.IndexBinaryFlat(HASH_BITS)
        else:
            # 4 times the square root of the number is FAISS's advice. The centers of the lists are
            # evenly spaced hashes of the sample, so that nothing has to be trained.
            num_lists = min(int(4 * expected**0.5), len(sample))
            self.quantizer = faiss.IndexBinaryFlat(HASH_BITS)
            self.quantizer.add(sample[np.linspace(0, len(sample) - 1, num_lists).astype(int)])
            lists = faiss.IndexBinaryIVF(self.quantizer, HASH_BITS, num_lists)
            lists.nprobe = PROBES
            self.index = lists

        # The number of each hash that the index holds, which has no all-zero ones.
        self.numbers = np.empty(0, np.int64)
        self.num_added = 0

    def add(self, hashes: UInt8[np.ndarray, "n bytes"]) -> None:
        """Add hashes; their numbers follow on those of earlier ones."""
        usable = np.flatnonzero(hashes.any(axis=1))
        self.index.add(np.ascontiguousarray(hashes[usable]))
        self.numbers = np.concatenate([self.numbers, self.num_added + usable])
        self.num_added += len(hashes)

    def nearest(self, hashes: UInt8[np.ndarray, "n bytes"]) -> Nearest:
        """The nearest known hash to each of these, as they are."""
        bits = np.full(len(hashes), FAR, np.int32)
        number = np.full(len(hashes), -1, np.int64)
        usable = np.flatnonzero(hashes.any(axis=1))
        if not len(usable) or not len(self.numbers):
            return Nearest(bits, number)

        distances, places = self.index.search(np.ascontiguousarray(hashes[usable]), 1)
        # FAISS says -1 where the lists that it read are empty.
        is_known = places[:, 0] >= 0
        bits[usable[is_known]] = distances[is_known, 0]
        number[usable[is_known]] = self.numbers[places[is_known, 0]]
        return Nearest(bits, number)


def nearest_turned(index: HashIndex, hashes: UInt8[np.ndarray, "n bytes"]) -> Nearest:
    """The nearest known hash to each image in any orientation; of equal ones, the first."""
    # The orientations of an all-zero hash are not zero: set to zero, they stay without a neighbor.
    orientations = turned(hashes)
    orientations[~hashes.any(axis=1)] = 0
    each = index.nearest(orientations.reshape(-1, HASH_BYTES))

    bits = each.bits.reshape(-1, ORIENTATIONS)
    best = bits.argmin(axis=1)
    rows = np.arange(len(hashes))
    return Nearest(bits[rows, best], each.number.reshape(-1, ORIENTATIONS)[rows, best])


class Repeats(NamedTuple):
    """Images (right), each with an earlier image that it repeats (left), and the bits between.

    The earlier image is no repeat itself.
    """

    left: Int64[np.ndarray, " n"]
    right: Int64[np.ndarray, " n"]
    bits: Int32[np.ndarray, " n"]


def repeats_in_order(hashes: UInt8[np.ndarray, "n bytes"], most_bits: int) -> Repeats:
    """The images that repeat an earlier one: at most `most_bits` apart in some orientation.

    Images go in order, and only those that are no repeat themselves are compared with later ones.
    Memory is that of the index, and one pair per repeat.
    """
    index = HashIndex(hashes, len(hashes))
    first = np.empty(0, np.int64)  # positions of the images in the index
    repeats = [Repeats(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int32))]

    # Each block is compared with the index, then within itself; what is no repeat is indexed.
    for start in range(0, len(hashes), BLOCK_ROWS):
        block = hashes[start : start + BLOCK_ROWS]
        before = nearest_turned(index, block)
        is_repeat = before.bits <= most_bits
        positions = np.flatnonzero(is_repeat)
        repeats.append(
            Repeats(first[before.number[positions]], start + positions, before.bits[positions])
        )

        # The other images of the block may repeat one another.
        rest = np.flatnonzero(~is_repeat)
        within = _repeats_within(block[rest], most_bits)
        repeats.append(Repeats(start + rest[within.left], start + rest[within.right], within.bits))

        fresh = np.setdiff1d(np.arange(len(rest)), within.right)
        index.add(block[rest[fresh]])
        first = np.concatenate([first, start + rest[fresh]])

    return Repeats(*(np.concatenate(parts) for parts in zip(*repeats, strict=True)))


def _repeats_within(hashes: UInt8[np.ndarray, "n bytes"], most_bits: int) -> Repeats:
    """The repeats within a block, from the distances of all its pairs."""
    bits = distances(hashes)
    is_close = np.tril(bits <= most_bits, -1)  # row i has True at earlier images only

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
    """Bits between all pairs of images: the fewest over the orientations of the first."""
    signs = _signs(hashes)
    orientations = turned(hashes)
    nearest = np.full((len(hashes), len(hashes)), FAR, np.int32)

    for number in range(ORIENTATIONS):
        # Of signs +1 and -1, the product is 256 less twice the number of bits that differ. Such
        # small integers are exact in float32.
        products = _signs(orientations[:, number]) @ signs.T
        nearest = np.minimum(nearest, ((HASH_BITS - products) / 2).astype(np.int32))

    is_flat = ~hashes.any(axis=1)
    nearest[is_flat] = FAR
    nearest[:, is_flat] = FAR
    return nearest


def _signs(hashes: UInt8[np.ndarray, "n bytes"]) -> Float32[np.ndarray, "n bits"]:
    """Bits as +1 and -1."""
    return np.unpackbits(hashes, axis=1).astype(np.float32) * 2 - 1


def form_distances(
    ours: UInt8[np.ndarray, "pairs hashes bytes"], theirs: UInt8[np.ndarray, "pairs forms bytes"]
) -> Int32[np.ndarray, " pairs"]:
    """Per pair of images, the fewest bits between one of them and a form of the other.

    The one is compared in any orientation; the first form of an image is the image itself.
    """
    bits = np.minimum(_to_forms(ours[:, 0], theirs), _to_forms(theirs[:, 0], ours))
    bits[~(ours[:, 0].any(axis=1) & theirs[:, 0].any(axis=1))] = FAR
    return bits


def _to_forms(
    images: UInt8[np.ndarray, "pairs bytes"], forms: UInt8[np.ndarray, "pairs forms bytes"]
) -> Int32[np.ndarray, " pairs"]:
    # A hash of 32 bytes is four 64-bit words, whose differing bits the processor counts.
    nearest = np.full(len(images), FAR, np.int32)
    orientations = np.ascontiguousarray(turned(images)).view(np.uint64)
    words = np.ascontiguousarray(forms).view(np.uint64)
    for number in range(ORIENTATIONS):
        differing = np.bitwise_count(orientations[:, number, None] ^ words).sum(
            axis=2, dtype=np.int32
        )
        nearest = np.minimum(nearest, differing.min(axis=1))
    return nearest
