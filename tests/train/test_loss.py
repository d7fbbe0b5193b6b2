"""The tiled ring losses against the naive ones on all pairs: values and every gradient, on 1 to 3
ranks.
"""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from train import loss as loss_module
from train.config import LossConfig
from train.loss import contrastive_loss, global_loss, sigmoid_loss

BIAS = -4.0


def features(rows: int, dim: int = 16, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(F.normalize(torch.randn(rows, dim, generator=generator), dim=1) for _ in range(2))


def naive(
    kind: str, images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    logits = scale * images @ texts.T
    if kind == "sigmoid":
        signs = 2 * torch.eye(len(logits), dtype=logits.dtype) - 1
        return -F.logsigmoid(signs * (logits + BIAS)).sum() / len(logits)
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def reference(kind: str, rows: int, log_scale: float) -> list[torch.Tensor]:
    """Loss and its gradients in float64."""
    images, texts = (x.double().requires_grad_() for x in features(rows))
    scale = torch.tensor(math.exp(log_scale), dtype=torch.float64, requires_grad=True)
    loss = naive(kind, images, texts, scale)
    loss.backward()
    return [loss.detach(), images.grad, texts.grad, scale.grad]


def ours(
    kind: str, images: torch.Tensor, texts: torch.Tensor, log_scale: float, group: object = None
) -> list[torch.Tensor]:
    leaves = [
        images.clone().requires_grad_(),
        texts.clone().requires_grad_(),
        torch.tensor(math.exp(log_scale), requires_grad=True),
    ]
    config = LossConfig(kind=kind, sigmoid_bias=BIAS)
    loss = global_loss(*leaves, config, group)
    loss.backward()
    return [loss.detach(), *(leaf.grad for leaf in leaves)]


def assert_close(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for a, e in zip(actual, expected, strict=True):
        scale = e.abs().max().clamp_min(1e-2)
        torch.testing.assert_close(a.double() / scale, e / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("log_scale", [0.0, math.log(1 / 0.07), math.log(100)])
@pytest.mark.parametrize("rows", [3, 37, 64])
def test_loss_equals_naive_in_value_and_gradients(
    kind: str, log_scale: float, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loss_module.TILE, "cpu", (16, 24))
    assert_close(ours(kind, *features(rows), log_scale), reference(kind, rows, log_scale))


def test_loss_is_exact_where_a_row_lies_far_below_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """One image opposite to all texts at scale 100: its logits are 200 below the largest."""
    monkeypatch.setitem(loss_module.TILE, "cpu", (4, 4))
    images = F.normalize(torch.ones(8, 4) + 0.01 * torch.arange(32).reshape(8, 4), dim=1)
    texts = images.clone()
    images[3] *= -1
    leaves = [
        images.double().requires_grad_(),
        texts.double().requires_grad_(),
        torch.tensor(100.0).double().requires_grad_(),
    ]
    expected = naive("softmax", *leaves)
    expected.backward()
    assert_close(
        ours("softmax", images, texts, math.log(100)),
        [expected.detach(), *(leaf.grad for leaf in leaves)],
    )


def test_bfloat16_tiles_are_close_to_float32() -> None:
    images, texts = features(64, 64)
    scale = torch.tensor(14.0)
    exact = contrastive_loss(images, texts, scale)
    torch.testing.assert_close(
        contrastive_loss(images, texts, scale, dtype=torch.bfloat16), exact, rtol=2e-3, atol=0
    )


def test_sigmoid_loss_is_zero_for_certain_answers() -> None:
    eye = torch.eye(8)
    loss = sigmoid_loss(eye, eye, torch.tensor(100.0), -50.0)
    assert float(loss) < 1e-6


def rank_main(rank: int, world: int, store: str, rows: int) -> None:
    loss_module.TILE["cpu"] = (8, 8)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    try:
        images, texts = features(rows)
        mine = slice(rank * rows // world, (rank + 1) * rows // world)
        for kind in ("softmax", "sigmoid"):
            for log_scale in (0.0, math.log(100)):
                actual = ours(kind, images[mine], texts[mine], log_scale, dist.group.WORLD)
                expected = reference(kind, rows, log_scale)
                dist.all_reduce(actual[3])
                assert_close(
                    actual, [expected[0], expected[1][mine], expected[2][mine], expected[3]]
                )
        with pytest.raises(ValueError, match="the same number on each"):
            contrastive_loss(
                images[: 4 + rank], texts[: 4 + rank], torch.tensor(1.0), dist.group.WORLD
            )
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("world", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_loss_on_ranks_equals_one_process(world: int, tmp_path: Path) -> None:
    mp.spawn(rank_main, (world, str(tmp_path / "store"), 42), nprocs=world)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_a_solved_batch_has_no_negative_loss(kind: str, dtype: str) -> None:
    """Every image equals its text and is orthogonal to the others: the loss is 0 but for
    rounding.
    """
    for seed in range(5):
        basis = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(seed)))[
            0
        ]
        config = LossConfig(kind=kind, dtype=dtype, sigmoid_bias=-50.0)
        assert 0 <= global_loss(basis, basis.clone(), torch.tensor(100.0), config) < 0.1
