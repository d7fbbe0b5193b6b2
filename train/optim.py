"""AdamW over a model's parameters, and the learning rate of each step.

Weight decay applies to matrices, not to gains, biases and the logit scale. The moments are
allocated at once, so that a checkpoint can be read into them before the first step.
"""

import math

import torch
from torch import nn

from train.config import OptimConfig


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW with its moments allocated and set to zero."""
    parameters = list(model.parameters())

    # Matrices and embeddings have two dimensions; gains, biases and the logit scale have one.
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]

    optimizer = torch.optim.AdamW(
        groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True
    )

    # What AdamW itself would make in its first step, under the names that it looks up.
    for parameter in parameters:
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }

    return optimizer


def learning_rate(step: int, num_steps: int, config: OptimConfig) -> float:
    """Learning rate of a step, which counts from 0: linear warm-up, then a cosine to 0.

    With lr 1 and 2 warm-up steps of 6, the rates are 0.5, 1, 1, 0.854, 0.5, 0.146.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use this rate for all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = lr
