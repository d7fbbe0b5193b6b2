"""Learning rates of steps, and which parameters decay."""

import pytest
import torch

from train.config import ModelConfig, OptimConfig, TextConfig, VisionConfig
from train.model import DinoTxt
from train.optim import learning_rate, make_optimizer


def test_rate_rises_linearly_then_falls_to_zero() -> None:
    config = OptimConfig(lr=1.0, warmup_steps=10)
    rates = [learning_rate(step, 110, config) for step in range(110)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(0.5)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(110, 110, config) == pytest.approx(0.0)


def test_only_matrices_decay() -> None:
    model = DinoTxt(
        ModelConfig(TextConfig(32, 1, 2, 8), VisionConfig(blocks=1)), vocab_size=16, image_dim=64
    )
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = make_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 0.95 if parameter.ndim >= 2 else 1.0
        torch.testing.assert_close(
            parameter.detach(), before[name] * factor, msg=lambda text, name=name: f"{name}: {text}"
        )
