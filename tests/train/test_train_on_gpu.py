"""Training on a CUDA device: packed attention, exact losses, the loop over nccl, exact resume."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from tiny import TINY, group_of_one
from torch.nn.utils.rnn import pad_sequence

from cluster.files import read_jsonl
from train.attention import (
    MOST_CAPTIONS,
    Case,
    grouped_attention,
    installed_kernels,
    pack,
    packed_attention,
    why_not,
)
from train.config import (
    AttentionChoice,
    LossConfig,
    ParallelConfig,
    TextConfig,
    TrainConfig,
    VisionConfig,
)
from train.export.folder import load_model
from train.loop import Job, train
from train.loss import global_loss
from train.model import TextEncoder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

LENGTHS = [1, 2, 3, 3, 9, 40, 77, 12, 1]
HALF_TOLERANCE = 2e-2  # bfloat16 holds 8 bits


@pytest.fixture
def gpu_group() -> Iterator[None]:
    """A process group of one on the GPU."""
    torch.cuda.set_device(0)
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [64, 48])
@pytest.mark.parametrize("lengths", [LENGTHS, [32, 33, 64, 65, 200], [1] * MOST_CAPTIONS])
@pytest.mark.parametrize("kernel", ["auto", "triton", "varlen", "xformers"])
def test_packed_attention_equals_the_grouped_one_in_values_and_gradients(
    lengths: list[int], width: int, dtype: torch.dtype, kernel: AttentionChoice
) -> None:
    case = Case("cuda", width, dtype == torch.float32, installed_kernels())
    if kernel != "auto" and (problem := why_not(kernel, case)):
        pytest.skip(problem)
    layout = pack([[1] * length for length in lengths])
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(sum(lengths), 3, 2, width, generator=generator, requires_grad=True)
    weights = torch.randn(sum(lengths), 2, width, generator=generator)
    expected = grouped_attention(exact, layout)
    (expected * weights).sum().backward()
    found = exact.detach().to("cuda", dtype).requires_grad_()
    attended = packed_attention(found, layout.to("cuda"), kernel)
    (attended.float() * weights.cuda()).sum().backward()
    tolerance = 1e-5 if dtype == torch.float32 else HALF_TOLERANCE
    for a, b in ((attended, expected), (found.grad, exact.grad)):
        assert float((a.detach().cpu().float() - b.detach()).norm() / b.detach().norm()) < tolerance


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scale", [14.3, 100.0])
def test_losses_equal_the_naive_ones_in_value_and_gradients(
    kind: str, dtype: str, scale: float
) -> None:
    rows = 3000
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(rows, 96, generator=generator), dim=1)
    texts = F.normalize(images + 0.5 * torch.randn(rows, 96, generator=generator), dim=1)
    exact = [x.double().cuda().requires_grad_() for x in (images, texts, torch.tensor(scale))]
    logits = exact[2] * exact[0] @ exact[1].T
    if kind == "sigmoid":
        signs = 2 * torch.eye(rows, dtype=torch.float64, device="cuda") - 1
        expected = -F.logsigmoid(signs * (logits - 10)).sum() / rows
    else:
        labels = torch.arange(rows, device="cuda")
        expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    expected.backward()
    found = [x.cuda().requires_grad_() for x in (images, texts, torch.tensor(scale))]
    loss = global_loss(*found, LossConfig(kind, dtype))
    loss.backward()
    tolerance = 1e-5 if dtype == "float32" else HALF_TOLERANCE
    assert math.isclose(loss.item(), expected.item(), rel_tol=tolerance)
    for a, b in zip(found, exact, strict=True):
        assert float((a.grad - b.grad).norm() / b.grad.norm()) < 10 * tolerance


def train_alone(rank: int, config: TrainConfig, job: Job) -> None:
    """In a process of its own the type checks of the tests are not on: no compiler understands
    them.
    """
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    assert train(config, job)
    dist.destroy_process_group()


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.timeout(400)
def test_blocks_in_bfloat16_recomputed_and_compiled_train(
    make_pairs: Callable[..., dict[str, Path]], tmp_path: Path, compiled: bool
) -> None:
    vision = VisionConfig(blocks=1, drop_path=0.3)
    parallel = ParallelConfig(dtype="bfloat16", recompute_blocks=True, compile=compiled)
    loss = LossConfig(dtype="bfloat16")
    config = replace(TINY, loss=loss, model=replace(TINY.model, vision=vision), parallel=parallel)
    mp.spawn(train_alone, (config, Job(tmp_path, **make_pairs(content="grid", dtype="int8"))))
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    assert rows[-1]["memory_gb"] > 0
    assert load_model(tmp_path / "model").model.config.vision.blocks == 1


@pytest.mark.usefixtures("gpu_group")
def test_stopped_training_goes_on_bitwise_equal(
    make_pairs: Callable[..., dict[str, Path]], tmp_path: Path
) -> None:
    config = replace(TINY, model=replace(TINY.model, vision=VisionConfig(blocks=1)), micro_batch=16)
    paths = make_pairs(content="grid")
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    assert train(config, Job(tmp_path / "whole", **paths))
    steps = iter(range(1, 100))
    assert not train(
        config, Job(tmp_path / "cut", **paths), lambda: "stop" if next(steps) == 10 else ""
    )
    assert train(config, Job(tmp_path / "cut", **paths))
    files = [
        (tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "cut")
    ]
    assert files[0] == files[1]


def test_the_gpu_learns_what_the_cpu_learns(
    pooled_pairs: dict[str, Path], tmp_path: Path, gpu_group: None
) -> None:
    for name in ("cpu", "gpu"):
        (tmp_path / name).mkdir()
    assert train(TINY, Job(tmp_path / "gpu", **pooled_pairs))
    dist.destroy_process_group()
    with group_of_one():
        assert train(TINY, Job(tmp_path / "cpu", **pooled_pairs))
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    rows = [read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("cpu", "gpu")]
    for cpu, gpu in zip(*rows, strict=True):
        assert gpu["loss"] == pytest.approx(cpu["loss"], rel=1e-3)


def test_the_packed_encoder_equals_the_padded_one() -> None:
    """In bfloat16, as it trains: cosines of the features."""
    torch.manual_seed(0)
    encoder = (
        TextEncoder(TextConfig(width=128, layers=4, heads=2, context=77), 64, 32).cuda().bfloat16()
    )
    captions = [[2 + place % 60 for place in range(length - 1)] + [1] for length in LENGTHS]
    padded = pad_sequence(
        [torch.tensor(caption) for caption in captions], batch_first=True
    ).tolist()
    layout = pack(padded)
    whole = replace(
        layout, ends=torch.tensor([77 * row + len(ids) - 1 for row, ids in enumerate(captions)])
    )
    with torch.no_grad():
        features = [
            F.normalize(encoder(layout.to("cuda")), dim=-1) for layout in (pack(captions), whole)
        ]
    assert float((features[0] * features[1]).sum(-1).min()) > 0.999
