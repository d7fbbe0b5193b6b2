"""Loops over rows of vectors, compiled by Numba: NumPy would need several passes over memory.

Each result depends on its own row alone, or adds rows in order. A sum of products may be reordered
to use the processor's vector unit, so it has the same bits on processors of one kind only. The
type checks of the tests cannot see into compiled code: hence `no_type_check`.
"""

from collections.abc import Callable
from typing import Any, no_type_check

import numba
import numpy as np
from jaxtyping import Float32, Float64, Int8, Int32, Int64
from llvmlite import ir
from numba.extending import intrinsic

from cluster.compilation import compiled

CHUNK = 64  # columns
INT8_MOST = np.float32(127)
SMALLEST = np.float32(1e-30)  # keeps the scale of a row of zeros above zero: nothing divides by 0
LOWEST = np.float32(-np.inf)

# nnan: no value is NaN; nsz: the sign of zero does not matter. Both leave every sum as written.
# reassoc and contract let the compiler reorder sums and fuse multiply-adds, which vector units
# need: only for sums whose last bits may differ between kinds of processors.

compiled_as_written = compiled(fastmath={"nnan", "nsz"})
compiled_for_sums = compiled(fastmath={"nnan", "nsz", "reassoc", "contract"})


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

        # The compiler may fuse the multiply-add in one loop and not in the other, so that the same
        # score has two roundings. The slack of the margin covers the difference.
        least = best - margin[row]
        for chunk in range(num_chunks):
            if tops[chunk] >= least:
                for column in range(chunk * CHUNK, min(chunk * CHUNK + CHUNK, num_columns)):
                    if np.float32(values[column]) * unit + bias[column] >= least:
                        columns[count] = column
                        count += 1
        ends[row + 1] = count


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
