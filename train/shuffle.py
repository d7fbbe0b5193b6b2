"""The order of the rows in an epoch, as arithmetic over (key, index): computed, never stored.

`rows` is a keyed permutation of all rows, for pools that fit in memory. `blocks` is for disks:
blocks of neighboring rows are permuted, and the rows of a window of blocks are shuffled together,
so that only a window is read at a time. A keyed offset is added to the rows, so that the cuts
between blocks move from epoch to epoch.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, UInt64

from cluster.draws import mix_bits
from train.config import ShuffleConfig

ROUNDS = 4
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def shuffled(
    index: Int64[np.ndarray, " n"], size: int, key: int, config: ShuffleConfig
) -> Int64[np.ndarray, " n"]:
    """The rows of range(size) at some places of the shuffled order; a permutation for every key."""
    if config.order == "rows":
        return permute(index, size, key)
    return _block_shuffled(index, size, key, config)


def _block_shuffled(
    index: Int64[np.ndarray, " n"], size: int, key: int, config: ShuffleConfig
) -> Int64[np.ndarray, " n"]:
    """Two permutations: of the slots inside each window, and of the whole blocks that slots belong
    to.

    With blocks of 2 rows and windows of 2 blocks, the places 0 1 2 3 of the first window become,
    say, the slots 2 0 3 1; these belong to the blocks 1 0 1 0, which become, say, the blocks 4 2 4
    2, and so the rows 8 4 9 5. A last block that is not whole stays last.
    """
    window_rows = config.block_rows * config.window_blocks
    slots = np.empty_like(index)
    for window in np.unique(index // window_rows).tolist():
        inside = index // window_rows == window
        start = window * window_rows
        rows = min(window_rows, size - start)
        slots[inside] = start + permute(index[inside] - start, rows, mix(key, window))

    num_blocks = size // config.block_rows
    block, row = np.divmod(slots, config.block_rows)
    is_whole = block < num_blocks
    block[is_whole] = permute(block[is_whole], num_blocks, mix(key))

    return (block * config.block_rows + row + key % size) % size


def permute(index: Int64[np.ndarray, " n"], size: int, key: int) -> Int64[np.ndarray, " n"]:
    """Where a keyed pseudorandom permutation of range(size) sends each index: a Feistel network
    with cycle walking.
    """
    # The network permutes the numbers of 2 * half bits, of which `size` needs at least half.
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    turns = [np.uint64(mix(key, turn)) for turn in range(ROUNDS)]

    # Numbers that land outside are sent through again; as the network is a permutation, each ends
    # inside, at a place of its own.
    value = index.astype(np.uint64)
    outside = np.ones(len(value), bool)

    while outside.any():
        left = value[outside] >> half
        right = value[outside] & mask
        for turn in turns:
            left, right = right, left ^ (mix_array(right ^ turn) & mask)
        value[outside] = (left << half) | right
        outside = value >= np.uint64(size)

    return value.astype(np.int64)


def key_hashes(keys: Sequence[str]) -> UInt64[np.ndarray, " n"]:
    """64 bits of each key's BLAKE2b: uniform, and the same on every machine."""
    digests = b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(digests, np.dtype("<u8")).astype(np.uint64)


def mix(*values: int) -> int:
    """One 64-bit number from several; a change in any of them changes all of its bits."""
    state = np.zeros(1, np.uint64)
    for value in values:
        state = mix_array(state ^ np.uint64(value % 2**64))
    return int(state[0])


def mix_array(x: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """splitmix64's step, element by element: 0 becomes a number like any other."""
    return np.asarray(mix_bits(x + GOLDEN))
