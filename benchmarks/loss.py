"""The contrastive loss by tiles against full logits, forward and backward, in one process: time and peak memory.

The reference is open_clip's `ClipLoss` where open_clip can be imported, otherwise the same formula written here. Each
contender runs in a process of its own, so that its peak memory is its own; the gradients are compared.

    python -m benchmarks.loss --batch-size 8192 --dim 512
"""

import importlib.util
import multiprocessing
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

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
    contenders: tuple[str, ...] = ("reference float32", "reference bfloat16", "ours float32", "ours bfloat16")
    """Which to run."""


def full_logits(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """open_clip's loss on one process, as its source has it."""
    per_image, per_text = scale * images @ texts.T, scale * texts @ images.T
    labels = torch.arange(len(images))
    return (F.cross_entropy(per_image, labels) + F.cross_entropy(per_text, labels)) / 2


def reference() -> tuple[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """open_clip's loss and its name, or the formula; its module alone is run, since the package needs torchvision."""
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


def measure(config: LossBenchmarkConfig, contender: str) -> tuple[str, float, float, Tensor]:
    """Name, CPU seconds of the quickest pass, peak memory beyond the inputs in MB, and some gradients."""
    torch.set_num_threads(config.threads)
    name, dtype = contender.split()[0], getattr(torch, contender.split()[1])
    generator = torch.Generator().manual_seed(0)
    images, texts = (
        F.normalize(torch.randn(config.batch_size, config.dim, generator=generator), dim=1) for _ in range(2)
    )
    texts = F.normalize(texts + images, dim=1)
    theirs, formula = reference() if name == "reference" else ("ours", None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(config.repeats):
        x, y = images.requires_grad_(), texts.requires_grad_()
        scale = torch.tensor(LOGIT_SCALE, requires_grad=True)
        started = time.process_time()
        if formula is None:
            loss = contrastive_loss(x, y, scale, dtype=dtype)
        else:
            loss = formula(x.to(dtype), y.to(dtype), scale.to(dtype)).float()
        gradients = torch.autograd.grad(loss, (x, y, scale))
        seconds.append(time.process_time() - started)
    peak_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return f"{theirs} {dtype}".replace("torch.", ""), min(seconds), peak_mb, gradients[0][:256].clone()


def main(config: LossBenchmarkConfig) -> None:
    """Print one line a contender, with its ratio to the first."""
    print(f"batch {config.batch_size}, width {config.dim}, {config.threads} threads")
    first: tuple[float, Tensor] | None = None
    for contender in config.contenders:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            name, seconds, peak_mb, gradient = pool.apply(measure, (config, contender))
        first = first or (seconds, gradient)
        error = float((gradient - first[1]).norm() / first[1].norm())
        print(
            f"{name:22s} {seconds:8.2f} cpu-s  {first[0] / seconds:5.2f} x as fast  {peak_mb:8.0f} MB  "
            f"gradient differs by {error:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main(tyro.cli(LossBenchmarkConfig))
