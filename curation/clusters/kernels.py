"""Loops over rows of vectors that NumPy would make in several passes over memory, compiled by
Numba.

Each result depends on its own row alone, or adds rows in order. Sums of products are made in the
order of the processor's vector unit, and are the same on processors of one kind. Compiled code
cannot call the tests' type checks.
"""

from collections.abc import Callable
from typing import Any, no_type_check

import numba
import numpy as np
from jaxtyping import Float32, Float64, Int8, Int32, Int64
from llvmlite import ir
from numba.extending import intrinsic

CHUNK = 64  # columns
INT8_MOST = np.float32(127)
SMALLEST = np.float32(1e-30)
LOWEST = np.float32(-np.inf)

compiled = numba.njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})
compiled_for_sums = numba.njit(
    cache=True, nogil=True, fastmath={"nnan", "nsz", "reassoc", "contract"}
)


@intrinsic
def larger(_: Any, a: Any, b: Any) -> tuple[Any, Callable[..., Any]]:
    """The larger of two float32 numbers, as LLVM's own instruction.

    LLVM turns a comparison in a loop into masked stores or scalar code, 10 times slower on AVX2
    than `vmaxps`.
    """

    def generate(_: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        float32 = ir.FloatType()
        function_type = ir.FunctionType(float32, [float32, float32])
        function = builder.module.globals.get("llvm.maxnum.f32")
        function = function or ir.Function(builder.module, function_type, "llvm.maxnum.f32")
        return builder.call(function, arguments, fastmath=("nnan", "nsz"))

    return numba.float32(numba.float32, numba.float32), generate


@compiled_for_sums
@no_type_check
def shift_and_round(
    x: Float32[np.ndarray, "n d"],
    mean: Float32[np.ndarray, " d"],
    rounded: Int8[np.ndarray, "n d"],
    scale: Float32[np.ndarray, " n"],
    lost: Float32[np.ndarray, " n"],
    length: Float32[np.ndarray, " n"],
) -> None:
    """x - mean as `scale` times integers from -127 to 127, with one scale per row.

    `length` is |x - mean|, and `lost` is |x - mean - scale * rounded|.
    """
    dim = x.shape[1]
    shifted = np.empty(dim, np.float32)
    for row in range(len(x)):
        values = x[row]
        integers = rounded[row]

        most = SMALLEST
        for i in range(dim):
            shifted[i] = values[i] - mean[i]
            most = larger(most, abs(shifted[i]))

        per_unit = INT8_MOST / most
        for i in range(dim):
            integers[i] = np.int8(np.rint(shifted[i] * per_unit))

        error = np.float32(0)
        square = np.float32(0)
        for i in range(dim):
            apart = shifted[i] * per_unit - np.float32(integers[i])
            error += apart * apart
            square += shifted[i] * shifted[i]
        scale[row] = most / INT8_MOST
        lost[row] = scale[row] * np.sqrt(error)
        length[row] = np.sqrt(square)


@compiled_for_sums
@no_type_check
def shortlist(
    products: Int32[np.ndarray, "n k"],
    scale: Float32[np.ndarray, " n"],
    bias: Float32[np.ndarray, " k"],
    margin: Float32[np.ndarray, " n"],
    ends: Int64[np.ndarray, " n_plus_1"],
    columns: Int32[np.ndarray, " n_times_k"],
) -> None:
    """The columns of each row whose score, product * scale + bias, is within the margin of the
    row's best.

    Those of row i are columns[ends[i] : ends[i + 1]]. The largest score of each chunk of columns is
    kept, so that the second look is at few chunks.
    """
    num_columns = products.shape[1]
    num_chunks = (num_columns + CHUNK - 1) // CHUNK
    tops = np.empty(num_chunks, np.float32)
    count = 0
    ends[0] = 0

    for row in range(len(products)):
        values = products[row]
        unit = scale[row]

        best = LOWEST
        for chunk in range(num_chunks):
            top = LOWEST
            for column in range(chunk * CHUNK, min(chunk * CHUNK + CHUNK, num_columns)):
                top = larger(top, np.float32(values[column]) * unit + bias[column])
            tops[chunk] = top
            best = larger(best, top)

        # Two roundings of one score (fused or not) may differ: the bound's slack covers that.
        least = best - margin[row]
        for chunk in range(num_chunks):
            if tops[chunk] >= least:
                for column in range(chunk * CHUNK, min(chunk * CHUNK + CHUNK, num_columns)):
                    if np.float32(values[column]) * unit + bias[column] >= least:
                        columns[count] = column
                        count += 1
        ends[row + 1] = count


@compiled
@no_type_check
def decide(
    x: Float32[np.ndarray, "n d"],
    centroids: Float32[np.ndarray, "k d"],
    bias: Float64[np.ndarray, " k"],
    ends: Int64[np.ndarray, " n_plus_1"],
    columns: Int32[np.ndarray, " pairs"],
    labels: Int32[np.ndarray, " n"],
) -> None:
    """The candidate of each row with the largest x.c + bias, in float64; the lowest when several
    are equal.
    """
    for row in range(len(x)):
        best = columns[ends[row]]
        if ends[row + 1] - ends[row] > 1:
            top = -np.inf
            for candidate in range(ends[row], ends[row + 1]):
                column = columns[candidate]
                score = dot(x[row], centroids[column]) + bias[column]
                if score > top or (score == top and column < best):
                    top = score
                    best = column
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
        total = sums[labels[row]]
        values = x[row]
        counts[labels[row]] += 1
        squares += dot(values, values)
        for i in range(len(values)):
            total[i] += values[i]

    return squares


@compiled
@no_type_check
def add_rows(
    rows: Float64[np.ndarray, "n d"],
    labels: Int64[np.ndarray, " n"],
    sums: Float64[np.ndarray, "k d"],
) -> None:
    """Add every row to the sum of its label; NumPy makes two copies of the rows for that."""
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
    """|x - c|^2 to the centroid of each row's label."""
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
