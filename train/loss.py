"""Exact contrastive losses over the global batch, by tiles of the logits.

Neither the B x B logits nor the features or gradients of all ranks are ever in memory at once. Each
rank holds its own rows. The texts of the other ranks arrive one after another on a ring, and in the
backward pass their gradient travels with them, so that memory grows with the local batch only. The
backward pass recomputes the logits. Softmax and sums are float32; `dtype` is the number format of
the matrix products. Every rank returns the value for the whole batch, and the gradient with respect
to its own rows; the sum over ranks is the gradient of the global loss.
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor

from train.config import LossConfig
from train.ring import Ring

if find_spec("triton"):  # comes with a torch for GPUs
    from train import loss_kernels as kernels

# Rows and columns of a tile: 17 MB of float32 logits on a CPU, 134 MB on a GPU, to make few calls
TILE = {"cpu": (2048, 2048), "cuda": (4096, 8192)}
SINGLE_EXP_LIMIT = 80.0  # exp(-80) is 2e-35, still a normal float32 (these end at 1.2e-38)


def global_loss(
    images: Float32[Tensor, "b d"],
    texts: Float32[Tensor, "b d"],
    scale: Float32[Tensor, ""],
    config: LossConfig,
    group: dist.ProcessGroup | None = None,
) -> Float32[Tensor, ""]:
    """The configured loss over the rows of all ranks. ValueError if ranks hold unequal numbers."""
    dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
    if config.kind == "sigmoid":
        return sigmoid_loss(images, texts, scale, config.sigmoid_bias, group, dtype)
    return contrastive_loss(images, texts, scale, group, dtype)


def contrastive_loss(
    images: Float32[Tensor, "b d"],
    texts: Float32[Tensor, "b d"],
    scale: Float32[Tensor, ""],
    group: dist.ProcessGroup | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float32[Tensor, ""]:
    """Symmetric softmax cross-entropy of scale * images @ texts.T over the global batch (CLIP).

    Image i belongs to text i, and rows have unit norm. With logits z and B pairs,

        loss = sum_i (log sum_j exp z_ij + log sum_j exp z_ji - 2 z_ii) / 2B
        d loss / d z_ij = (softmax of row i at j + softmax of column j at i - 2 [i = j]) / 2B

    Example: the images (1, 0) and (0, 1), equal texts, scale 1. The logits are [[1, 0], [0, 1]].
    The log-sum-exp of row 0 grows tile by tile: 1 after the first column, then
    log(exp 1 + exp 0) = 1.3133. By symmetry all four sums are that, and the loss is
    2 * (1.3133 + 1.3133 - 2) / 4 = 0.3133. Off the diagonal, both softmaxes are
    exp(0 - 1.3133) = 0.2689, so the gradient of a logit is 2 * 0.2689 / 4 = 0.1345; on it,
    (2 * 0.7311 - 2) / 4 = -0.1345. The gradient of image 0 is (-0.1345, 0.1345).
    """
    _check_even(images, group)
    return _Contrastive.apply(images, texts, scale, Ring(group), dtype)


def sigmoid_loss(
    images: Float32[Tensor, "b d"],
    texts: Float32[Tensor, "b d"],
    scale: Float32[Tensor, ""],
    bias: float,
    group: dist.ProcessGroup | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float32[Tensor, ""]:
    """Mean over images of the summed binary losses against all texts.

    SigLIP (arXiv:2303.15343, algorithm 1), with a fixed bias. Image i belongs to text i.
    """
    _check_even(images, group)
    return _Sigmoid.apply(images, texts, scale, bias, Ring(group), dtype)


def _check_even(images: Float32[Tensor, "b d"], group: dist.ProcessGroup | None) -> None:
    if group is None:
        return
    # One maximum over ranks gives both extremes: the largest of -n is minus the smallest n.
    extremes = torch.tensor([len(images), -len(images)], device=images.device)
    dist.all_reduce(extremes, dist.ReduceOp.MAX, group=group)
    most, fewest = extremes.tolist()
    if most != -fewest:
        raise ValueError(
            f"ranks hold {-fewest} to {most} rows: the loss needs the same number on each; drop "
            "the uneven last batch"
        )


def _tiles(x: Float[Tensor, "m d"], y: Float[Tensor, "n d"]) -> Iterator[tuple[slice, slice]]:
    """Rows of x and rows of y for each tile of x @ y.T."""
    rows, columns = TILE[x.device.type]
    for top in range(0, len(x), rows):
        for left in range(0, len(y), columns):
            yield slice(top, min(top + rows, len(x))), slice(left, min(left + columns, len(y)))


def _product(a: Float[Tensor, "m k"], b: Float[Tensor, "k n"]) -> Float32[Tensor, "m n"]:
    """a @ b in float32, whatever the format of a and b."""
    # A GPU adds up bfloat16 products in float32 anyway: this keeps its sums unrounded.
    if a.dtype == torch.bfloat16 and a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a, b).float()


class _Contrastive(torch.autograd.Function):
    """Forward saves the log-sum-exps of rows and columns; backward recomputes each tile once."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, texts: Tensor, scale: Tensor, ring: Ring, dtype: torch.dtype
    ) -> Float32[Tensor, ""]:
        x = images.to(dtype)
        y = texts.to(dtype)
        factor = scale.detach()
        batch = len(images)

        # Running log-sum-exps; -inf is the logarithm of an empty sum. An image meets all texts on
        # its own rank. A text meets only this rank's images here, so `by_text` has a row per owner,
        # and holds this rank's part of each sum.
        by_image = images.new_full((batch,), -torch.inf)
        by_text = images.new_full((ring.size, batch), -torch.inf)

        # Logits lie between -factor and factor. If exp(-2 * factor) does not underflow, one
        # exponential per logit serves rows and columns. On a GPU, reading the factor would make the
        # host wait.
        is_narrow = not images.is_cuda and 2 * float(factor) <= SINGLE_EXP_LIMIT

        for owner, chunk in ring.chunks(y):
            for i, j in _tiles(x, chunk):
                _add_log_sums(x[i], chunk[j], factor, is_narrow, by_image[i], by_text[owner, j])

        # Log-sum-exp over ranks, relative to the largest part so that no exponential overflows. The
        # order of collectives is the same on every rank: ring, maximum, sum, and the loss below.
        top = ring.max(by_text.clone())
        by_text = ring.sum((by_text - top).exp_()).log_().add_(top)

        # The logits of the pairs themselves, from the float32 features.
        positives = factor * (images * texts).sum(1)
        total = (by_image + by_text[ring.rank] - 2 * positives).sum(dtype=torch.float64)
        ctx.save_for_backward(images, texts, scale, by_image, by_text)
        ctx.ring = ring
        ctx.dtype = dtype
        ctx.is_narrow = is_narrow

        # Positives and sums come from different products: rounding can put a solved batch below 0.
        return (ring.sum(total) / (2 * batch * ring.size)).clamp_(min=0).float()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:  # type: ignore[override]
        images, texts, scale, by_image, by_text = ctx.saved_tensors

        def weights(x: Tensor, y: Tensor, i: slice, owner: int, j: slice) -> Float[Tensor, "m n"]:
            return _softmax_sum(x, y, scale, by_image[i], by_text[owner, j], ctx.is_narrow)

        # The gradient of a logit is the sum of its two softmaxes, less 2 on the diagonal.
        d_images, d_texts = _ring_backward(images, texts, ctx.ring, ctx.dtype, weights)
        d_images -= 2 * texts
        d_texts -= 2 * images

        # z_ij = scale x_i.y_j, so d_scale is the sum of g_ij x_i.y_j. Row i of d_images is the sum
        # of g_ij y_j at this point: its product with x_i saves another pass over the tiles.
        share = upstream / (2 * len(images) * ctx.ring.size)
        d_scale = (images * d_images).sum() * share

        return d_images.mul_(scale * share), d_texts.mul_(scale * share), d_scale, None, None


