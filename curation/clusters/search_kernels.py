"""Loops of the search for the nearest centroid, compiled by Numba.

Each row is searched by itself. The type checks of the tests cannot see into compiled code: hence
`no_type_check`.
"""

from collections.abc import Callable
from typing import Any, no_type_check

import numba
import numpy as np
from jaxtyping import Float32, Float64, Int8, Int32, Int64
from llvmlite import ir
from numba.extending import intrinsic

from curation.clusters.kernels import compiled_as_written, compiled_for_sums, dot

CHUNK = 64  # columns
INT8_MOST = np.float32(127)
SMALLEST = np.float32(1e-30)  # keeps the scale of a row of zeros above zero: nothing divides by 0
LOWEST = np.float32(-np.inf)

# Of two vectors' parts outside a subspace, the inner product is at most the product of their
# lengths. For a row and its nearest centroid, it is usually about this share of it.
USUAL_SHARE = np.float32(0.25)


@intrinsic
def larger(_: Any, a: Any, b: Any) -> tuple[Any, Callable[..., Any]]:
    """The larger of two float32 numbers, as LLVM's own instruction.

    LLVM compiles a comparison in a loop to masked stores or scalar code, which is 10 times slower
    on AVX2 than the instruction `vmaxps`.
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
    """Write x - mean as `scale` times integers from -127 to 127, with one scale per row.

    Also writes `length`, which is |x - mean|, and `lost`, which is |x - mean - scale * rounded|.
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

        # The largest value of the row becomes 127, so that the row uses all 8 bits.
        per_unit = INT8_MOST / most
        for i in range(dim):
            integers[i] = np.int8(np.rint(shifted[i] * per_unit))

        error = np.float32(0)
        square = np.float32(0)
        for i in range(dim):
            # The error in units of the scale, which is multiplied in once per row below.
            apart = shifted[i] * per_unit - np.float32(integers[i])
            error += apart * apart
            square += shifted[i] * shifted[i]
        scale[row] = most / INT8_MOST
        lost[row] = scale[row] * np.sqrt(error)
        length[row] = np.sqrt(square)


