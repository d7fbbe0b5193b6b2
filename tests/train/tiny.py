"""A training run that takes a second, and the process group it needs."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import torch.distributed as dist

from train.config import (
    CheckpointConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    TextConfig,
    TrainConfig,
    VisionConfig,
)

TINY = TrainConfig(
    model=ModelConfig(TextConfig(width=32, layers=2, heads=2, context=12), VisionConfig(blocks=0)),
    batch_size=24,
    num_steps=20,
    holdout=0.1,
    log_every=1,
    val_every=10,
    optim=OptimConfig(lr=3e-3, warmup_steps=2),
    parallel=ParallelConfig(dtype="float32"),
    checkpoint=CheckpointConfig(every_steps=5),
)


@contextmanager
def group_of_one() -> Iterator[None]:
    """A process group of one, on one thread."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
