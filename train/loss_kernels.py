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
BLOCKS = 64
BLOCK_COLUMNS = 64
SPREAD_COLUMNS = 1024


# One program goes along all columns of a block of rows, and adds to what its rows have so far. Each
# column gets a log-sum-exp over this block of rows only; the kernel below adds up the blocks.
#
# A running sum is relative to the largest logit so far, and shrinks when a larger one comes. What a
# row has so far is its largest logit at first, with a sum of exp(0) = 1.
@triton.jit
@no_type_check
def _add_rows(
    products,
    factor,
    by_row,
    by_block,
    num_rows,
    num_columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    block = tl.program_id(0)
    scale = tl.load(factor)
    rows = block * ROWS + tl.arange(0, ROWS)
    largest = tl.load(by_row + rows, mask=rows < num_rows, other=0.0)
    total = tl.full((ROWS,), 1.0, tl.float32)

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
        tl.store(by_block + block * num_columns + columns, column_sums, mask=columns < num_columns)

        higher = tl.maximum(largest, tl.max(logits, 1))
        total = total * tl.exp(largest - higher) + tl.sum(tl.exp(logits - higher[:, None]), 1)
        largest = higher

    tl.store(by_row + rows, largest + tl.log(total), mask=rows < num_rows)


# One program goes down all blocks of some columns, and adds to what its columns have so far.
@triton.jit
@no_type_check
def _add_blocks(
    by_block, by_column, num_blocks, num_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    largest = tl.load(by_column + columns, mask=columns < num_columns, other=0.0)
    total = tl.full((COLUMNS,), 1.0, tl.float32)

    for first in range(0, num_blocks, ROWS):
        blocks = first + tl.arange(0, ROWS)
        is_there = (blocks < num_blocks)[:, None] & (columns < num_columns)[None, :]
        sums = tl.load(
            by_block + blocks[:, None] * num_columns + columns[None, :],
            mask=is_there,
            other=float("-inf"),
        )
        higher = tl.maximum(largest, tl.max(sums, 0))
        total = total * tl.exp(largest - higher) + tl.sum(tl.exp(sums - higher[None, :]), 0)
        largest = higher

    tl.store(by_column + columns, largest + tl.log(total), mask=columns < num_columns)


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


def add_log_sums(
    products: Float32[Tensor, "m n"],
    factor: Float32[Tensor, ""],
    by_row: Float32[Tensor, " m"],
    by_column: Float32[Tensor, " n"],
) -> None:
    """Add the log-sum-exps of factor * products to those in `by_row` and `by_column`, in place."""
    num_rows, num_columns = products.shape
    num_blocks = triton.cdiv(num_rows, SUM_ROWS)
    by_block = products.new_empty(num_blocks, num_columns)
    _add_rows[(num_blocks,)](
        products,
        factor,
        by_row,
        by_block,
        num_rows,
        num_columns,
        SUM_ROWS,
        SUM_COLUMNS,
        num_warps=8,
    )
    _add_blocks[(triton.cdiv(num_columns, BLOCK_COLUMNS),)](
        by_block, by_column, num_blocks, num_columns, BLOCKS, BLOCK_COLUMNS
    )


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
