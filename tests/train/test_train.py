"""The train step through Ray Train: a worker killed with SIGKILL, two workers stopped and started
again, refusals.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import psutil
import pytest
import ray
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ray.train import WorkerGroupError
from safetensors.torch import load_file
from tiny import TINY, fill

from cluster.endings import StoppedError
from cluster.files import read_jsonl
from cluster.resources import Resources
from cluster.session import ROOT
from train import train as trainer
from train.checkpoint import MARKER, complete_checkpoints, step_of
from train.config import CheckpointConfig, ModelConfig, OptimConfig, ParallelConfig, VisionConfig
from train.interruption import largest_group, request_stop
from train.loop import Job
from train.train import TrainingFailed, fit_to_the_end, placement, run, shrink_group_to

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
ONE_WORKER = Resources(workers=1, cpus=1.0)


@contextmanager
def once(is_ready: Callable[[], bool], act: Callable[[], None]) -> Iterator[list[bool]]:
    """Call `act` as soon as `is_ready` during the body; what is yielded holds True if it was
    called.
    """
    ended = threading.Event()
    acted = []

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


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A temporary folder whose name is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield Path(folder)


def losses(out: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in read_jsonl(out / "metrics.jsonl")]


def kill_workers(kind: str = "RayTrainWorker") -> None:
    for child in psutil.Process().children(recursive=True):
        if kind in " ".join(child.cmdline()):
            child.kill()


@pytest.mark.parametrize(
    "kind", ["RayTrainWorker", pytest.param("TrainController", marks=pytest.mark.slow)]
)
def test_killed_worker_resumes_to_the_same_weights(
    undisturbed: Path, pooled_pairs: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    with once(
        lambda: len(complete_checkpoints(tmp_path / "checkpoints")) == 2,
        lambda: kill_workers(kind),
    ) as killed:
        summary = run(replace(TINY, resources=ONE_WORKER), out=tmp_path, **pooled_pairs)
    assert killed
    assert summary["step"] == 20
    assert not (tmp_path / "checkpoints").exists()
    left, right = (
        load_file(out / "model" / "model.safetensors") for out in (undisturbed, tmp_path)
    )
    assert all(left[name].equal(right[name]) for name in left)
    lines = [
        [(row["step"], row["loss"]) for row in read_jsonl(out / "metrics.jsonl")]
        for out in (undisturbed, tmp_path)
    ]
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_two_workers_stop_on_request_and_go_on(
    pooled_pairs: dict[str, Path], tmp_path: Path
) -> None:
    config = replace(TINY, resources=Resources(workers=2, cpus=1.0), num_steps=60)
    with (
        once(
            lambda: len(read_jsonl(tmp_path / "metrics.jsonl")) > 2, lambda: request_stop(tmp_path)
        ),
        pytest.raises(StoppedError, match=r"step .* of 60 is saved"),
    ):
        run(config, out=tmp_path, **pooled_pairs)
    assert run(config, out=tmp_path, **pooled_pairs)["step"] == 60
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == list(range(1, 61))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_lost_node_shrinks_training_and_a_new_one_grows_it_and_no_step_is_missing(
    pooled_pairs: dict[str, Path], short_folder: Path
) -> None:
    for name, path in pooled_pairs.items():
        shutil.copytree(path, short_folder / name)
    (short_folder / "out").mkdir()
    of_a_session = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "PYTHONPATH")
    environment = {
        name: value for name, value in os.environ.items() if name not in of_a_session
    } | {
        "PYTHONPATH": str(ROOT),
        "RAY_TMPDIR": str(short_folder),
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    }
    program = Path(__file__).with_name("losing_a_node.py")
    subprocess.run(
        [sys.executable, str(program), str(short_folder)],
        env=environment,
        check=True,
        capture_output=True,
    )
    rows = read_jsonl(short_folder / "out" / "metrics.jsonl")
    assert [count for count, _ in groupby(row["workers"] for row in rows)] == [3, 2, 3]
    steps = [
        row["step"] for row in rows if row["step"] % 10 == 0
    ]  # between them, those at which it was told to stop
    assert steps == list(range(10, 10 * len(steps) + 1, 10))
    assert max(row["step"] for row in rows if row["workers"] == 2) >= int(
        (short_folder / "fewer.txt").read_text()
    )
    assert (
        f"saved step {step_of(complete_checkpoints(short_folder / 'out' / 'checkpoints')[-1])} of"
        in (short_folder / "stopped.txt").read_text()
    )


def split_among_three(rank: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=3
    )
    if shrink_group_to(largest_group(replace(TINY, batch_size=26), 3)):
        total = torch.ones(1)
        dist.all_reduce(total)
        (folder / f"rank-{rank}").write_text(
            f"{dist.get_rank()} of {dist.get_world_size()}, {total.item():.0f}"
        )
        dist.destroy_process_group()


@pytest.mark.slow
def test_workers_that_do_not_divide_the_batch_make_a_smaller_group(tmp_path: Path) -> None:
    mp.spawn(split_among_three, (tmp_path,), nprocs=3)
    assert {path.name: path.read_text() for path in tmp_path.glob("rank-*")} == {
        f"rank-{rank}": f"{rank} of 2, 2" for rank in range(2)
    }
    assert largest_group(TINY, 5) == 4
    assert largest_group(replace(TINY, parallel=ParallelConfig(replicas=3)), 5) == 3


@pytest.mark.slow
def test_a_worker_that_has_nothing_to_do_holds_nobody_up(
    pooled_pairs: dict[str, Path], tmp_path: Path
) -> None:
    resources = Resources(workers=3, min_workers=2, cpus=1.0)
    run(replace(TINY, batch_size=26, resources=resources), out=tmp_path, **pooled_pairs)
    assert [row["workers"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [2] * 20


def test_failures_without_end_are_borne_as_long_as_there_are_new_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(tmp_path, tmp_path, tmp_path, tmp_path)
    saved = iter((10, 20))

    def fail(*_: object) -> None:
        if (step := next(saved, None)) is not None:
            (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
            marker = tmp_path / "checkpoints" / f"step-{step:08d}" / MARKER
            marker.write_text('{"score": 0.0, "files": {}}')
        raise WorkerGroupError("lost", {})

    monkeypatch.setattr(trainer, "_fit", fail)
    monkeypatch.setattr(trainer, "placement", lambda config: config.resources)
    with pytest.raises(WorkerGroupError):
        fit_to_the_end(TINY, job)
    assert next(saved, None) is None


@pytest.mark.slow
def test_an_error_of_the_loop_is_tried_once_and_reported(
    pooled_pairs: dict[str, Path], tmp_path: Path
) -> None:
    config = replace(TINY, optim=OptimConfig(lr=1e30, warmup_steps=0), resources=ONE_WORKER)
    with pytest.raises(TrainingFailed, match="FloatingPointError: loss nan"):
        run(config, out=tmp_path, **pooled_pairs)


def test_impossible_runs_are_refused_before_workers_start(
    pooled_pairs: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="must be a multiple"):
        run(
            replace(TINY, batch_size=25, resources=Resources(workers=2)),
            out=tmp_path,
            **pooled_pairs,
        )
    blocks = ModelConfig(vision=VisionConfig(blocks=1))
    with pytest.raises(ValueError, match="pooled embeddings"):
        run(replace(TINY, model=blocks, resources=ONE_WORKER), out=tmp_path, **pooled_pairs)


def test_cpus_make_one_worker_unless_asked_otherwise() -> None:
    default = placement(replace(TINY, resources=Resources()))
    assert (default.workers, default.cpus) == (1, ray.cluster_resources()["CPU"])
    asked = placement(replace(TINY, resources=Resources(workers=2)))
    assert (asked.workers, asked.cpus) == (2, 1.0)


@pytest.mark.slow
def test_a_disk_that_fills_up_ends_training_at_once_and_metrics_stay(
    pooled_pairs: dict[str, Path], full_disk: Path
) -> None:
    config = replace(
        TINY, resources=ONE_WORKER, num_steps=60, checkpoint=CheckpointConfig(every_steps=10)
    )
    metrics = full_disk / "metrics.jsonl"
    subprocess.run(["mount", "-o", "remount,size=8m", str(full_disk)], check=True)
    with (
        once(lambda: len(read_jsonl(metrics)) > 2, lambda: fill(full_disk / "ballast")),
        pytest.raises(TrainingFailed, match=f"the disk of {full_disk} is full: free space on it"),
    ):
        run(config, out=full_disk, **pooled_pairs)
    assert len(read_jsonl(metrics)) > 2

    (full_disk / "ballast").unlink()
    run(config, out=full_disk, **pooled_pairs)
    assert read_jsonl(metrics)[-1]["step"] == 60


def test_checkpoints_that_do_not_fit_are_refused_before_training(
    pooled_pairs: dict[str, Path], full_disk: Path
) -> None:
    fill(full_disk / "ballast")
    with (full_disk / "ballast").open("r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) - 16_384)
    with pytest.raises(
        OSError, match=f"are free on the disk of {full_disk}, and training writes about"
    ):
        run(replace(TINY, resources=ONE_WORKER), out=full_disk, **pooled_pairs)
