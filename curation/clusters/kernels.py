"""Loops over rows of vectors that NumPy would make in several passes over memory, compiled by Numba.

Each result depends on its own row alone, or adds rows in order. Maxima are taken over lanes, the way a processor's
vector unit works: the compiler does not find that by itself. Sums of products take the order of that unit, too, and are
the same on processors of one kind. Compiled code cannot call the tests' type checks.
"""

from typing import no_type_check

import numba
import numpy as np
from jaxtyping import Float32, Float64, Int8, Int32, Int64

LANES = 64
INT8_MOST = np.float32(127)
SMALLEST = np.float32(1e-30)
LOWEST = np.float32(-np.inf)

compiled = numba.njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})
compiled_for_sums = numba.njit(cache=True, nogil=True, fastmath={"nnan", "nsz", "reassoc", "contract"})


@compiled_for_sums
@no_type_check
def shift_and_round(
    x: Float32[np.ndarray, "n d"],
    mean: Float32[np.ndarray, " d"],
    rounded: Int8[np.ndarray, "n d"],
    unit: Float32[np.ndarray, " n"],
    lost: Float32[np.ndarray, " n"],
    length: Float32[np.ndarray, " n"],
) -> None:
    """x - mean as `unit` times integers a row; `lost` is |x - mean - unit * rounded|, `length` is |x - mean|."""
    dim = x.shape[1]
    whole = dim // LANES * LANES
    shifted, tops = np.empty(dim, np.float32), np.empty(LANES, np.float32)
    for row in range(len(x)):
        values, integers = x[row], rounded[row]
        tops[:] = SMALLEST
        for start in range(0, whole, LANES):
            part, middle = values[start : start + LANES], mean[start : start + LANES]
            moved = shifted[start : start + LANES]
            for lane in range(LANES):
                moved[lane] = part[lane] - middle[lane]
                size = abs(moved[lane])
                tops[lane] = size if size > tops[lane] else tops[lane]
        for i in range(whole, dim):
            shifted[i] = values[i] - mean[i]
            tops[0] = max(tops[0], abs(shifted[i]))
        most = tops.max()
        scale = INT8_MOST / most
        for i in range(dim):
            integers[i] = np.int8(np.rint(shifted[i] * scale))
        error, square = np.float32(0), np.float32(0)
        for i in range(dim):
            apart = shifted[i] * scale - np.float32(integers[i])
            error += apart * apart
            square += shifted[i] * shifted[i]
        unit[row] = most / INT8_MOST
        lost[row], length[row] = unit[row] * np.sqrt(error), np.sqrt(square)


@compiled
@no_type_check
def shortlist(
    products: Int32[np.ndarray, "n k"] | Float32[np.ndarray, "n k"],
    unit: Float32[np.ndarray, " n"],
    bias: Float32[np.ndarray, " k"],
    margin: Float32[np.ndarray, " n"],
    ends: Int64[np.ndarray, " n_plus_1"],
    found: Int32[np.ndarray, " n_times_k"],
) -> None:
    """The columns of each row whose score, product * unit + bias, is within the margin of the row's best.

    Those of row i are found[ends[i] : ends[i + 1]].
    """
    num_columns, count = products.shape[1], 0
    whole = num_columns // LANES * LANES
    tops = np.empty(LANES, np.float32)
    ends[0] = 0
    for row in range(len(products)):
        values, scale = products[row], unit[row]
        tops[:] = LOWEST
        for start in range(0, whole, LANES):
            part, offset = values[start : start + LANES], bias[start : start + LANES]
            for lane in range(LANES):
                score = np.float32(part[lane]) * scale + offset[lane]
                tops[lane] = score if score > tops[lane] else tops[lane]
        for column in range(whole, num_columns):
            score = np.float32(values[column]) * scale + bias[column]
            tops[column - whole] = max(tops[column - whole], score)
        least = tops.max() - margin[row]
        for lane in range(LANES):
            if tops[lane] >= least:
                for column in range(lane, num_columns, LANES):
                    if np.float32(values[column]) * scale + bias[column] >= least:
                        found[count] = column
                        count += 1
        ends[row + 1] = count


@compiled
@no_type_check
def decide(
    x: Float32[np.ndarray, "n d"],
    centroids: Float32[np.ndarray, "k d"],
    bias: Float64[np.ndarray, " k"],
    ends: Int64[np.ndarray, " n_plus_1"],
    found: Int32[np.ndarray, " pairs"],
    labels: Int32[np.ndarray, " n"],
) -> None:
    """The column among those found with the largest x.c + bias, in float64; the lowest when several are equal."""
    for row in range(len(x)):
        best = found[ends[row]]
        if ends[row + 1] - ends[row] > 1:
            top = -np.inf
            for place in range(ends[row], ends[row + 1]):
                column = found[place]
                score = dot(x[row], centroids[column]) + bias[column]
                if score > top or (score == top and column < best):
                    top, best = score, column
        labels[row] = best


@compiled_for_sums
@no_type_check
def dot(x: Float32[np.ndarray, " d"], y: Float32[np.ndarray, " d"]) -> float:
    """Inner product in float64."""
    total = 0.0
    for i in range(len(x)):
        total += np.float64(x[i]) * np.float64(y[i])
    return total


@compiled
@no_type_check
def add_by_label(
    x: Float32[np.ndarray, "n d"],
    labels: Int32[np.ndarray, " n"],
    sums: Float64[np.ndarray, "k d"],
    counts: Int64[np.ndarray, " k"],
) -> float:
    """Add every row to the sum of its label, in row order; the sum of all squared lengths."""
    squares = 0.0
    for row in range(len(x)):
        total, values = sums[labels[row]], x[row]
        counts[labels[row]] += 1
        squares += dot(values, values)
        for i in range(len(values)):
            total[i] += values[i]
    return squares


@compiled
@no_type_check
def add_rows(
    rows: Float64[np.ndarray, "n d"], labels: Int64[np.ndarray, " n"], sums: Float64[np.ndarray, "k d"]
) -> None:
    """Add every row to the sum of its label; NumPy makes two copies of the rows for that."""
    for row in range(len(rows)):
        total, values = sums[labels[row]], rows[row]
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
    """|x - c|^2 to the centroid of each row's label."""
    for row in range(len(x)):
        values, center = x[row], centroids[labels[row]]
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
