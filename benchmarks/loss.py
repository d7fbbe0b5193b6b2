"""The contrastive loss by tiles against full logits, forward and backward, in one process: time and
peak memory.

The reference is open_clip's `ClipLoss` where open_clip can be imported, otherwise the same formula
written here. Each contender runs in a process of its own, so that its peak memory is its own; the
gradients are compared.

    python -m benchmarks.loss --batch-size 8192 --dim 512
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from benchmarks.cost import UNITS, Cost, alone, cost_of
from train.loss import contrastive_loss

LOGIT_SCALE = 14.3


@dataclass(frozen=True)
class LossBenchmarkConfig:
    """What is timed."""

    batch_size: int = 8192
    """Pairs."""
    dim: int = 512
    """Width of the features."""
    repeats: int = 2
    """Timed passes of each contender; the quickest counts."""
    threads: int = 1
    """Threads of torch."""
    device: str = "cpu"
    """cpu or cuda."""
    contenders: tuple[str, ...] = (
        "reference float32",
        "reference bfloat16",
        "ours float32",
        "ours bfloat16",
    )
    """Which to run."""


def full_logits(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """open_clip's loss on one process, as its source has it."""
    per_image = scale * images @ texts.T
    per_text = scale * texts @ images.T
    labels = torch.arange(len(images), device=images.device)
    return (F.cross_entropy(per_image, labels) + F.cross_entropy(per_text, labels)) / 2


def reference() -> tuple[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """open_clip's loss and its name, or the formula; its module alone is run, since the package
    needs torchvision.
    """
    package = importlib.util.find_spec("open_clip")
    if package is None or not package.submodule_search_locations:
        return "full logits", full_logits

    path = Path(package.submodule_search_locations[0]) / "loss.py"
    spec = importlib.util.spec_from_file_location("open_clip_loss", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    return "open_clip", module.ClipLoss()


def measure(config: LossBenchmarkConfig, contender: str) -> tuple[str, Cost, Tensor]:
    """Name, cost of the quickest pass beyond the inputs, and some gradients."""
    torch.set_num_threads(config.threads)
    name = contender.split()[0]
    dtype = getattr(torch, contender.split()[1])
    device = torch.device(config.device)
    generator = torch.Generator().manual_seed(0)
    images, texts = (
        F.normalize(torch.randn(config.batch_size, config.dim, generator=generator), dim=1).to(
            device
        )
        for _ in range(2)
    )
    texts = F.normalize(texts + images, dim=1)
    theirs, formula = reference() if name == "reference" else ("ours", None)
    x = images.requires_grad_()
    y = texts.requires_grad_()
    scale = torch.tensor(LOGIT_SCALE, requires_grad=True, device=device)
    found: list[Tensor] = []

    def run() -> None:
        if formula is None:
            loss = contrastive_loss(x, y, scale, dtype=dtype)
        else:
            loss = formula(x.to(dtype), y.to(dtype), scale.to(dtype)).float()
        found[:] = [torch.autograd.grad(loss, (x, y, scale))[0][:256].clone()]

    cost = cost_of(run, config.repeats, device)
    return f"{theirs} {dtype}".replace("torch.", ""), cost, found[0].cpu()


class LossRow(NamedTuple):
    """What one contender took."""

    seconds: float
    """CPU seconds, or seconds on a GPU, of the quickest pass."""
    peak_mb: float
    gradient_error: float
    """Norm of the difference from the first contender's gradient, relative to that gradient's
    norm.
    """


def compare(config: LossBenchmarkConfig) -> dict[str, LossRow]:
    """Print and return one line per contender, each with its ratio to the first."""
    print(
        f"batch {config.batch_size}, width {config.dim}, {config.device}, {config.threads} threads"
    )
    rows: dict[str, LossRow] = {}
    reference_gradient: Tensor | None = None

    for contender in config.contenders:
        name, cost, gradient = alone(measure, config, contender)

        reference_gradient = gradient if reference_gradient is None else reference_gradient
        error = float((gradient - reference_gradient).norm() / reference_gradient.norm())
        rows[name] = LossRow(cost.seconds, cost.peak_mb, error)

        first = next(iter(rows.values()))
        print(
            f"{name:22s} {cost.seconds:10.4f} {UNITS[config.device]}  "
            f"{first.seconds / cost.seconds:5.2f} x as fast{cost.peak_mb:10.0f} MB  gradient "
            f"differs by {error:.1e}",
            flush=True,
        )

    return rows


if __name__ == "__main__":
    compare(tyro.cli(LossBenchmarkConfig))