def _add_log_sums(
    x: Float[Tensor, "m d"],
    y: Float[Tensor, "n d"],
    factor: Float32[Tensor, ""],
    is_narrow: bool,
    by_row: Float32[Tensor, " m"],
    by_column: Float32[Tensor, " n"],
) -> None:
    """Add the log-sum-exps of factor * x @ y.T to those in `by_row` and `by_column`, in place.

    If the range of logits is narrow, both share one exponential per logit.
    """
    products = _product(x, y.T)
    if products.is_cuda:
        kernels.add_log_sums(products, factor, by_row, by_column)
        return

    logits = products.mul_(factor)
    if is_narrow:
        # In place, without a second tile in memory. Vectors have unit norm, so no logit exceeds
        # the factor, and no exponential exceeds 1.
        exponentials = logits.sub_(factor).exp_()
        over_columns = exponentials.sum(1).log_().add_(factor)
        over_rows = exponentials.sum(0).log_().add_(factor)
    else:
        over_columns = logits.logsumexp(1)
        over_rows = logits.logsumexp(0)

    torch.logaddexp(by_row, over_columns, out=by_row)
    torch.logaddexp(by_column, over_rows, out=by_column)


def _softmax_sum(
    x: Float[Tensor, "m d"],
    y: Float[Tensor, "n d"],
    factor: Float32[Tensor, ""],
    by_row: Float32[Tensor, " m"],
    by_column: Float32[Tensor, " n"],
    is_narrow: bool,
) -> Float[Tensor, "m n"]:
    """The row-wise plus the column-wise softmax of factor * x @ y.T, in the format of x."""
    products = _product(x, y.T)
    if products.is_cuda:
        return kernels.softmax_sum(products, factor, by_row, by_column, x.dtype)

    logits = products.mul_(factor)
    if not is_narrow:
        return (logits - by_row[:, None]).exp_().add_((logits - by_column).exp_()).to(x.dtype)

    # exp(z - r) + exp(z - c) = exp(z - f) * (exp(f - r) + exp(f - c)), with one exponential per
    # logit z
    row_factors = (factor - by_row).exp_()
    column_factors = (factor - by_column).exp_()
    return logits.sub_(factor).exp_().mul_(row_factors[:, None] + column_factors).to(x.dtype)


