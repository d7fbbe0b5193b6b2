"""Random bits as a function of a number: what every seeded draw of the project is made of."""

import numpy as np
from jaxtyping import UInt64


def mix_bits(
    x: UInt64[np.ndarray, "..."] | np.uint64,
) -> UInt64[np.ndarray, "..."] | np.uint64:
    """64 bits that all depend on every bit of x: the finalizer of splitmix64 (Steele et al. 2014).

    A bijection, so different numbers stay different. 0 is mapped to 0.
    """
    # Products are meant to overflow; NumPy warns of that for single numbers.
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
