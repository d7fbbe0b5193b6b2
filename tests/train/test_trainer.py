"""The train step through Ray Train: a worker killed with SIGKILL, two workers stopped and started again, refusals."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray
from safetensors.torch import load_file
from tiny import TINY

from cluster.files import read_jsonl
from cluster.resources import Resources
from train.checkpoint import complete_checkpoints
from train.model import ModelConfig, VisionConfig
from train.optim import OptimConfig
from train.trainer import TrainingFailed, TrainingStopped, placement, request_stop, run

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
ONE_WORKER = Resources(workers=1, cpus=1.0)


@contextmanager
def once(is_ready: Callable[[], bool], act: Callable[[], None]) -> Iterator[list[bool]]:
    """Call `act` as soon as `is_ready` during the body; what is yielded holds True if it was called."""
    ended, acted = threading.Event(), []

    def watch() -> None:
        while not ended.wait(0.005):
            if is_ready():
                act()
                acted.append(True)
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield acted
    finally:
        ended.set()
        thread.join()


def losses(out: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in read_jsonl(out / "metrics.jsonl")]


def kill_workers() -> None:
    for child in psutil.Process().children(recursive=True):
        if "RayTrainWorker" in " ".join(child.cmdline()):
            child.kill()


def test_killed_worker_resumes_to_the_same_weights(
    undisturbed: Path, pooled_pairs: dict[str, Path], tmp_path: Path
) -> None:
    with once(lambda: len(complete_checkpoints(tmp_path / "checkpoints")) == 2, kill_workers) as killed:
        summary = run(replace(TINY, resources=ONE_WORKER), out=tmp_path, **pooled_pairs)
    assert killed
    assert summary["step"] == 20
    assert not (tmp_path / "checkpoints").exists()
    left, right = (load_file(out / "model" / "model.safetensors") for out in (undisturbed, tmp_path))
    assert all(left[name].equal(right[name]) for name in left)
    lines = [
        [(row["step"], row["loss"]) for row in read_jsonl(out / "metrics.jsonl")] for out in (undisturbed, tmp_path)
    ]
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_two_workers_stop_on_request_and_go_on(pooled_pairs: dict[str, Path], tmp_path: Path) -> None:
    config = replace(TINY, resources=Resources(workers=2, cpus=1.0), num_steps=60)
    with (
        once(lambda: len(read_jsonl(tmp_path / "metrics.jsonl")) > 2, lambda: request_stop(tmp_path)),
        pytest.raises(TrainingStopped, match="run it again"),
    ):
        run(config, out=tmp_path, **pooled_pairs)
    assert run(config, out=tmp_path, **pooled_pairs)["step"] == 60
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == list(range(1, 61))


@pytest.mark.slow
def test_an_error_of_the_loop_is_tried_once_and_reported(pooled_pairs: dict[str, Path], tmp_path: Path) -> None:
    config = replace(TINY, optim=OptimConfig(lr=1e30, warmup_steps=0), resources=ONE_WORKER)
    with pytest.raises(TrainingFailed, match="FloatingPointError: loss nan"):
        run(config, out=tmp_path, **pooled_pairs)


def test_impossible_runs_are_refused_before_workers_start(pooled_pairs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be a multiple"):
        run(replace(TINY, batch_size=25, resources=Resources(workers=2)), out=tmp_path, **pooled_pairs)
    blocks = ModelConfig(vision=VisionConfig(blocks=1))
    with pytest.raises(ValueError, match="pooled embeddings"):
        run(replace(TINY, model=blocks, resources=ONE_WORKER), out=tmp_path, **pooled_pairs)


def test_cpus_make_one_worker_unless_asked_otherwise() -> None:
    default = placement(replace(TINY, resources=Resources()))
    assert (default.workers, default.cpus) == (1, ray.cluster_resources()["CPU"])
    asked = placement(replace(TINY, resources=Resources(workers=2)))
    assert (asked.workers, asked.cpus) == (2, 1.0)
