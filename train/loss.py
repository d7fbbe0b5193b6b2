"""Exact contrastive losses over the global batch, by tiles: no B x B logits, no gathered features
or gradients.

Each rank holds its own rows. The texts of the other ranks arrive one after another on a ring, and
in the backward pass their gradient travels with them, so that memory grows with the local batch
only. Logits are recomputed in the backward pass. Softmax and sums are float32; `dtype` is that of
the matrix products. Every rank returns the value for the whole batch and its gradient with respect
to the rank's own rows; the sum over ranks is the gradient of the global loss.
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

if find_spec("triton"):  # comes with a torch for GPUs
    from train import loss_kernels as kernels

TILE = {"cpu": (2048, 2048), "cuda": (4096, 8192)}  # rows, columns; a GPU wants few calls
SINGLE_EXP_LIMIT = 80.0  # exp(-80) is a normal float32


class Ring:
    """Neighbours of this rank; without a group, a ring of one."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group
        self.rank = dist.get_rank(group) if group else 0
        self.size = dist.get_world_size(group) if group else 1

    def shift(self, tensor: Tensor) -> tuple[list[dist.Work], Tensor]:
        """Start sending a tensor to the next rank and receiving that of the previous one; wait
        before using it.
        """
        received = torch.empty_like(tensor)
        following, previous = (self._global((self.rank + step) % self.size) for step in (1, -1))
        operations = [
            dist.P2POp(dist.isend, tensor, following, self.group),
            dist.P2POp(dist.irecv, received, previous, self.group),
        ]
        return dist.batch_isend_irecv(operations), received

    def _global(self, rank: int) -> int:
        assert self.group is not None
        return dist.get_global_rank(self.group, rank)

    def chunks(self, local: Float[Tensor, "b d"]) -> Iterator[tuple[int, Float[Tensor, "b d"]]]:
        """Every rank's chunk as (owner, chunk), this rank's first; the next one travels while one
        is used.
        """
        chunk = local
        for hop in range(self.size):
            works, received = self.shift(chunk) if hop + 1 < self.size else ([], chunk)
            yield (self.rank - hop) % self.size, chunk
            for work in works:
                work.wait()
            chunk = received

    def sum(self, tensor: Tensor) -> Tensor:
        if self.group is not None:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def max(self, tensor: Tensor) -> Tensor:
        if self.group is not None:
            dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.group)
        return tensor


def global_loss(
    images: Float32[Tensor, "b d"],
    texts: Float32[Tensor, "b d"],
    scale: Float32[Tensor, ""],
    config: LossConfig,
    group: dist.ProcessGroup | None = None,
) -> Float32[Tensor, ""]:
    """The configured loss over the rows of all ranks; every rank must hold the same number of
    rows.
    """
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
    """Symmetric softmax cross-entropy of scale * images @ texts.T over the global batch."""
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
    """Mean over images of the summed binary losses against all texts (SigLIP, arXiv:2303.15343,
    algorithm 1).
    """
    _check_even(images, group)
    return _Sigmoid.apply(images, texts, scale, bias, Ring(group), dtype)


def _check_even(images: Float32[Tensor, "b d"], group: dist.ProcessGroup | None) -> None:
    if group is None:
        return
    extremes = torch.tensor([len(images), -len(images)], device=images.device)
    dist.all_reduce(extremes, dist.ReduceOp.MAX, group=group)
    most, fewest = extremes.tolist()
    if most != -fewest:
        raise ValueError(
            f"ranks hold {-fewest} to {most} rows: the loss needs the same number on each; drop "
            "the uneven last batch"
        )


def _tiles(x: Float[Tensor, "m d"], y: Float[Tensor, "n d"]) -> Iterator[tuple[slice, slice]]:
    rows, columns = TILE[x.device.type]
    for top in range(0, len(x), rows):
        for left in range(0, len(y), columns):
            yield slice(top, min(top + rows, len(x))), slice(left, min(left + columns, len(y)))


def _product(a: Float[Tensor, "m k"], b: Float[Tensor, "k n"]) -> Float32[Tensor, "m n"]:
    """In float32; a GPU adds up products of bfloat16 in float32, too."""
    if a.dtype == torch.bfloat16 and a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a, b).float()


