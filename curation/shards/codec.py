"""Number formats of stored vectors: float16, bfloat16 and int8 with one float32 scale per token.

bfloat16 is stored as its 16 bits in uint16, because Arrow does not have the type.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float32, Shaped

Dtype = Literal["float16", "bfloat16", "int8"]
STORED_TYPES: dict[str, np.dtype] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
    "int8": np.dtype(np.int8),
}


def encode_tokens(
    x: Float32[np.ndarray, "n t d"], dtype: Dtype
) -> tuple[Shaped[np.ndarray, "n t d"], Float32[np.ndarray, "n t"] | None]:
    """(vectors in the stored format, one scale per token for int8 or else None).

    Raises ValueError for values that the format cannot store.
    """
    if dtype == "float16":
        # Overflow becomes infinity, which the check below finds.
        with np.errstate(over="ignore"):
            stored = x.astype(np.float16)
            scale = None
        finite = bool(np.isfinite(stored).all())
    else:
        finite = bool(np.isfinite(x).all())
        stored, scale = _encode_bfloat16(x) if dtype == "bfloat16" else _encode_int8(x)

    if not finite:
        raise ValueError(
            f"embedding values up to {np.abs(x).max()} do not fit {dtype}: values must be finite, "
            "and within 65504 for float16; check the backbone's weights, or store bfloat16"
        )

    return stored, scale


def _encode_bfloat16(x: Float32[np.ndarray, "n t d"]) -> tuple[Shaped[np.ndarray, "n t d"], None]:
    """Round to nearest, ties to even, as processors do."""
    # bfloat16 is the upper half of a float32. Adding just under half of a unit of the upper half
    # carries into it if the lower half is above one half; at exactly one half, the last bit of the
    # upper half is added, so that only an odd one is rounded up.
    bits = np.ascontiguousarray(x).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16), None


def _encode_int8(
    x: Float32[np.ndarray, "n t d"],
) -> tuple[Shaped[np.ndarray, "n t d"], Float32[np.ndarray, "n t"]]:
    # The largest value of a token becomes 127. A token of zeros has scale 0 and is divided by 1.
    scale = np.abs(x).max(axis=2, initial=0.0).astype(np.float32) / np.float32(127)
    divisor = np.where(scale > 0, scale, np.float32(1))
    with np.errstate(invalid="ignore"):
        return np.rint(x / divisor[:, :, None]).astype(np.int8), scale


def decode_tokens(
    stored: Shaped[np.ndarray, "n t d"], scale: Float32[np.ndarray, "n t"] | None, dtype: Dtype
) -> Float32[np.ndarray, "n t d"]:
    """Stored vectors as float32 copies."""
    if dtype == "float16":
        return stored.astype(np.float32)
    if dtype == "bfloat16":
        # The stored 16 bits become the upper half of a float32. In place: no second large array.
        bits = stored.astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)

    assert scale is not None
    decoded = stored.astype(np.float32)
    decoded *= scale[:, :, None]
    return decoded
