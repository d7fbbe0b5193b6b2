"""The order of the rows in an epoch, as arithmetic over (key, index): computed, never stored.

`rows` is a keyed permutation of all rows, for pools that fit in memory. `blocks` is for disks: it
permutes blocks of neighboring rows and shuffles the rows of a window of blocks together, so that
only one window is read at a time. A keyed offset is added to the rows, so that the boundaries of
blocks move from epoch to epoch.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, UInt64

from cluster.draws import mix_bits
from train.config import ShuffleConfig

ROUNDS = 4  # of the Feistel network; four make a strong permutation (Luby and Rackoff 1988)
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: the increment of splitmix64


def shuffled(
    index: Int64[np.ndarray, " n"], size: int, key: int, config: ShuffleConfig
) -> Int64[np.ndarray, " n"]:
    """The rows of range(size) at the places `index` of the shuffled order.

    For every key, index = arange(size) gives a permutation.
    """
    if config.order == "rows":
        return permute(index, size, key)
    return _block_shuffled(index, size, key, config)


def _block_shuffled(
    index: Int64[np.ndarray, " n"], size: int, key: int, config: ShuffleConfig
) -> Int64[np.ndarray, " n"]:
    """Two permutations: of the slots inside each window, and of the whole blocks that they are in.

    With blocks of 2 rows and windows of 2 blocks, the places 0 1 2 3 of the first window become,
    say, the slots 2 0 3 1. These are in the blocks 1 0 1 0, which become, say, the blocks 4 2 4 2,
    so that the rows are 8 4 9 5. An incomplete last block stays the last one.
    """
    window_rows = config.block_rows * config.window_blocks
    slots = np.empty_like(index)

    # A batch touches few windows. Each has a key of its own, and the last one may be shorter.
    for window in np.unique(index // window_rows).tolist():
        inside = index // window_rows == window
        start = window * window_rows
        rows = min(window_rows, size - start)
        slots[inside] = start + permute(index[inside] - start, rows, mix(key, window))

    # A slot is row `row` of block `block`: the block moves, and its rows stay neighbors.
    num_blocks = size // config.block_rows
    block, row = np.divmod(slots, config.block_rows)
    is_whole = block < num_blocks
    block[is_whole] = permute(block[is_whole], num_blocks, mix(key))

    # Rotate all rows by an offset of this key.
    return (block * config.block_rows + row + key % size) % size


def permute(index: Int64[np.ndarray, " n"], size: int, key: int) -> Int64[np.ndarray, " n"]:
    """Each index under a keyed pseudorandom permutation of range(size).

    A Feistel network with cycle walking (Black and Rogaway 2002). Of size 6 and with key 2, the
    network permutes 0 to 15: it sends 0, 1 and 2 to 1, 5 and 3. It sends 3 to 12, which is not
    below 6, so that 12 goes through again: to 15, then to 2. Likewise 4 ends at 0, after 10, and 5
    at 4. The indices 0 1 2 3 4 5 become 1 5 3 2 0 4.
    """
    # The network permutes the numbers of 2 * half bits. These are at most 4 * size numbers, so an
    # index takes at most four passes on average.
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    turns = [np.uint64(mix(key, turn)) for turn in range(ROUNDS)]

    # Values that land outside the range go through again. As the network is a permutation, each
    # cycle returns to the range, and no two indices end at the same value.
    value = index.astype(np.uint64)
    outside = np.ones(len(value), bool)

    while outside.any():
        left = value[outside] >> half
        right = value[outside] & mask
        for turn in turns:
            # One Feistel round: swap the halves, and xor one with a hash of the other. It can be
            # undone whatever the hash is, so it is a permutation.
            left, right = right, left ^ (mix_array(right ^ turn) & mask)
        value[outside] = (left << half) | right
        outside = value >= np.uint64(size)

    return value.astype(np.int64)


def key_hashes(keys: Sequence[str]) -> UInt64[np.ndarray, " n"]:
    """64 bits of each key's BLAKE2b: uniform, and the same on every machine."""
    digests = b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)

    # Read as little-endian whatever the machine's order is, then copied: frombuffer is read-only.
    return np.frombuffer(digests, np.dtype("<u8")).astype(np.uint64)


def mix(*values: int) -> int:
    """One 64-bit number from several; each bit depends on all of them, and on their order."""
    state = np.zeros(1, np.uint64)
    for value in values:
        state = mix_array(state ^ np.uint64(value % 2**64))
    return int(state[0])


def mix_array(x: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """One step of splitmix64 per element; the increment keeps 0 from being mapped to 0."""
    return np.asarray(mix_bits(x + GOLDEN))
