"""Loops over rows of vectors, compiled by Numba: NumPy would need several passes over memory.

Each result depends on its own row alone, or adds rows in order. A sum of products may be reordered
to use the processor's vector unit, so it has the same bits on processors of one kind only. The
type checks of the tests cannot see into compiled code: hence `no_type_check`.
"""

from typing import no_type_check

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64

from cluster.compilation import compiled

# nnan: no value is NaN; nsz: the sign of zero does not matter. Both leave every sum as written.
# reassoc and contract let the compiler reorder sums and fuse multiply-adds, which vector units
# need: only for sums whose last bits may differ between kinds of processors.

compiled_as_written = compiled(fastmath={"nnan", "nsz"})
compiled_for_sums = compiled(fastmath={"nnan", "nsz", "reassoc", "contract"})


@compiled_for_sums
@no_type_check
def dot(x: Float32[np.ndarray, " d"], y: Float32[np.ndarray, " d"]) -> float:
    """Inner product in float64."""
    total = 0.0
    for i in range(len(x)):
        total += np.float64(x[i]) * np.float64(y[i])
    return total


@compiled_as_written
@no_type_check
def add_by_label(
    x: Float32[np.ndarray, "n d"],
    labels: Int32[np.ndarray, " n"],
    sums: Float64[np.ndarray, "k d"],
    counts: Int64[np.ndarray, " k"],
) -> float:
    """Add every row to the sum of its label, in row order; return the sum of squared lengths."""
    squares = 0.0
    for row in range(len(x)):
        total = sums[labels[row]]
        values = x[row]
        counts[labels[row]] += 1
        squares += dot(values, values)
        for i in range(len(values)):
            total[i] += values[i]

    return squares


@compiled_as_written
@no_type_check
def add_rows(
    rows: Float64[np.ndarray, "n d"],
    labels: Int64[np.ndarray, " n"],
    sums: Float64[np.ndarray, "k d"],
) -> None:
    """Add every row to the sum of its label. NumPy would copy the rows twice to do this."""
    for row in range(len(rows)):
        total = sums[labels[row]]
        values = rows[row]
        for i in range(len(values)):
            total[i] += values[i]


@compiled_for_sums
@no_type_check
def squared_distances(
    x: Float32[np.ndarray, "n d"],
    centroids: Float32[np.ndarray, "k d"],
    labels: Int32[np.ndarray, " n"],
    distances: Float32[np.ndarray, " n"],
) -> None:
    """Write |x - c|^2 to `distances`, where c is the centroid of the row's label.

    Differences are squared directly: |x|^2 - 2 x.c + |c|^2 would lose the digits of small
    distances.
    """
    for row in range(len(x)):
        values = x[row]
        center = centroids[labels[row]]
        total = np.float32(0)
        for i in range(len(values)):
            apart = values[i] - center[i]
            total += apart * apart
        distances[row] = total


@compiled_for_sums
@no_type_check
def scale_to_unit(x: Float32[np.ndarray, "n d"]) -> None:
    """Divide each row by its length, in place; zero rows stay zero."""
    for row in range(len(x)):
        values = x[row]
        length = np.float32(np.sqrt(dot(values, values)))
        if length > 0:
            for i in range(len(values)):
                values[i] /= length
