"""One random number in [0, 1) per key: a hash of (seed, purpose, key).

A key has the same number in any order, shard or process.
"""

import zlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float64, UInt8, UInt64

from cluster.draws import mix_bits

# Constants of the 64-bit FNV-1a hash (Fowler, Noll, Vo).
FNV_OFFSET = np.uint64(0xCBF29CE484222325)
FNV_PRIME = np.uint64(0x100000001B3)


def coins(keys: pa.ChunkedArray, seed: int, purpose: str) -> Float64[np.ndarray, " rows"]:
    """A uniform number per key. Numbers of different seeds or purposes are independent."""
    salt = mix_bits(np.uint64(seed % 2**64) ^ mix_bits(np.uint64(zlib.crc32(purpose.encode()))))
    hashed = [mix_bits(_fnv(chunk) ^ salt) for chunk in keys.cast(pa.large_string()).chunks]
    together = np.concatenate(hashed) if hashed else np.empty(0, np.uint64)
    # The 53 highest bits are as many as a float64 holds: every result is exact and below 1.
    return (together >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _fnv(keys: pa.LargeStringArray) -> UInt64[np.ndarray, " n"]:
    """FNV-1a of the UTF-8 bytes of each key.

    FNV-1a takes one byte after the other. All keys advance together: NumPy loops over byte
    positions (tens), not over keys (millions).
    """
    lengths = pc.binary_length(keys).to_numpy(zero_copy_only=False).astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    data = _utf8(keys)
    hashed = np.full(len(keys), FNV_OFFSET)

    # Longest keys first: the keys that have a byte at a position are then the first
    # alive[position]. That is the number of lengths above the position; both are negated, because
    # searchsorted needs ascending numbers.
    order = np.argsort(-lengths, kind="stable")
    alive = np.searchsorted(-lengths[order], -np.arange(lengths.max(initial=0)), side="left")

    # The product is defined modulo 2^64, so overflow is intended.
    with np.errstate(over="ignore"):
        for position, count in enumerate(alive.tolist()):
            rows = order[:count]
            hashed[rows] = (hashed[rows] ^ data[starts[rows] + position]) * FNV_PRIME

    return hashed


def _utf8(keys: pa.LargeStringArray) -> UInt8[np.ndarray, " bytes"]:
    """The bytes of all strings of a chunk, one after another, without a copy."""
    if not len(keys):
        return np.empty(0, np.uint8)

    # The buffers of a slice are those of the whole array: start at the slice's own offset.
    _, offsets, data = keys.buffers()
    bounds = np.frombuffer(offsets, np.int64)[keys.offset : keys.offset + len(keys) + 1]
    empty = np.empty(0, np.uint8)
    return np.frombuffer(data, np.uint8)[bounds[0] : bounds[-1]] if data is not None else empty
