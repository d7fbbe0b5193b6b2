"""Two-pass feature caching against one pass, and clipping against torch's."""

from dataclasses import replace

import pytest
import torch

from train.attention import pack, unpack
from train.batch import Batch, Stored, split
from train.config import LossConfig, ModelConfig, TextConfig, VisionConfig
from train.gradients import backward, clip_gradients
from train.model import DinoTxt

CAPTIONS = [[2 + (7 * row + place) % 20 for place in range(row % 5)] + [1] for row in range(12)]


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    vectors = [
        torch.randn(12, *shape, generator=generator) for shape in ((1, 64), (2, 64), (3, 64))
    ]
    return Batch(
        [f"key-{row}" for row in range(12)],
        pack(CAPTIONS),
        tuple(Stored(vector) for vector in vectors),
    )


def gradients(parts: list[Batch], kind: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    torch.manual_seed(0)
    vision = VisionConfig(blocks=1, drop_path=0.0, layer_scale=1.0)
    model = DinoTxt(ModelConfig(TextConfig(32, 2, 2, 8), vision), vocab_size=24, image_dim=64)
    loss, features = backward(model, parts, LossConfig(kind=kind), seed=3)
    assert features.images.shape == (12, 128)
    return loss, [parameter.grad for parameter in model.parameters()]


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("most", [1, 5, 6])
def test_two_passes_give_the_gradients_of_one(kind: str, most: int) -> None:
    parts = split(batch(), most)
    assert len(parts) == -(-12 // most)
    loss, computed = gradients(parts, kind)
    expected_loss, expected = gradients([batch()], kind)
    torch.testing.assert_close(loss, expected_loss)
    for actual, reference in zip(computed, expected, strict=True):
        # The same float32 terms, added in another order: 36 tokens, 64 to 128 channels. Reordering
        # a sum of n terms moves it by at most n roundings of the largest partial sum, which is near
        # the tensor's largest value.
        rounding = torch.finfo(torch.float32).eps * reference.abs().max().item()
        torch.testing.assert_close(actual, reference, rtol=0, atol=128 * rounding)


def test_splitting_keeps_every_pair() -> None:
    assert split(batch(), None)[0].keys == split(batch(), 12)[0].keys == batch().keys
    parts = split(batch(), 5)
    assert [key for part in parts for key in part.keys] == batch().keys
    assert [caption for part in parts for caption in unpack(part.captions)] == CAPTIONS
    assert torch.cat([part.inputs()[3] for part in parts]).equal(batch().inputs()[3])


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("clip_norm", [None, 0.1, 100.0])
def test_clipping_equals_torch(clip_norm: float | None) -> None:
    ours, theirs = (
        DinoTxt(ModelConfig(TextConfig(32, 1, 2, 8), VisionConfig(blocks=0)), 24, 64)
        for _ in range(2)
    )
    theirs.load_state_dict(ours.state_dict())
    for model in (ours, theirs):
        torch.manual_seed(1)
        backward(model, [replace(batch())], LossConfig(), seed=0)
    expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip_norm or float("inf"))
    torch.testing.assert_close(clip_gradients(ours, clip_norm, replicas=1), expected)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
