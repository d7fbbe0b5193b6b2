"""GPU kernels, in Triton: attention over packed captions, and what happens to a tile of logits between its products.

Captions are short: with 13 tokens most of a flash kernel's block of 128 is empty. Here a program takes one caption and
one head, in blocks of 32 tokens, reads queries, keys and values where the one product left them and writes their
gradients side by side. Nothing is summed by atomics: the same input gives the same bits.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float32, Int32
from torch import Tensor

BLOCK = tl.constexpr(32)
WIDTHS = (16, 32, 64, 128)
"""Channels of a head that the kernels know."""
SUM_ROWS, SUM_COLUMNS, SPREAD_COLUMNS = 16, 512, 1024  # of a tile of logits that one program has at once


@triton.jit
@no_type_check
def _load(base, row, stop, stride, WIDTH: tl.constexpr):
    rows, columns = row + tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    return tl.load(base + rows[:, None] * stride + columns[None, :], mask=(rows < stop)[:, None], other=0.0)


@triton.jit
@no_type_check
def _store(base, block, row, stop, stride, WIDTH: tl.constexpr):
    rows, columns = row + tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    values = block.to(base.dtype.element_ty)
    tl.store(base + rows[:, None] * stride + columns[None, :], values, mask=(rows < stop)[:, None])


@triton.jit
@no_type_check
def _dot(a, b):
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
@no_type_check
def _scores(q, k, i, j, stop, scale):
    rows, columns = i + tl.arange(0, BLOCK), j + tl.arange(0, BLOCK)
    is_seen = (rows[:, None] >= columns[None, :]) & (columns < stop)[None, :]
    return tl.where(is_seen, _dot(q, tl.trans(k)) * scale, float("-inf"))


@triton.jit
@no_type_check
def _attend(qkv, starts, out, log_sums, heads, scale, WIDTH: tl.constexpr):
    caption, head = tl.program_id(0), tl.program_id(1)
    start, stop = tl.load(starts + caption).to(tl.int64), tl.load(starts + caption + 1).to(tl.int64)
    row = heads * WIDTH
    queries, out = qkv + head * WIDTH, out + head * WIDTH
    keys, values = queries + row, queries + 2 * row
    for i in range(start, stop, BLOCK):
        q = _load(queries, i, stop, 3 * row, WIDTH)
        largest, total = tl.full((BLOCK,), float("-inf"), tl.float32), tl.zeros((BLOCK,), tl.float32)
        attended = tl.zeros((BLOCK, WIDTH), tl.float32)
        for j in range(start, i + 1, BLOCK):
            k, v = _load(keys, j, stop, 3 * row, WIDTH), _load(values, j, stop, 3 * row, WIDTH)
            scores = _scores(q, k, i, j, stop, scale)
            higher = tl.maximum(largest, tl.max(scores, 1))
            weights, shrink = tl.exp(scores - higher[:, None]), tl.exp(largest - higher)
            attended = attended * shrink[:, None] + _dot(weights.to(v.dtype), v)
            total, largest = total * shrink + tl.sum(weights, 1), higher
        _store(out, attended / total[:, None], i, stop, row, WIDTH)
        rows = i + tl.arange(0, BLOCK)
        tl.store(log_sums + rows * heads + head, largest + tl.log(total), mask=rows < stop)


@triton.jit
@no_type_check
def _score_gradients(q, k, v, d_out, out, log_sums, i, j, stop, head, heads, scale, WIDTH: tl.constexpr):
    rows = i + tl.arange(0, BLOCK)
    log_sum = tl.load(log_sums + rows * heads + head, mask=rows < stop, other=float("inf"))
    weights = tl.exp(_scores(q, k, i, j, stop, scale) - log_sum[:, None])
    share = tl.sum(_load(out, i, stop, heads * WIDTH, WIDTH).to(tl.float32) * d_out.to(tl.float32), 1)
    return weights, weights * (_dot(d_out, tl.trans(v)) - share[:, None]) * scale


@triton.jit
@no_type_check
def _attend_backward(qkv, starts, out, log_sums, d_out, d_qkv, heads, scale, WIDTH: tl.constexpr):
    caption, head = tl.program_id(0), tl.program_id(1)
    start, stop = tl.load(starts + caption).to(tl.int64), tl.load(starts + caption + 1).to(tl.int64)
    row = heads * WIDTH
    queries, d_queries, out, d_out = qkv + head * WIDTH, d_qkv + head * WIDTH, out + head * WIDTH, d_out + head * WIDTH
    is_one_block = stop - start <= BLOCK
    for j in range(start, stop, BLOCK):
        k, v = _load(queries + row, j, stop, 3 * row, WIDTH), _load(queries + 2 * row, j, stop, 3 * row, WIDTH)
        d_k, d_v = tl.zeros((BLOCK, WIDTH), tl.float32), tl.zeros((BLOCK, WIDTH), tl.float32)
        for i in range(j, stop, BLOCK):
            q, d_o = _load(queries, i, stop, 3 * row, WIDTH), _load(d_out, i, stop, row, WIDTH)
            weights, d_scores = _score_gradients(q, k, v, d_o, out, log_sums, i, j, stop, head, heads, scale, WIDTH)
            d_v += _dot(tl.trans(weights).to(d_o.dtype), d_o)
            d_k += _dot(tl.trans(d_scores).to(q.dtype), q)
            if is_one_block:
                _store(d_queries, _dot(d_scores.to(k.dtype), k), i, stop, 3 * row, WIDTH)
        _store(d_queries + row, d_k, j, stop, 3 * row, WIDTH)
        _store(d_queries + 2 * row, d_v, j, stop, 3 * row, WIDTH)
    for i in range(start, tl.where(is_one_block, start, stop), BLOCK):
        q, d_o = _load(queries, i, stop, 3 * row, WIDTH), _load(d_out, i, stop, row, WIDTH)
        d_q = tl.zeros((BLOCK, WIDTH), tl.float32)
        for j in range(start, i + 1, BLOCK):
            k, v = _load(queries + row, j, stop, 3 * row, WIDTH), _load(queries + 2 * row, j, stop, 3 * row, WIDTH)
            _, d_scores = _score_gradients(q, k, v, d_o, out, log_sums, i, j, stop, head, heads, scale, WIDTH)
            d_q += _dot(d_scores.to(k.dtype), k)
        _store(d_queries, d_q, i, stop, 3 * row, WIDTH)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, starts: Tensor) -> Tensor:
        num_tokens, _, heads, width = qkv.shape
        out, log_sums = qkv.new_empty(num_tokens, heads, width), qkv.new_empty(num_tokens, heads, dtype=torch.float32)
        _attend[(len(starts) - 1, heads)](qkv, starts, out, log_sums, heads, width**-0.5, width, num_warps=2)
        ctx.save_for_backward(qkv, starts, out, log_sums)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        qkv, starts, out, log_sums = ctx.saved_tensors
        d_qkv, (heads, width) = torch.empty_like(qkv), qkv.shape[2:]
        grid = (len(starts) - 1, heads)
        _attend_backward[grid](
            qkv, starts, out, log_sums, d_out.contiguous(), d_qkv, heads, width**-0.5, width, num_warps=2
        )
        return d_qkv, None


def attend(qkv: Float[Tensor, "n 3 h d"], starts: Int32[Tensor, " s"]) -> Float[Tensor, "n h d"]:
    """Causal attention within each caption; `starts` has where each begins, and the number of tokens at the end."""
    return _Attend.apply(qkv.contiguous(), starts)


@triton.jit
@no_type_check
def _log_sums(products, factor, by_row, by_column, num_rows, num_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    block, scale = tl.program_id(0), tl.load(factor)
    rows = block * ROWS + tl.arange(0, ROWS)
    largest, total = tl.full((ROWS,), float("-inf"), tl.float32), tl.zeros((ROWS,), tl.float32)
    for left in range(0, num_columns, COLUMNS):
        columns = left + tl.arange(0, COLUMNS)
        is_there = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
        values = tl.load(products + rows[:, None] * num_columns + columns[None, :], mask=is_there, other=0.0)
        logits = tl.where(is_there, values * scale, float("-inf"))
        top = tl.max(logits, 0)
        column_sums = top + tl.log(tl.sum(tl.exp(logits - top[None, :]), 0))
        tl.store(by_column + block * num_columns + columns, column_sums, mask=columns < num_columns)
        higher = tl.maximum(largest, tl.max(logits, 1))
        total = total * tl.exp(largest - higher) + tl.sum(tl.exp(logits - higher[:, None]), 1)
        largest = higher
    tl.store(by_row + rows, largest + tl.log(total), mask=rows < num_rows)


@triton.jit
@no_type_check
def _softmax_sum(products, factor, by_row, by_column, out, num_columns, COLUMNS: tl.constexpr):
    row, columns = tl.program_id(0), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_there = columns < num_columns
    logits = tl.load(products + row * num_columns + columns, mask=is_there) * tl.load(factor)
    total = tl.exp(logits - tl.load(by_row + row)) + tl.exp(logits - tl.load(by_column + columns, mask=is_there))
    tl.store(out + row * num_columns + columns, total.to(out.dtype.element_ty), mask=is_there)


def log_sums(
    products: Float32[Tensor, "m n"], factor: Float32[Tensor, ""]
) -> tuple[Float32[Tensor, " n"], Float32[Tensor, " m"]]:
    """Log-sum-exp of factor * products over rows and over columns, in one pass."""
    num_rows, num_columns = products.shape
    num_blocks = triton.cdiv(num_rows, SUM_ROWS)
    by_row, by_column = products.new_empty(num_rows), products.new_empty(num_blocks, num_columns)
    _log_sums[(num_blocks,)](
        products, factor, by_row, by_column, num_rows, num_columns, SUM_ROWS, SUM_COLUMNS, num_warps=8
    )
    return by_column.logsumexp(0), by_row


def softmax_sum(
    products: Float32[Tensor, "m n"],
    factor: Float32[Tensor, ""],
    by_row: Float32[Tensor, " m"],
    by_column: Float32[Tensor, " n"],
    dtype: torch.dtype,
) -> Float[Tensor, "m n"]:
    """The row-wise plus the column-wise softmax of factor * products, given both log-sum-exps; float32 in place."""
    num_rows, num_columns = products.shape
    out = products if dtype == torch.float32 else torch.empty_like(products, dtype=dtype)
    grid = (num_rows, triton.cdiv(num_columns, SPREAD_COLUMNS))
    _softmax_sum[grid](products, factor, by_row, by_column, out, num_columns, SPREAD_COLUMNS)
    return out
