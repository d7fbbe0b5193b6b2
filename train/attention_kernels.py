"""GPU kernels in Triton: attention over packed captions, forward and backward.

Captions are short: at 13 tokens, most of a flash kernel's block of 128 is empty. Here one program
handles one caption and one head, in blocks of 16 tokens. It reads queries, keys and values in the
layout of their common product, "n 3 h d", and writes their gradients in the same layout. No sum
uses atomics, so that the same input gives the same bits.

The method is that of FlashAttention-2 (arXiv:2307.08691, algorithms 1 and 2): the forward pass
stores one log-sum-exp per query, and the backward pass recomputes the weights from it.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32
from torch import Tensor

BLOCK = tl.constexpr(16)  # tokens; most captions fit in one block
WARPS = 1  # per program: of 1, 2 and 4, and of blocks of 16 and 32 tokens, the fastest on an H100


# One block of rows of a matrix with `stride` numbers per row. Rows from `stop` on belong to the
# next caption: they read as 0.
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
    # Without "ieee", Triton rounds float32 operands to TensorFloat-32.
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
@no_type_check
def _scores(q, k, i, j, stop, scale):
    rows = i + tl.arange(0, BLOCK)
    columns = j + tl.arange(0, BLOCK)

    # Causal, and within the caption. A score of -inf becomes a weight of 0.
    is_visible = (rows[:, None] >= columns[None, :]) & (columns < stop)[None, :]
    return tl.where(is_visible, _dot(q, tl.trans(k)) * scale, float("-inf"))


@triton.jit
@no_type_check
def _attend(qkv, starts, out, log_sums, heads, scale, WIDTH: tl.constexpr):
    caption = tl.program_id(0)
    head = tl.program_id(1)

    # int64, because a token's index times 3 * row can exceed 2**31.
    start = tl.load(starts + caption).to(tl.int64)
    stop = tl.load(starts + caption + 1).to(tl.int64)

    # A token's numbers are its queries (`row` of them), its keys, its values.
    row = heads * WIDTH
    queries = qkv + head * WIDTH
    out = out + head * WIDTH
    keys = queries + row
    values = queries + 2 * row

    for i in range(start, stop, BLOCK):
        # Softmax over blocks of keys: `total` and `attended` are relative to the largest score so
        # far, and shrink by exp(old largest - new largest) when it rises. Key blocks after i lie
        # in the future of all its queries.
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

    # Queries past the end of the caption get the log-sum inf, and so the weight exp(-inf) = 0.
    log_sum = tl.load(log_sums + rows * heads + head, mask=rows < stop, other=float("inf"))
    weights = tl.exp(_scores(q, k, i, j, stop, scale) - log_sum[:, None])

    # Gradient of a softmax: d_score_ij = weight_ij * (d_weight_ij - sum_k weight_ik d_weight_ik),
    # with d_weight_ij = d_out_i . v_j. The sum over k equals out_i . d_out_i.
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

    # Keys and values: for one block of them, sum over the blocks of queries that see it, i >= j. A
    # caption of one block has the gradient of its queries at the same time.
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

    # Queries of longer captions: sum over the blocks of keys that they see, in a second pass, since
    # adding to them from the loop above would need a buffer for all. The range is empty for a
    # caption of one block.
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


# As custom operators, so that torch.compile takes a block with its attention as one graph.
@torch.library.custom_op("dinotxt::attend", mutates_args=())
def _attend_captions(qkv: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """The output "n h d", and the log-sum-exp of each query's scores, "n h"."""
    num_tokens, _, heads, width = qkv.shape
    out = qkv.new_empty(num_tokens, heads, width)
    log_sums = qkv.new_empty(num_tokens, heads, dtype=torch.float32)
    _attend[(len(starts) - 1, heads)](
        qkv, starts, out, log_sums, heads, width**-0.5, width, num_warps=WARPS
    )
    return out, log_sums


@_attend_captions.register_fake
def _(qkv: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    num_tokens, _, heads, width = qkv.shape
    return (
        qkv.new_empty(num_tokens, heads, width),
        qkv.new_empty(num_tokens, heads, dtype=torch.float32),
    )


@torch.library.custom_op("dinotxt::attend_backward", mutates_args=())
def _attend_captions_backward(
    d_out: Tensor, qkv: Tensor, starts: Tensor, out: Tensor, log_sums: Tensor
) -> Tensor:
    heads, width = qkv.shape[2:]
    d_qkv = torch.empty_like(qkv)
    _attend_backward[(len(starts) - 1, heads)](
        qkv, starts, out, log_sums, d_out, d_qkv, heads, width**-0.5, width, num_warps=WARPS
    )
    return d_qkv


@_attend_captions_backward.register_fake
def _(d_out: Tensor, qkv: Tensor, starts: Tensor, out: Tensor, log_sums: Tensor) -> Tensor:
    return torch.empty_like(qkv)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _gradient(ctx: Any, d_out: Tensor, _: Tensor) -> tuple[Tensor, None]:
    return _attend_captions_backward(d_out.contiguous(), *ctx.saved_tensors), None


_attend_captions.register_autograd(_gradient, setup_context=_save)


def attend(qkv: Float[Tensor, "n 3 h d"], starts: Int32[Tensor, " s"]) -> Float[Tensor, "n h d"]:
    """Causal attention within each caption.

    `starts` holds the index of each caption's first token, and the number of tokens at the end.
    """
    out, _ = _attend_captions(qkv.contiguous(), starts)
    return out
