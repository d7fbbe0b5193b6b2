"""A rank that hangs is named, the stacks of all ranks are written, and training goes on from its
checkpoint.
"""

import logging
import signal
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_train import losses, once
from tiny import TINY

from cluster.files import read_jsonl
from cluster.resources import Resources
from train import stall
from train.config import CheckpointConfig
from train.failure import failure, reserve_reason
from train.stall import STALLED, SUMMARY, Watchdog, blame, log_stalls
from train.train import run

NAMES = ["rank 0 (process 7 on a)", "rank 1 (process 8 on b)", "rank 2 (process 9 on b)"]


def at(step: int, place: str) -> dict:
    return {"step": step, "place": place}


def test_the_rank_that_is_furthest_behind_is_to_blame() -> None:
    waiting = at(7, "waits for the other ranks")
    assert blame(NAMES, {0: waiting, 1: at(7, "waits for data"), 2: waiting}) == (
        "rank 1 (process 8 on b) is furthest behind, in step 8, where it waits for data"
    )
    assert blame(NAMES, {0: waiting, 1: waiting, 2: at(6, "saves")}).startswith(NAMES[2])


def test_a_rank_that_cannot_report_is_to_blame() -> None:
    assert blame(NAMES, {0: at(7, "computes"), 2: at(6, "computes")}) == (
        "rank 1 (process 8 on b) gave no sign of life"
    )


def test_ranks_at_the_same_place_are_not_blamed_one_by_one() -> None:
    assert blame(NAMES, {rank: at(7, "computes") for rank in range(3)}) == (
        "all 3 ranks stand at the same place, in step 8, where each computes"
    )


def hang(rank: int, out: Path) -> None:
    """Two ranks, of which the second never comes to the sum of both."""
    stall.GATHER_S = 2.0
    dist.init_process_group("gloo", init_method=f"file://{out / 'store'}", rank=rank, world_size=2)
    with Watchdog(out, limit_minutes=0.02, start=5) as watchdog:
        watchdog(5, "waits for data")
        if rank == 1:
            time.sleep(60)
        watchdog(5, "computes")
        dist.all_reduce(torch.ones(1))


@pytest.mark.slow
def test_ranks_that_hang_write_their_stacks_and_end_and_give_up_at_the_second_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reserve_reason(tmp_path)
    known = set[Path]()
    for number in (1, 2):
        with pytest.raises(mp.ProcessExitedException):
            mp.spawn(hang, (tmp_path,), nprocs=2)
        (tmp_path / "store").unlink()
        log_stalls(tmp_path, known)
        assert len(known) == number
        assert bool(failure(tmp_path)) == (number == 2)

    assert failure(tmp_path).startswith("training stalled 2 times after step 5: no step")
    summary = max((tmp_path / STALLED).glob(f"*/{SUMMARY}"))
    assert "rank 1 (process" in summary.read_text()
    for rank, line in enumerate(("all_reduce", "hang")):
        assert line in (summary.parent / f"rank-{rank}.txt").read_text()
    assert all(record.levelno == logging.WARNING for record in caplog.records)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.timeout(400)
def test_training_goes_on_when_a_worker_is_frozen(
    undisturbed: Path, pooled_pairs: dict[str, Path], tmp_path: Path
) -> None:
    config = replace(
        TINY,
        num_steps=60,
        resources=Resources(workers=2, cpus=1.0),
        checkpoint=CheckpointConfig(every_steps=5, stall_minutes=0.2),
    )
    frozen: list[psutil.Process] = []

    def freeze() -> None:
        workers = [
            child
            for child in psutil.Process().children(recursive=True)
            if "RayTrainWorker" in " ".join(child.cmdline())
        ]
        frozen.append(workers[-1])
        workers[-1].send_signal(signal.SIGSTOP)

    with once(lambda: len(read_jsonl(tmp_path / "metrics.jsonl")) > 10, freeze) as acted:
        assert run(config, out=tmp_path, **pooled_pairs)["step"] == 60
    assert acted
    assert [step for step, _ in losses(tmp_path)] == list(range(1, 61))
    assert not frozen[0].is_running()
