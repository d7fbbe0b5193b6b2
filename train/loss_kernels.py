"""GPU kernels in Triton for the contrastive loss: the work on a tile between its matrix products.

Each kernel reads a tile of products once. No sum uses atomics, so that the same input gives the
same bits.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float32
from torch import Tensor

# The part of a tile that one program holds in registers at once.
SUM_ROWS = 16
SUM_COLUMNS = 512
SPREAD_COLUMNS = 1024


# One program goes along all columns of a block of rows. Its rows are complete at the end; each
# column gets a log-sum-exp over this block of rows only, and the caller adds up the blocks.
@triton.jit
@no_type_check
def _log_sums(
    products,
    factor,
    by_row,
    by_column,
    num_rows,
    num_columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    block = tl.program_id(0)
    scale = tl.load(factor)
    rows = block * ROWS + tl.arange(0, ROWS)
    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)

    for left in range(0, num_columns, COLUMNS):
        columns = left + tl.arange(0, COLUMNS)
        is_there = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
        values = tl.load(
            products + rows[:, None] * num_columns + columns[None, :], mask=is_there, other=0.0
        )

        # -inf adds nothing to a sum of exponentials. Rows past the end are never stored.
        logits = tl.where(is_there, values * scale, float("-inf"))
        top = tl.max(logits, 0)
        column_sums = top + tl.log(tl.sum(tl.exp(logits - top[None, :]), 0))
        tl.store(by_column + block * num_columns + columns, column_sums, mask=columns < num_columns)

        # The running sum of a row is relative to its largest logit so far, and shrinks when a
        # larger one comes.
        higher = tl.maximum(largest, tl.max(logits, 1))
        total = total * tl.exp(largest - higher) + tl.sum(tl.exp(logits - higher[:, None]), 1)
        largest = higher

    tl.store(by_row + rows, largest + tl.log(total), mask=rows < num_rows)


@triton.jit
@no_type_check
def _softmax_sum(products, factor, by_row, by_column, out, num_columns, COLUMNS: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_there = columns < num_columns
    logits = tl.load(products + row * num_columns + columns, mask=is_there) * tl.load(factor)
    total = tl.exp(logits - tl.load(by_row + row)) + tl.exp(
        logits - tl.load(by_column + columns, mask=is_there)
    )
    tl.store(out + row * num_columns + columns, total.to(out.dtype.element_ty), mask=is_there)


def log_sums(
    products: Float32[Tensor, "m n"], factor: Float32[Tensor, ""]
) -> tuple[Float32[Tensor, " n"], Float32[Tensor, " m"]]:
    """Log-sum-exps of the columns and of the rows of factor * products, in one pass."""
    num_rows, num_columns = products.shape
    num_blocks = triton.cdiv(num_rows, SUM_ROWS)
    by_row = products.new_empty(num_rows)
    by_column = products.new_empty(num_blocks, num_columns)
    _log_sums[(num_blocks,)](
        products,
        factor,
        by_row,
        by_column,
        num_rows,
        num_columns,
        SUM_ROWS,
        SUM_COLUMNS,
        num_warps=8,
    )

    return by_column.logsumexp(0), by_row


def softmax_sum(
    products: Float32[Tensor, "m n"],
    factor: Float32[Tensor, ""],
    by_row: Float32[Tensor, " m"],
    by_column: Float32[Tensor, " n"],
    dtype: torch.dtype,
) -> Float[Tensor, "m n"]:
    """The row-wise plus the column-wise softmax of factor * products, from both log-sum-exps.

    A float32 result overwrites `products`.
    """
    num_rows, num_columns = products.shape
    out = products if dtype == torch.float32 else torch.empty_like(products, dtype=dtype)
    grid = (num_rows, triton.cdiv(num_columns, SPREAD_COLUMNS))
    _softmax_sum[grid](products, factor, by_row, by_column, out, num_columns, SPREAD_COLUMNS)

    return out