class _Contrastive(torch.autograd.Function):
    """Forward saves two vectors of log-sum-exps; backward recomputes each tile of logits once."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, texts: Tensor, scale: Tensor, ring: Ring, dtype: torch.dtype
    ) -> Float32[Tensor, ""]:
        x = images.to(dtype)
        y = texts.to(dtype)
        factor = scale.detach()
        batch = len(images)

        # Log-sum-exps over the rows and columns of the logits; texts of other ranks get their part
        # from each rank.
        by_image = images.new_full((batch,), -torch.inf)
        by_text = images.new_full((ring.size, batch), -torch.inf)
        is_narrow = (
            not images.is_cuda and 2 * float(factor) <= SINGLE_EXP_LIMIT
        )  # a GPU would have to wait for it

        for owner, chunk in ring.chunks(y):
            for i, j in _tiles(x, chunk):
                over_rows, over_columns = _log_sums(x[i], chunk[j], factor, is_narrow)
                by_image[i] = torch.logaddexp(by_image[i], over_columns)
                by_text[owner, j] = torch.logaddexp(by_text[owner, j], over_rows)

        top = ring.max(by_text.clone())
        by_text = ring.sum((by_text - top).exp_()).log_().add_(top)

        positives = factor * (images * texts).sum(1)
        total = (by_image + by_text[ring.rank] - 2 * positives).sum(dtype=torch.float64)
        ctx.save_for_backward(images, texts, scale, by_image, by_text)
        ctx.ring = ring
        ctx.dtype = dtype
        ctx.is_narrow = is_narrow

        # Positives and sums come from different products: rounding can put a solved batch below 0
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

        share = upstream / (2 * len(images) * ctx.ring.size)
        d_scale = (
            images * d_images
        ).sum() * share  # sum of g_ij x_i y_j, without another pass over the tiles

        return d_images.mul_(scale * share), d_texts.mul_(scale * share), d_scale, None, None


def _log_sums(
    x: Float[Tensor, "m d"], y: Float[Tensor, "n d"], factor: Float32[Tensor, ""], is_narrow: bool
) -> tuple[Float32[Tensor, " n"], Float32[Tensor, " m"]]:
    """Log-sum-exp of factor * x @ y.T over rows and over columns; in a narrow range both share one
    exponential.
    """
    products = _product(x, y.T)
    if products.is_cuda:
        return kernels.log_sums(products, factor)

    logits = products.mul_(factor)
    if not is_narrow:
        return logits.logsumexp(0), logits.logsumexp(1)

    exponentials = logits.sub_(
        factor
    ).exp_()  # vectors have unit norm, so no logit is above the factor
    return exponentials.sum(0).log_().add_(factor), exponentials.sum(1).log_().add_(factor)


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
    """Sums over all pairs of weight_ij * text_j for the local images, and of weight_ij * image_i
    for the local texts.

    The sums for texts travel one hop behind their chunk and end where they belong.
    """
    x = images.to(dtype)
    y = texts.to(dtype)
    d_images = torch.zeros_like(images)
    traveling = torch.zeros_like(texts)
    works: list[dist.Work] = []

    for owner, chunk in ring.chunks(y):
        d_chunk = torch.zeros_like(texts)
        for i, j in _tiles(x, chunk):
            tile = weights(x[i], chunk[j], i, owner, j)
            _add_product(d_images[i], tile, chunk[j])
            _add_product(d_chunk[j], tile.T, x[i])
        for work in works:
            work.wait()
        works, traveling = ring.shift(d_chunk.add_(traveling)) if ring.size > 1 else ([], d_chunk)

    for work in works:
        work.wait()

    return d_images, traveling


def _add_product(
    total: Float32[Tensor, "m d"], a: Float[Tensor, "m n"], b: Float[Tensor, "n d"]
) -> None:
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total.add_(_product(a, b))


class _Sigmoid(torch.autograd.Function):
    """loss = -sum_ij log sigmoid(z_ij (scale x_i y_j + bias)) / B, with z = 1 on the diagonal and
    -1 elsewhere.
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

        total = images.new_zeros((), dtype=torch.float64)

        for _, chunk in ring.chunks(y):
            for i, j in _tiles(x, chunk):
                logits = _product(x[i], chunk[j].T).mul_(factor).add_(bias)
                total += F.softplus(logits).sum(dtype=torch.float64)

        total -= (factor * (images * texts).sum(1) + bias).sum(
            dtype=torch.float64
        )  # softplus(z) - z = softplus(-z)

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

        d_images, d_texts = _ring_backward(images, texts, ctx.ring, ctx.dtype, weights)
        d_images -= texts
        d_texts -= images

        share = upstream / (len(images) * ctx.ring.size)
        d_scale = (images * d_images).sum() * share

        return d_images.mul_(scale * share), d_texts.mul_(scale * share), d_scale, None, None, None
