"""The training loop without Ray: it learns, resumes exactly, is the same on any number of ranks, refuses bad input."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file

from cluster.files import read_jsonl
from curation.shards import EmbeddingShards
from train import loop
from train.checkpoint import CheckpointConfig, complete_checkpoints
from train.export import load_model
from train.loop import Job, TrainConfig, train
from train.model import ModelConfig, TextConfig, VisionConfig
from train.optim import OptimConfig
from train.parallel import ParallelConfig

TINY = TrainConfig(
    model=ModelConfig(TextConfig(width=32, layers=2, heads=2, context=12), VisionConfig(blocks=0)),
    batch_size=24,
    num_steps=20,
    holdout=0.1,
    log_every=5,
    val_every=10,
    optim=OptimConfig(lr=3e-3, warmup_steps=2),
    checkpoint=CheckpointConfig(every_steps=1000),
)


def job(paths: dict[str, Path], out: Path) -> Job:
    return Job(out, **paths)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], atol: float = 0.0) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(
            tensor, right[name], rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.usefixtures("process_group")
def test_training_learns_and_leaves_a_loadable_model(pooled_pairs: dict[str, Path], tmp_path: Path) -> None:
    config = replace(TINY, num_steps=40)
    assert train(config, job(pooled_pairs, tmp_path))
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(5, 41, 5))
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert rows[-1]["val_loss"] < rows[1]["val_loss"]

    loaded = load_model(tmp_path / "model")
    assert loaded.spec == EmbeddingShards(pooled_pairs["embeddings"]).spec
    features = loaded.model.encode_tokens(loaded.tokenizer.encode(["a red apple", "a blue boat on a table"], 12))
    assert features.shape == (2, 128)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("asynchronous", [False, True])
def test_stopped_training_goes_on_bitwise_equal(
    pooled_pairs: dict[str, Path], tmp_path: Path, asynchronous: bool
) -> None:
    config = replace(TINY, log_every=1, checkpoint=CheckpointConfig(every_steps=7, asynchronous=asynchronous))
    whole, parts = job(pooled_pairs, tmp_path / "whole"), job(pooled_pairs, tmp_path / "parts")
    for each in (whole, parts):
        each.out.mkdir()
    assert train(config, whole)
    steps = iter(range(1, 100))
    assert not train(config, parts, lambda: "stop" if next(steps) == 10 else "")
    assert [path.name for path in complete_checkpoints(parts.out / "checkpoints")] == ["step-00000007", "step-00000010"]
    assert train(config, parts)
    assert_same(weights(whole.out), weights(parts.out))
    lines = [[(row["step"], row["loss"]) for row in read_jsonl(each.out / "metrics.jsonl")] for each in (whole, parts)]
    assert lines[0] == lines[1]


@pytest.mark.usefixtures("process_group")
def test_a_checkpoint_without_its_marker_is_not_read(pooled_pairs: dict[str, Path], tmp_path: Path) -> None:
    steps = iter(range(1, 100))
    assert not train(TINY, job(pooled_pairs, tmp_path), lambda: "stop" if next(steps) == 10 else "")
    (tmp_path / "checkpoints" / "step-00000010" / "complete.json").unlink()
    assert not train(TINY, job(pooled_pairs, tmp_path), lambda: "stop")
    assert [path.name for path in complete_checkpoints(tmp_path / "checkpoints")] == ["step-00000001"]


@pytest.mark.usefixtures("process_group")
def test_blocks_with_drop_path_checkpointing_and_bfloat16_train(
    make_pairs: Callable[..., dict[str, Path]], tmp_path: Path
) -> None:
    vision = VisionConfig(blocks=1, drop_path=0.3)
    parallel = ParallelConfig(dtype="bfloat16", recompute_blocks=True)
    config = replace(TINY, num_steps=30, model=replace(TINY.model, vision=vision), parallel=parallel)
    assert train(config, job(make_pairs(content="grid"), tmp_path))
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert {tensor.dtype for tensor in weights(tmp_path).values()} == {torch.float32}


@pytest.mark.usefixtures("process_group")
def test_bad_embeddings_stop_before_the_weights_are_touched(
    pooled_pairs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.Pairs.batch

    def poisoned(self: loop.Pairs, step: int, *args: int) -> loop.Batch:
        batch = original(self, step, *args)
        if step == 7:
            batch.cls[3] = float("nan")
        return batch

    monkeypatch.setattr(loop.Pairs, "batch", poisoned)
    with pytest.raises(FloatingPointError, match=r"step 8.*pair-"):
        train(replace(TINY, checkpoint=CheckpointConfig(every_steps=5)), job(pooled_pairs, tmp_path))
    assert [path.name for path in complete_checkpoints(tmp_path / "checkpoints")] == ["step-00000005"]


@pytest.mark.usefixtures("process_group")
def test_wrong_sizes_are_refused(pooled_pairs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one whole batch"):
        train(replace(TINY, batch_size=1000), job(pooled_pairs, tmp_path))
    with pytest.raises(ValueError, match="pooled embeddings"):
        train(replace(TINY, model=replace(TINY.model, vision=VisionConfig(blocks=2))), job(pooled_pairs, tmp_path))
    with pytest.raises(ValueError, match="batch_size is 1"):
        TrainConfig(batch_size=1)


def rank_main(rank: int, world: int, folder: Path, paths: dict[str, Path]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / f'store-{world}'}", rank=rank, world_size=world)
    try:
        steps = iter(range(1, 100))
        assert not train(TINY, job(paths, folder / "moved"), lambda: "stop" if next(steps) == 10 else "")
        assert train(TINY, job(paths, folder / "ranks"))
    finally:
        dist.destroy_process_group()


def test_two_ranks_train_as_one_and_their_checkpoint_loads_on_one(
    pooled_pairs: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("one", "ranks", "moved"):
        (tmp_path / name).mkdir()
    mp.spawn(rank_main, (2, tmp_path, pooled_pairs), nprocs=2)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert train(TINY, job(pooled_pairs, tmp_path / "one"))
        assert train(TINY, job(pooled_pairs, tmp_path / "moved"))
    finally:
        dist.destroy_process_group()
    losses = [
        [row["loss"] for row in read_jsonl(tmp_path / name / "metrics.jsonl")] for name in ("one", "ranks", "moved")
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-4)
    np.testing.assert_allclose(losses[0], losses[2], rtol=2e-4)