# A chunk is sliced before it is read. Numba lets an index count from the end if it is negative, which
# AVX-512 code then checks for every value, at a third of the speed; indices into a slice cannot be.


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
    """Write the columns of each row whose score is within the margin of the row's best score.

    A score is product * scale + bias. The columns of row i are columns[ends[i] : ends[i + 1]],
    ascending. The first pass notes the largest score of each chunk of columns, so that the second
    pass skips nearly all chunks.
    """
    tops = np.empty((products.shape[1] + CHUNK - 1) // CHUNK, np.float32)
    count = 0
    ends[0] = 0

    for row in range(len(products)):
        unit = scale[row]

        best = LOWEST
        for chunk in range(len(tops)):
            start = chunk * CHUNK
            values = products[row, start : start + CHUNK]
            shift = bias[start : start + CHUNK]
            top = LOWEST
            for i in range(len(values)):
                top = larger(top, np.float32(values[i]) * unit + shift[i])
            tops[chunk] = top
            best = larger(best, top)

        # The compiler may fuse the multiply-add in one loop and not in the other, so that the same
        # score has two roundings. The slack of the margin covers the difference.
        least = best - margin[row]
        for chunk in range(len(tops)):
            if tops[chunk] >= least:
                start = chunk * CHUNK
                values = products[row, start : start + CHUNK]
                shift = bias[start : start + CHUNK]
                for i in range(len(values)):
                    if np.float32(values[i]) * unit + shift[i] >= least:
                        columns[count] = start + i
                        count += 1
        ends[row + 1] = count


@compiled_for_sums
@no_type_check
def shortlist_by_bounds(
    products: Int32[np.ndarray, "n k"],
    scale: Float32[np.ndarray, " n"],
    bias: Float32[np.ndarray, " k"],
    row_rest: Float32[np.ndarray, " n"],
    rest: Float32[np.ndarray, " k"],
    margin: Float32[np.ndarray, " n"],
    rows: Int8[np.ndarray, "n d"],
    row_scale: Float32[np.ndarray, " n"],
    weights: Int8[np.ndarray, "k d"],
    ends: Int64[np.ndarray, " n_plus_1"],
    columns: Int32[np.ndarray, " n_times_k"],
) -> None:
    """Write the columns of each row whose score may exceed that of a good column less the margin.

    A score is at most product * scale + bias + row_rest * rest. The good column is the one with the
    largest usual score; its own score is dot8(row, weights of the column) * row_scale + bias.
    """
    tops = np.empty((products.shape[1] + CHUNK - 1) // CHUNK, np.float32)
    count = 0
    ends[0] = 0

    for row in range(len(products)):
        unit = scale[row]
        most_share = row_rest[row]
        usual_share = USUAL_SHARE * most_share

        best = LOWEST
        best_chunk = 0
        for chunk in range(len(tops)):
            start = chunk * CHUNK
            values = products[row, start : start + CHUNK]
            shift = bias[start : start + CHUNK]
            outside = rest[start : start + CHUNK]
            top = LOWEST
            usual = LOWEST
            for i in range(len(values)):
                inside = np.float32(values[i]) * unit + shift[i]
                top = larger(top, inside + most_share * outside[i])
                usual = larger(usual, inside + usual_share * outside[i])
            tops[chunk] = top
            if usual > best:
                best = usual
                best_chunk = chunk

        start = best_chunk * CHUNK
        values = products[row, start : start + CHUNK]
        good = start
        best = LOWEST
        for i in range(len(values)):
            column = start + i
            score = np.float32(values[i]) * unit + bias[column] + usual_share * rest[column]
            if score > best:
                best = score
                good = column

        least = dot8(rows[row], weights[good]) * row_scale[row] + bias[good] - margin[row]
        for chunk in range(len(tops)):
            if tops[chunk] >= least:
                start = chunk * CHUNK
                values = products[row, start : start + CHUNK]
                shift = bias[start : start + CHUNK]
                outside = rest[start : start + CHUNK]
                for i in range(len(values)):
                    inside = np.float32(values[i]) * unit + shift[i]
                    if inside + most_share * outside[i] >= least:
                        columns[count] = start + i
                        count += 1
        ends[row + 1] = count


@compiled_for_sums
@no_type_check
def keep_near(
    rows: Int8[np.ndarray, "n d"],
    weights: Int8[np.ndarray, "k d"],
    scale: Float32[np.ndarray, " n"],
    bias: Float32[np.ndarray, " k"],
    margin: Float32[np.ndarray, " n"],
    ends: Int64[np.ndarray, " n_plus_1"],
    columns: Int32[np.ndarray, " n_times_k"],
) -> None:
    """Of the columns listed for each row, keep those with scores within the margin of the best.

    A score is dot8(row, weights) * scale + bias. `ends` and `columns` are changed in place.
    """
    scores = np.empty(len(weights), np.float32)
    count = 0
    start = 0

    for row in range(len(rows)):
        stop = ends[row + 1]
        best = LOWEST
        for position in range(start, stop):
            column = columns[position]
            score = dot8(rows[row], weights[column]) * scale[row] + bias[column]
            scores[position - start] = score
            best = larger(best, score)

        least = best - margin[row]
        for position in range(start, stop):
            if scores[position - start] >= least:
                columns[count] = columns[position]
                count += 1
        ends[row + 1] = count
        start = stop


@compiled_for_sums
@no_type_check
def dot8(x: Int8[np.ndarray, " d"], y: Int8[np.ndarray, " d"]) -> np.float32:
    """Inner product of 8-bit integers, exact up to 1,000 values and then rounded to float32."""
    total = np.int32(0)
    for i in range(len(x)):
        total += np.int32(x[i]) * np.int32(y[i])
    return np.float32(total)


@compiled_as_written
@no_type_check
def decide(
    x: Float32[np.ndarray, "n d"],
    centroids: Float32[np.ndarray, "k d"],
    bias: Float64[np.ndarray, " k"],
    ends: Int64[np.ndarray, " n_plus_1"],
    columns: Int32[np.ndarray, " pairs"],
    labels: Int32[np.ndarray, " n"],
) -> None:
    """Write the candidate of each row with the largest x.c + bias in float64 to `labels`.

    Equal scores go to the lowest candidate. `ends` and `columns` are those of `shortlist`.
    """
    for row in range(len(x)):
        best = columns[ends[row]]
        if ends[row + 1] - ends[row] > 1:
            # A single candidate is the answer: no product is needed.
            top = -np.inf
            for candidate in range(ends[row], ends[row + 1]):
                column = columns[candidate]
                score = dot(x[row], centroids[column]) + bias[column]
                if score > top or (score == top and column < best):
                    top = score
                    best = column
        labels[row] = best
