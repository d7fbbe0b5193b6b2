"""The training loop without Ray: it learns, resumes exactly, is the same on any number of ranks,
refuses bad input.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from tiny import TINY, group_of_one

from cluster.files import read_jsonl
from curation.shards.reader import EmbeddingShards
from train import checkpoint
from train.checkpoint import complete_checkpoints, damaged_checkpoints, step_of
from train.config import (
    CheckpointConfig,
    OptimConfig,
    ParallelConfig,
    ShuffleConfig,
    TrainConfig,
    VisionConfig,
)
from train.export.folder import load_model
from train.loop import Job, read_pairs, train
from train.validation import validate


def job(paths: dict[str, Path], out: Path) -> Job:
    return Job(out, **paths)


def losses(out: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in read_jsonl(out / "metrics.jsonl")]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def assert_same(
    left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], atol: float = 0.0
) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(
            tensor, right[name], rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_training_learns_and_leaves_a_loadable_model(
    undisturbed: Path, pooled_pairs: dict[str, Path]
) -> None:
    rows = read_jsonl(undisturbed / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert rows[-1]["val_loss"] < rows[9]["val_loss"]

    loaded = load_model(undisturbed / "model")
    assert loaded.spec == EmbeddingShards(pooled_pairs["embeddings"]).spec
    features = loaded.model.encode_tokens(
        loaded.tokenizer.encode(["a red apple", "a blue boat on a table"], 12)
    )
    assert features.shape == (2, 128)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("asynchronous", [False, True])
def test_stopped_training_goes_on_bitwise_equal(
    undisturbed: Path, pooled_pairs: dict[str, Path], tmp_path: Path, asynchronous: bool
) -> None:
    config = replace(TINY, checkpoint=CheckpointConfig(every_steps=7, asynchronous=asynchronous))
    steps = iter(range(1, 100))
    assert not train(
        config, job(pooled_pairs, tmp_path), lambda: "stop" if next(steps) == 10 else ""
    )
    saved = [path.name for path in complete_checkpoints(tmp_path / "checkpoints")]
    assert saved == ["step-00000007", "step-00000010"]
    assert train(config, job(pooled_pairs, tmp_path))
    assert_same(weights(undisturbed), weights(tmp_path))
    lines = [
        [(row["step"], row["loss"]) for row in read_jsonl(out / "metrics.jsonl")]
        for out in (undisturbed, tmp_path)
    ]
    assert lines[0] == lines[1]


@pytest.mark.usefixtures("process_group")
def test_stopped_training_on_blocks_and_all_captions_goes_on_bitwise_equal(
    pooled_pairs: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    config = replace(
        TINY, captions="all", shuffle=ShuffleConfig("blocks", block_rows=10, window_blocks=4)
    )
    assert train(config, job(pooled_pairs, tmp_path / "whole"))
    steps = iter(range(1, 100))
    assert not train(
        config, job(pooled_pairs, tmp_path / "cut"), lambda: "stop" if next(steps) == 10 else ""
    )
    assert train(config, job(pooled_pairs, tmp_path / "cut"))
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")


@pytest.mark.usefixtures("process_group")
def test_captions_cut_are_counted_across_a_stop(
    pooled_pairs: dict[str, Path], tmp_path: Path
) -> None:
    text = replace(TINY.model.text, context=5)
    config = replace(TINY, log_every=20, model=replace(TINY.model, text=text))
    whole = tmp_path / "whole"
    stopped = tmp_path / "stopped"
    for folder in (whole, stopped):
        folder.mkdir()
    steps = iter(range(1, 100))
    assert not train(config, job(pooled_pairs, stopped), lambda: "stop" if next(steps) == 7 else "")
    assert train(config, job(pooled_pairs, stopped))
    assert train(config, job(pooled_pairs, whole))
    cut = [
        sum(row["captions_cut"] for row in read_jsonl(out / "metrics.jsonl"))
        for out in (whole, stopped)
    ]
    assert cut[0] == cut[1] > 0


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (lambda: replace(TINY, micro_batch=0), "train.micro_batch is 0: must be at least 1"),
        (lambda: replace(TINY, num_steps=2), "warmup_steps is 2 of 2 steps: must be fewer"),
        (
            lambda: CheckpointConfig(every_steps=0),
            "checkpoint.every_steps is 0: must be at least 1",
        ),
        (lambda: CheckpointConfig(keep=0), "checkpoint.keep is 0: must be at least 1"),
    ],
)
def test_sizes_without_meaning_are_refused(wrong: Callable[[], object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        wrong()


@pytest.mark.usefixtures("process_group")
def test_a_checkpoint_without_its_marker_is_not_read(
    pooled_pairs: dict[str, Path], tmp_path: Path
) -> None:
    steps = iter(range(1, 100))
    config = replace(TINY, checkpoint=CheckpointConfig(every_steps=1000))
    assert not train(
        config, job(pooled_pairs, tmp_path), lambda: "stop" if next(steps) == 4 else ""
    )
    (tmp_path / "checkpoints" / "step-00000004" / "complete.json").unlink()
    assert not train(config, job(pooled_pairs, tmp_path), lambda: "stop")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [
        "step-00000001"
    ]  # what was left is removed


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("damage", ["cut data", "no metadata", "empty marker"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_read(
    undisturbed: Path, pooled_pairs: dict[str, Path], tmp_path: Path, damage: str
) -> None:
    config = replace(TINY, checkpoint=CheckpointConfig(every_steps=7))
    steps = iter(range(1, 100))
    assert not train(
        config, job(pooled_pairs, tmp_path), lambda: "stop" if next(steps) == 10 else ""
    )
    before, last = complete_checkpoints(tmp_path / "checkpoints")

    if damage == "cut data":
        data = next(last.glob("*.distcp"))
        data.write_bytes(data.read_bytes()[:-10])
    elif damage == "no metadata":
        (last / ".metadata").unlink()
    else:
        (last / "complete.json").write_text("")

    [problem] = damaged_checkpoints(tmp_path / "checkpoints")
    assert str(last) in problem
    assert complete_checkpoints(tmp_path / "checkpoints") == [before]
    assert train(config, job(pooled_pairs, tmp_path))
    assert_same(weights(undisturbed), weights(tmp_path))


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(
    "optim", [OptimConfig(lr=3e-3, warmup_steps=2), OptimConfig(lr=0.03, warmup_steps=19)]
)
def test_the_best_step_is_kept_and_exported_beside_the_last(
    pooled_pairs: dict[str, Path], tmp_path: Path, optim: OptimConfig
) -> None:
    """With the larger rate the held-out loss rises again, and the best step is an early one."""
    config = replace(
        TINY, best="val_loss", val_every=3, optim=optim, checkpoint=CheckpointConfig(keep=1)
    )
    steps = iter(range(1, 100))
    assert not train(
        config, job(pooled_pairs, tmp_path), lambda: "stop" if next(steps) == 11 else ""
    )
    saved = {step_of(path) for path in complete_checkpoints(tmp_path / "checkpoints")}
    rows = [row for row in read_jsonl(tmp_path / "metrics.jsonl") if "val_loss" in row]
    assert saved == {11, min(rows, key=lambda row: row["val_loss"])["step"]}
    assert train(config, job(pooled_pairs, tmp_path))

    rows = [row for row in read_jsonl(tmp_path / "metrics.jsonl") if "val_loss" in row]
    best = min(rows, key=lambda row: row["val_loss"])
    last = rows[-1]
    assert (best is last) == (optim.lr == 3e-3)
    pairs = read_pairs(config, job(pooled_pairs, tmp_path))
    for name, row in (("best_model", best), ("model", last)):
        model = load_model(tmp_path / name).model
        found = validate(model, pairs, replace(config, micro_batch=3), torch.device("cpu"))
        assert found["val_loss"] == pytest.approx(row["val_loss"], rel=1e-5)


@pytest.mark.usefixtures("process_group")
def test_blocks_with_drop_path_checkpointing_and_bfloat16_train(
    make_pairs: Callable[..., dict[str, Path]], tmp_path: Path
) -> None:
    vision = VisionConfig(blocks=1, drop_path=0.3)
    parallel = ParallelConfig(dtype="bfloat16", recompute_blocks=True)
    config = replace(
        TINY, num_steps=15, model=replace(TINY.model, vision=vision), parallel=parallel
    )
    assert train(config, job(make_pairs(content="grid"), tmp_path))
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    assert {tensor.dtype for tensor in weights(tmp_path).values()} == {torch.float32}


@pytest.mark.usefixtures("process_group")
def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_it(
    pooled_pairs: dict[str, Path], tmp_path: Path
) -> None:
    config = replace(
        TINY, optim=OptimConfig(lr=1e30, warmup_steps=0), checkpoint=CheckpointConfig(every_steps=1)
    )
    with pytest.raises(FloatingPointError, match=r"at step \d+, rank 0, on the pairs \['pair-"):
        train(config, job(pooled_pairs, tmp_path))
    finished = [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")]
    assert [step_of(path) for path in complete_checkpoints(tmp_path / "checkpoints")] == finished[
        -2:
    ]


@pytest.mark.usefixtures("process_group")
def test_wrong_sizes_are_refused(pooled_pairs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one whole batch"):
        train(replace(TINY, batch_size=1000), job(pooled_pairs, tmp_path))
    with pytest.raises(ValueError, match="pooled embeddings"):
        train(
            replace(TINY, model=replace(TINY.model, vision=VisionConfig(blocks=2))),
            job(pooled_pairs, tmp_path),
        )
    with pytest.raises(ValueError, match="batch_size is 1"):
        TrainConfig(batch_size=1)


def compiled_main(rank: int, config: TrainConfig, job: Job) -> None:
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    with group_of_one():
        assert train(config, job)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("process_group")
def test_compiled_blocks_train_as_plain_ones_and_are_not_compiled_for_every_pack(
    make_pairs: Callable[..., dict[str, Path]], tmp_path: Path
) -> None:
    config = replace(TINY, model=replace(TINY.model, vision=VisionConfig(blocks=1)))
    paths = make_pairs(content="grid")
    for name in ("plain", "compiled"):
        (tmp_path / name).mkdir()
    assert train(config, job(paths, tmp_path / "plain"))
    compiled = replace(config, parallel=ParallelConfig(dtype="float32", compile=True))
    mp.spawn(compiled_main, (compiled, job(paths, tmp_path / "compiled")))
    np.testing.assert_allclose(losses(tmp_path / "compiled"), losses(tmp_path / "plain"), rtol=1e-3)


def rank_main(rank: int, world: int, folder: Path, paths: dict[str, Path]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / f'store-{world}'}", rank=rank, world_size=world
    )
    try:
        steps = iter(range(1, 100))
        assert not train(
            TINY, job(paths, folder / "moved"), lambda: "stop" if next(steps) == 10 else ""
        )
        assert train(TINY, job(paths, folder / "ranks"))
        steps = iter(range(1, 100))
        assert not train(
            TINY, job(paths, folder / "late"), lambda: "stop" if next(steps) == 10 else ""
        )
        if rank:  # a network file system shows it the checkpoints late
            checkpoint.complete_checkpoints = lambda folder: []
        assert train(TINY, job(paths, folder / "late"))
    finally:
        dist.destroy_process_group()


def test_two_ranks_train_as_one_and_their_checkpoint_loads_on_one(
    undisturbed: Path, pooled_pairs: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("ranks", "moved", "late"):
        (tmp_path / name).mkdir()
    mp.spawn(rank_main, (2, tmp_path, pooled_pairs), nprocs=2)
    with group_of_one():
        assert train(TINY, job(pooled_pairs, tmp_path / "moved"))
    runs = (undisturbed, tmp_path / "ranks", tmp_path / "moved", tmp_path / "late")
    for out in runs[1:]:
        np.testing.assert_allclose(losses(out), losses(undisturbed), rtol=2e-4)
