"""GPU kernels in Triton: attention over packed captions, forward and backward.

Captions are short: with 13 tokens, most of a flash kernel's block of 128 is empty. Here a program
takes one caption and one head, in blocks of 32 tokens. It reads queries, keys and values where
their common product has left them, and writes their gradients side by side. Nothing is summed by
atomics: the same input gives the same bits.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32
from torch import Tensor

BLOCK = tl.constexpr(32)


@triton.jit
@no_type_check
def _load(base, row, stop, stride, WIDTH: tl.constexpr):
    rows = row + tl.arange(0, BLOCK)
    columns = tl.arange(0, WIDTH)
    return tl.load(
        base + rows[:, None] * stride + columns[None, :], mask=(rows < stop)[:, None], other=0.0
    )


@triton.jit
@no_type_check
def _store(base, block, row, stop, stride, WIDTH: tl.constexpr):
    rows = row + tl.arange(0, BLOCK)
    columns = tl.arange(0, WIDTH)
    values = block.to(base.dtype.element_ty)
    tl.store(base + rows[:, None] * stride + columns[None, :], values, mask=(rows < stop)[:, None])


@triton.jit
@no_type_check
def _dot(a, b):
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
@no_type_check
def _scores(q, k, i, j, stop, scale):
    rows = i + tl.arange(0, BLOCK)
    columns = j + tl.arange(0, BLOCK)
    is_seen = (rows[:, None] >= columns[None, :]) & (columns < stop)[None, :]
    return tl.where(is_seen, _dot(q, tl.trans(k)) * scale, float("-inf"))


@triton.jit
@no_type_check
def _attend(qkv, starts, out, log_sums, heads, scale, WIDTH: tl.constexpr):
    caption = tl.program_id(0)
    head = tl.program_id(1)
    start = tl.load(starts + caption).to(tl.int64)
    stop = tl.load(starts + caption + 1).to(tl.int64)
    row = heads * WIDTH
    queries = qkv + head * WIDTH
    out = out + head * WIDTH
    keys = queries + row
    values = queries + 2 * row

    for i in range(start, stop, BLOCK):
        q = _load(queries, i, stop, 3 * row, WIDTH)
        largest = tl.full((BLOCK,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK,), tl.float32)
        attended = tl.zeros((BLOCK, WIDTH), tl.float32)
        for j in range(start, i + 1, BLOCK):
            k = _load(keys, j, stop, 3 * row, WIDTH)
            v = _load(values, j, stop, 3 * row, WIDTH)
            scores = _scores(q, k, i, j, stop, scale)
            higher = tl.maximum(largest, tl.max(scores, 1))
            weights = tl.exp(scores - higher[:, None])
            shrink = tl.exp(largest - higher)
            attended = attended * shrink[:, None] + _dot(weights.to(v.dtype), v)
            total = total * shrink + tl.sum(weights, 1)
            largest = higher
        _store(out, attended / total[:, None], i, stop, row, WIDTH)
        rows = i + tl.arange(0, BLOCK)
        tl.store(log_sums + rows * heads + head, largest + tl.log(total), mask=rows < stop)


@triton.jit
@no_type_check
def _score_gradients(
    q, k, v, d_out, out, log_sums, i, j, stop, head, heads, scale, WIDTH: tl.constexpr
):
    rows = i + tl.arange(0, BLOCK)
    log_sum = tl.load(log_sums + rows * heads + head, mask=rows < stop, other=float("inf"))
    weights = tl.exp(_scores(q, k, i, j, stop, scale) - log_sum[:, None])
    share = tl.sum(
        _load(out, i, stop, heads * WIDTH, WIDTH).to(tl.float32) * d_out.to(tl.float32), 1
    )
    return weights, weights * (_dot(d_out, tl.trans(v)) - share[:, None]) * scale


@triton.jit
@no_type_check
def _attend_backward(qkv, starts, out, log_sums, d_out, d_qkv, heads, scale, WIDTH: tl.constexpr):
    caption = tl.program_id(0)
    head = tl.program_id(1)
    start = tl.load(starts + caption).to(tl.int64)
    stop = tl.load(starts + caption + 1).to(tl.int64)
    row = heads * WIDTH
    queries = qkv + head * WIDTH
    d_queries = d_qkv + head * WIDTH
    out = out + head * WIDTH
    d_out = d_out + head * WIDTH
    is_one_block = stop - start <= BLOCK

    for j in range(start, stop, BLOCK):
        k = _load(queries + row, j, stop, 3 * row, WIDTH)
        v = _load(queries + 2 * row, j, stop, 3 * row, WIDTH)
        d_k = tl.zeros((BLOCK, WIDTH), tl.float32)
        d_v = tl.zeros((BLOCK, WIDTH), tl.float32)
        for i in range(j, stop, BLOCK):
            q = _load(queries, i, stop, 3 * row, WIDTH)
            d_o = _load(d_out, i, stop, row, WIDTH)
            weights, d_scores = _score_gradients(
                q, k, v, d_o, out, log_sums, i, j, stop, head, heads, scale, WIDTH
            )
            d_v += _dot(tl.trans(weights).to(d_o.dtype), d_o)
            d_k += _dot(tl.trans(d_scores).to(q.dtype), q)
            if is_one_block:
                _store(d_queries, _dot(d_scores.to(k.dtype), k), i, stop, 3 * row, WIDTH)
        _store(d_queries + row, d_k, j, stop, 3 * row, WIDTH)
        _store(d_queries + 2 * row, d_v, j, stop, 3 * row, WIDTH)

    for i in range(start, tl.where(is_one_block, start, stop), BLOCK):
        q = _load(queries, i, stop, 3 * row, WIDTH)
        d_o = _load(d_out, i, stop, row, WIDTH)
        d_q = tl.zeros((BLOCK, WIDTH), tl.float32)
        for j in range(start, i + 1, BLOCK):
            k = _load(queries + row, j, stop, 3 * row, WIDTH)
            v = _load(queries + 2 * row, j, stop, 3 * row, WIDTH)
            _, d_scores = _score_gradients(
                q, k, v, d_o, out, log_sums, i, j, stop, head, heads, scale, WIDTH
            )
            d_q += _dot(d_scores.to(k.dtype), k)
        _store(d_queries, d_q, i, stop, 3 * row, WIDTH)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, starts: Tensor) -> Tensor:
        num_tokens, _, heads, width = qkv.shape
        out = qkv.new_empty(num_tokens, heads, width)
        log_sums = qkv.new_empty(num_tokens, heads, dtype=torch.float32)
        _attend[(len(starts) - 1, heads)](
            qkv, starts, out, log_sums, heads, width**-0.5, width, num_warps=2
        )
        ctx.save_for_backward(qkv, starts, out, log_sums)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        qkv, starts, out, log_sums = ctx.saved_tensors
        heads, width = qkv.shape[2:]
        d_qkv = torch.empty_like(qkv)
        grid = (len(starts) - 1, heads)
        _attend_backward[grid](
            qkv,
            starts,
            out,
            log_sums,
            d_out.contiguous(),
            d_qkv,
            heads,
            width**-0.5,
            width,
            num_warps=2,
        )

        return d_qkv, None


def attend(qkv: Float[Tensor, "n 3 h d"], starts: Int32[Tensor, " s"]) -> Float[Tensor, "n h d"]:
    """Causal attention within each caption; `starts` has where each begins, and the number of
    tokens at the end.
    """
    return _Attend.apply(qkv.contiguous(), starts)
