"""Jobs on a real SLURM of two nodes: Ray on all of them, exit codes kept, interrupted jobs run
again.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_harness import local_slurm, missing, wait_for_end

from cluster.allocation import _per_node
from cluster.endings import REQUEUE
from cluster.resources import Resources
from cluster.session import ROOT
from cluster.slurm import _gpus, _minutes, submit

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


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [("1:00:00", 60), ("2-12:00:00", 3600), ("30:30", 30.5), ("infinite", float("inf"))],
)
def test_minutes_reads_slurms_time_limits(limit: str, minutes: float) -> None:
    assert _minutes(limit) == minutes


@pytest.mark.parametrize(
    ("generic", "gpus"),
    [
        ("(null)", 0),
        ("gpu:4", 4),
        ("gpu:a100:8(S:0-1)", 8),
        ("shard:gpu:6,gpu:a100:2(S:0),gpu:t4:1", 3),
        ("gpu", 0),
    ],
)
def test_gpus_are_counted_among_slurms_generic_resources(generic: str, gpus: int) -> None:
    assert _gpus(generic) == gpus


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A running SLURM, and the folder for its jobs."""
    if reason := missing():
        pytest.skip(f"no local SLURM: {reason}")
    names = [name for name in os.environ if name.startswith(("SLURM", "RAY_", "SUBMITIT"))]
    with (
        local_slurm(tmp_path_factory.mktemp("slurm")) as environment,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name in names:
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        yield tmp_path_factory.mktemp("jobs")


@pytest.mark.slurm
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "asked",
    [
        Resources(nodes=5),
        Resources(time_min=999),
        Resources(workers=8),
        Resources(workers=2, cpus=2.0),
        Resources(workers=1, memory_gb=100.0),
        Resources(gpus=1.0),
        Resources(gpus=3.0, workers=1, partition="gpu"),
        Resources(partition="none"),
        Resources(partition="gpu"),
    ],
    ids=str,
)
def test_submit_refuses_what_would_wait_for_ever_or_leave_gpus_idle(
    slurm: Path, asked: Resources
) -> None:
    with pytest.raises(
        ValueError, match=r"SLURM cannot run|ends jobs after|say --train.resources.gpus 1"
    ):
        submit(["true"], asked, slurm, "refused")
    assert (
        subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True).stdout
        == ""
    )


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
        [sys.executable, "-c", CENSUS.format(out=str(out))], Resources(nodes=2), slurm, "census"
    )
    assert wait_for_end(job)["JobState"] == "COMPLETED", logs(slurm, job)
    where, cpus = json.loads(out.read_text())
    assert (sorted(where), cpus) == (["n1", "n2"], [2, 2])
    assert [*deep.iterdir(), *Path("/tmp").glob(f"ray-{job}-*")] == []


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
    job = submit(command, Resources(workers=workers, gpus=1.0, partition="gpu"), slurm, "gpus")
    assert wait_for_end(job)["JobState"] == "COMPLETED", logs(slurm, job)
    assert (
        out.read_text().split() == [str(gpus)] * 2
    )  # on the first node, and in the job step of a further one


@pytest.mark.slurm
@pytest.mark.timeout(400)
def test_the_job_ends_as_its_driver(slurm: Path) -> None:
    job = submit(["sh", "-c", "exit 7"], Resources(workers=1), slurm, "fails")
    ended = wait_for_end(job)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "7:0"), logs(slurm, job)


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
    job = submit([sys.executable, "-c", program], Resources(nodes=1), slurm, "again")
    if interruption:
        pipe.read_text()  # returns once the driver runs
        subprocess.run(
            [word.format(job=job) for word in interruption], check=True, capture_output=True
        )
    ended = wait_for_end(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), logs(slurm, job)
    assert out.read_text() == "0 1 "


def logs(folder: Path, job: str) -> str:
    return "\n".join(
        f"== {path}\n{path.read_text()}" for path in sorted((folder / job).glob("*.[lo][ou][gt]"))
    )


@pytest.mark.slurm
@pytest.mark.timeout(600)
def test_a_submitted_recipe_ends_with_a_report(slurm: Path, tmp_path: Path) -> None:
    """The debug recipe as one job of two nodes, a training worker on each."""
    command = [
        sys.executable,
        "-m",
        "pipeline",
        "submit",
        "debug",
        "--workspace",
        str(tmp_path / "w"),
    ]
    asked = {"nodes": 2, "workers": 2, "cpus": 1.0, "time-min": 30}
    flags = [
        word for name, value in asked.items() for word in (f"--train.resources.{name}", str(value))
    ]
    subprocess.run([*command, *flags], cwd=ROOT, check=True, capture_output=True)
    (job,) = [path.name for path in (tmp_path / "w" / "jobs").iterdir() if path.is_dir()]
    ended = wait_for_end(job, 500.0)
    assert ended["JobState"] == "COMPLETED", logs(tmp_path / "w" / "jobs", job)
    assert list((tmp_path / "w").glob("report/*/report.html"))