def _ring_backward(
    images: Float32[Tensor, "b d"],
    texts: Float32[Tensor, "b d"],
    ring: Ring,
    dtype: torch.dtype,
    weights: Callable[..., Tensor],
) -> tuple[Float32[Tensor, "b d"], Float32[Tensor, "b d"]]:
    """The sums of weight_ij text_j over j, for the local images, and of weight_ij image_i over i.

    The second sums, for the local texts, are over the images of all ranks. They travel one hop
    behind their chunk and end on the rank that owns it. Of three ranks, the sums for the texts of
    rank 0 start there, go to rank 1, which adds the part of its images, then to rank 2, and with
    the last shift back to rank 0.
    """
    x = images.to(dtype)
    y = texts.to(dtype)

    # Sums are float32 even when the products are bfloat16.
    d_images = torch.zeros_like(images)
    traveling = torch.zeros_like(texts)
    works: list[dist.Work] = []

    for owner, chunk in ring.chunks(y):
        d_chunk = torch.zeros_like(texts)
        for i, j in _tiles(x, chunk):
            tile = weights(x[i], chunk[j], i, owner, j)
            _add_product(d_images[i], tile, chunk[j])
            _add_product(d_chunk[j], tile.T, x[i])

        # The sums that the previous rank has for this chunk have arrived: add ours and pass on.
        for work in works:
            work.wait()
        works, traveling = ring.shift(d_chunk.add_(traveling)) if ring.size > 1 else ([], d_chunk)

    for work in works:
        work.wait()

    return d_images, traveling


def _add_product(
    total: Float32[Tensor, "m d"], a: Float[Tensor, "m n"], b: Float[Tensor, "n d"]
) -> None:
    """total += a @ b, in place."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)  # no tensor for the product
    else:
        total.add_(_product(a, b))


class _Sigmoid(torch.autograd.Function):
    """loss = -sum_ij log sigmoid(s_ij z_ij) / B, with z_ij = scale x_i.y_j + bias.

    The sign s_ij is 1 on the diagonal and -1 elsewhere.
    """

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        texts: Tensor,
        scale: Tensor,
        bias: float,
        ring: Ring,
        dtype: torch.dtype,
    ) -> Float32[Tensor, ""]:
        x = images.to(dtype)
        y = texts.to(dtype)
        factor = scale.detach()

        # -log sigmoid(-z) = softplus(z): first every pair counts as a negative one.
        total = images.new_zeros((), dtype=torch.float64)

        for _, chunk in ring.chunks(y):
            for i, j in _tiles(x, chunk):
                logits = _product(x[i], chunk[j].T).mul_(factor).add_(bias)
                total += F.softplus(logits).sum(dtype=torch.float64)

        # Then the diagonal becomes positive: -log sigmoid(z) = softplus(-z) = softplus(z) - z.
        total -= (factor * (images * texts).sum(1) + bias).sum(dtype=torch.float64)

        ctx.save_for_backward(images, texts, scale)
        ctx.bias = bias
        ctx.ring = ring
        ctx.dtype = dtype

        return (ring.sum(total) / (len(images) * ring.size)).clamp_(min=0).float()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:  # type: ignore[override]
        images, texts, scale = ctx.saved_tensors

        def weights(x: Tensor, y: Tensor, *_: object) -> Float[Tensor, "m n"]:
            return _product(x, y.T).mul_(scale).add_(ctx.bias).sigmoid_().to(x.dtype)

        # The gradient of softplus(z) is sigmoid(z); on the diagonal, of softplus(z) - z, one less.
        d_images, d_texts = _ring_backward(images, texts, ctx.ring, ctx.dtype, weights)
        d_images -= texts
        d_texts -= images

        share = upstream / (len(images) * ctx.ring.size)
        d_scale = (images * d_images).sum() * share

        return d_images.mul_(scale * share), d_texts.mul_(scale * share), d_scale, None, None, None
