"""Where every row of an epoch stands, as arithmetic over (key, index): computed, never stored.

`rows` is a keyed permutation of all rows, for pools that fit in memory. `blocks` is for disks: blocks of neighbouring
rows are permuted, and the rows of a window of blocks are shuffled together, so that a window is all that is read at a
time. The rows are turned by a keyed offset first, so that the cut between blocks moves from epoch to epoch.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, UInt64

from train.config import ShuffleConfig

ROUNDS = 4
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def shuffled(index: Int64[np.ndarray, " n"], size: int, key: int, config: ShuffleConfig) -> Int64[np.ndarray, " n"]:
    """The rows of range(size) at some places of the shuffled order; a permutation for every key."""
    if config.order == "rows":
        return permute(index, size, key)
    return _block_shuffled(index, size, key, config)


def _block_shuffled(
    index: Int64[np.ndarray, " n"], size: int, key: int, config: ShuffleConfig
) -> Int64[np.ndarray, " n"]:
    """Slots of a window are permuted; a slot lies in one of the permuted blocks; the last, short block stays last."""
    num_blocks, window_rows = size // config.block_rows, config.block_rows * config.window_blocks
    slots = np.empty_like(index)
    for window in np.unique(index // window_rows).tolist():
        inside, start = index // window_rows == window, window * window_rows
        rows = min(window_rows, size - start)
        slots[inside] = start + permute(index[inside] - start, rows, mix(key, window))
    block, row = np.divmod(slots, config.block_rows)
    is_whole = block < num_blocks
    block[is_whole] = permute(block[is_whole], num_blocks, mix(key))
    return (block * config.block_rows + row + key % size) % size


def permute(index: Int64[np.ndarray, " n"], size: int, key: int) -> Int64[np.ndarray, " n"]:
    """Where a keyed pseudorandom permutation of range(size) sends each index: a Feistel network with cycle walking."""
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    turns = [np.uint64(mix(key, turn)) for turn in range(ROUNDS)]
    value = index.astype(np.uint64)
    outside = np.ones(len(value), bool)
    while outside.any():
        left, right = value[outside] >> half, value[outside] & mask
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
    """One 64-bit number from several; a change in any changes it all."""
    state = np.zeros(1, np.uint64)
    for value in values:
        state = mix_array(state ^ np.uint64(value % 2**64))
    return int(state[0])


def mix_array(x: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """The finaliser of splitmix64, element by element."""
    x = x + GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
