"""Inside a SLURM job: Ray has the job's share of a node, a start of it that fails is tried again,
and a cancelled job may save.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_harness import logs, submit, wait_for_end

from cluster.allocation import node_shares
from cluster.endings import REQUEUE
from cluster.resources import Resources
from cluster.site import JobConfig

# On PYTHONPATH: the starts of Ray fail whose number is in the list, which the file counts.
SITE = """
import os, sys
if "ray.scripts.scripts" in sys.orig_argv and "start" in sys.orig_argv:
    with open({count!r}, "a+") as file:
        file.write("x")
        file.seek(0)
        if len(file.read()) in {failing}:
            os._exit(1)
"""
SAVES = """
import pathlib, signal, sys, ray
from cluster.session import session

def save(*_):
    pathlib.Path({out!r}).write_text("saved with " + str(ray.get(one.remote())))
    sys.exit({code})

@ray.remote
def one():
    return 1

with session():
    ray.get(one.remote())
    signal.signal(signal.SIGTERM, save)
    open({pipe!r}, "w").close()
    signal.pause()
"""


@pytest.fixture
def node_folder() -> Iterator[Path]:
    """The temporary folder of the nodes, empty and short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield Path(folder)


def failing_starts(folder: Path, failing: object) -> str:
    """The set-up line with which starts of Ray fail."""
    text = SITE.format(count=str(folder / "starts"), failing=failing)
    (folder / "sitecustomize.py").write_text(text)
    return f"export PYTHONPATH={folder}:$PYTHONPATH"


@pytest.mark.parametrize(
    ("further", "expected"),
    [
        ({}, []),
        ({"SLURM_GPUS_ON_NODE": "2"}, []),
        ({"SLURM_MEM_PER_CPU": "1000"}, [4000 * 2**20]),
        ({"SLURM_MEM_PER_NODE": "6000", "SLURM_MEM_PER_CPU": "1000"}, [6000 * 2**20]),
    ],
)
def test_ray_has_the_jobs_share_of_a_node_and_no_gpu_that_is_not_the_jobs(
    further: dict[str, str], expected: list[int]
) -> None:
    words = node_shares({"SLURM_CPUS_ON_NODE": "4"} | further)
    shares = {name: int(value) for name, value in (word.split("=") for word in words)}
    assert shares.pop("--num-cpus") == 4
    assert shares.pop("--num-gpus") == int(further.get("SLURM_GPUS_ON_NODE", 0))
    # Memory is shared between the object store and everything else, where the job has a limit.
    assert [sum(shares.values())] * bool(shares) == expected


@pytest.mark.slurm
@pytest.mark.timeout(600)
@pytest.mark.parametrize("failing", [(1,), (2,)], ids=["head", "worker"])
def test_a_start_of_ray_that_fails_once_is_tried_again(
    slurm: Path,
    tmp_path: Path,
    node_folder: Path,
    failing: tuple[int, ...],
) -> None:
    setup = (failing_starts(tmp_path, failing), f"export TMPDIR={node_folder}")
    name = f"starts{failing[0]}"
    job = submit(["true"], Resources(), slurm, name, JobConfig(nodes=2, setup=setup))
    ended = wait_for_end(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "0"), logs(slurm)
    assert (tmp_path / "starts").read_text() == "xxx"
    assert list(node_folder.iterdir()) == []


@pytest.mark.slurm
@pytest.mark.timeout(600)
def test_a_job_whose_ray_never_starts_is_requeued_once_and_ends_with_a_sentence(
    slurm: Path, tmp_path: Path
) -> None:
    setup = (failing_starts(tmp_path, range(100)),)
    job = submit(["true"], Resources(), slurm, "never", JobConfig(setup=setup))
    ended = wait_for_end(job)
    told = logs(slurm / "never")
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "1:0", "1"), told
    assert "Ray did not start on n1 in 3 attempts" in told
    assert "2 tries of this job in a row have finished nothing (2 on n1)" in told
    assert "Traceback" not in told


@pytest.mark.slurm
@pytest.mark.timeout(600)
def test_a_cancelled_job_saves_with_the_help_of_ray_and_does_not_come_back(
    slurm: Path, tmp_path: Path, node_folder: Path
) -> None:
    pipe = tmp_path / "pipe"
    out = tmp_path / "out"
    os.mkfifo(pipe)
    program = SAVES.format(out=str(out), pipe=str(pipe), code=REQUEUE)
    site = JobConfig(nodes=2, setup=(f"export TMPDIR={node_folder}",))
    job = submit([sys.executable, "-c", program], Resources(), slurm, "cancelled", site)
    pipe.read_text()  # returns once the driver runs
    subprocess.run(["scancel", job], check=True)
    ended = wait_for_end(job)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "0"), logs(slurm)
    assert out.read_text() == "saved with 1", logs(slurm)
    assert list(node_folder.iterdir()) == []
