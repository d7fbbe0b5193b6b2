"""Jobs on a real SLURM of two nodes: Ray on all of them, exit codes kept, interrupted jobs run
again.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_harness import logs, submit, wait_for_end

from cluster.allocation import _per_node
from cluster.endings import REQUEUE
from cluster.resources import Resources
from cluster.site import JobConfig

CENSUS = """
import json, os, pathlib, time, ray
from cluster.session import session

@ray.remote(num_cpus=2)
def where():
    import pipeline
    time.sleep(5)  # so that one node cannot do both in turn
    return os.environ["SLURMD_NODENAME"]

with session():
    where = ray.get([where.remote() for _ in range(2)])
    cpus = [node["Resources"]["CPU"] for node in ray.nodes()]
    pathlib.Path({out!r}).write_text(json.dumps([where, cpus]))
"""

RESTARTED = """
import os, pathlib, sys
pathlib.Path({out!r}).open("a").write(os.environ.get("SLURM_RESTART_COUNT", "0") + " ")
if "SLURM_RESTART_COUNT" in os.environ:
    sys.exit(0)
{first_time}
"""


def test_per_node_expands_slurms_compressed_counts() -> None:
    assert _per_node("2(x3),1") == [2, 2, 2, 1]
    assert _per_node("72") == [72]


@pytest.mark.slurm
@pytest.mark.timeout(400)
def test_the_driver_finds_rays_nodes_and_the_job_leaves_nothing(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "census.json"
    deep = tmp_path / "a_folder_that_lies_too_deep_for_the_sockets_of_ray"
    deep.mkdir()
    monkeypatch.setenv("TMPDIR", str(deep))
    job = submit(
        [sys.executable, "-c", CENSUS.format(out=str(out))],
        Resources(),
        slurm,
        "census",
        JobConfig(nodes=2),
    )
    assert wait_for_end(job)["JobState"] == "COMPLETED", logs(slurm)
    where, cpus = json.loads(out.read_text())
    assert (sorted(where), cpus) == (["n1", "n2"], [2, 2])
    assert [*deep.iterdir(), *Path("/tmp").glob(f"ray-*-{job}-*")] == []


@pytest.mark.slurm
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("workers", "gpus"), [(0, 2), (1, 1)])
def test_whole_nodes_come_with_all_their_gpus(
    slurm: Path, tmp_path: Path, workers: int, gpus: int
) -> None:
    out = tmp_path / "gpus"
    command = [
        "sh",
        "-c",
        f"for step in '' 'srun --overlap'; do $step printenv SLURM_GPUS_ON_NODE; done > {out}",
    ]
    job = submit(
        command,
        Resources(workers=workers, gpus=1.0),
        slurm,
        f"gpus{workers}",
        JobConfig(partition="gpu"),
    )
    assert wait_for_end(job)["JobState"] == "COMPLETED", logs(slurm)
    # On the first node, and in the job step of a further one.
    assert out.read_text().split() == [str(gpus)] * 2


@pytest.mark.slurm
@pytest.mark.timeout(400)
def test_the_job_ends_as_its_driver(slurm: Path) -> None:
    job = submit(["sh", "-c", "exit 7"], Resources(workers=1), slurm, "fails")
    ended = wait_for_end(job)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "7:0"), logs(slurm)


@pytest.mark.slurm
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("first_time", "interruption"),
    [
        (f"sys.exit({REQUEUE})", []),
        (
            "open({pipe!r}, 'w').close(); open({pipe!r}).read()",
            ["scancel", "--signal=USR2", "--batch", "{job}"],
        ),
        (
            "open({pipe!r}, 'w').close(); open({pipe!r}).read()",
            ["sbatch", "--partition=high", "--nodes=2", "--output=/dev/null", "--wrap=:"],
        ),
    ],
    ids=["asked for by the driver", "warned of the time limit", "preempted"],
)
def test_an_interrupted_job_runs_again(
    slurm: Path, tmp_path: Path, first_time: str, interruption: list[str]
) -> None:
    out = tmp_path / "runs"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    program = RESTARTED.format(out=str(out), first_time=first_time.format(pipe=str(pipe)))
    job = submit([sys.executable, "-c", program], Resources(), slurm, "again")
    if interruption:
        pipe.read_text()  # returns once the driver runs
        subprocess.run(
            [word.format(job=job) for word in interruption], check=True, capture_output=True
        )
    ended = wait_for_end(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), logs(slurm)
    assert out.read_text() == "0 1 "
