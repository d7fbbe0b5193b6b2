"""The train step through Ray Train: one and two workers, and a worker killed with SIGKILL."""

import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from cluster.files import read_jsonl
from cluster.resources import Resources
from train.checkpoint import CheckpointConfig, complete_checkpoints
from train.loop import TrainConfig
from train.model import ModelConfig, TextConfig, VisionConfig
from train.optim import OptimConfig
from train.trainer import TrainingStopped, request_stop, run

TINY = TrainConfig(
    model=ModelConfig(TextConfig(width=32, layers=2, heads=2, context=12), VisionConfig(blocks=0)),
    batch_size=24,
    num_steps=20,
    holdout=0.1,
    log_every=1,
    optim=OptimConfig(lr=3e-3, warmup_steps=2),
    checkpoint=CheckpointConfig(every_steps=5),
    resources=Resources(workers=1, cpus=1.0),
)


def once(ready: object, act: object, ended: threading.Event) -> threading.Thread:
    """Call `act` as soon as `ready` is true, unless the run ends before."""

    def watch() -> None:
        while not ended.wait(0.005):
            if ready():
                act()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def train_workers() -> list[psutil.Process]:
    return [
        child for child in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(child.cmdline())
    ]


def kill_workers() -> None:
    for process in train_workers():
        process.kill()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_killed_worker_resumes_to_the_same_weights(pooled_pairs: dict[str, Path], tmp_path: Path) -> None:
    config = replace(TINY, num_steps=40)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for out in (whole, killed):
        out.mkdir()
    summary = run(config, out=whole, **pooled_pairs)
    assert summary["step"] == 40
    assert not (whole / "checkpoints").exists()

    ended = threading.Event()
    watch = once(lambda: len(complete_checkpoints(killed / "checkpoints")) > 0, kill_workers, ended)
    run(config, out=killed, **pooled_pairs)
    ended.set()
    watch.join()
    left, right = (load_file(out / "model" / "model.safetensors") for out in (whole, killed))
    assert all(left[name].equal(right[name]) for name in left)
    lines = [[(row["step"], row["loss"]) for row in read_jsonl(out / "metrics.jsonl")] for out in (whole, killed)]
    assert lines[0] == lines[1]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_two_workers_stop_on_request_and_go_on(pooled_pairs: dict[str, Path], tmp_path: Path) -> None:
    config = replace(TINY, resources=Resources(workers=2, cpus=1.0), num_steps=60)
    ended = threading.Event()
    watch = once(lambda: len(read_jsonl(tmp_path / "metrics.jsonl")) > 2, lambda: request_stop(tmp_path), ended)
    with pytest.raises(TrainingStopped, match="run it again"):
        run(config, out=tmp_path, **pooled_pairs)
    ended.set()
    watch.join()
    summary = run(config, out=tmp_path, **pooled_pairs)
    assert summary["step"] == 60
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == list(range(1, 61))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_impossible_runs_are_refused_before_workers_start(pooled_pairs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be a multiple"):
        run(replace(TINY, batch_size=25, resources=Resources(workers=2)), out=tmp_path, **pooled_pairs)
    with pytest.raises(ValueError, match="pooled embeddings"):
        run(replace(TINY, model=ModelConfig(vision=VisionConfig(blocks=1))), out=tmp_path, **pooled_pairs)
