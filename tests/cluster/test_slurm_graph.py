"""Recipes on a real SLURM with accounts and limits: submitted as a graph, told about, cancelled,
and refused where they would wait for ever.
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from slurm_harness import logs, wait_for_end

from cluster.endings import USAGE
from cluster.session import ROOT
from pipeline.__main__ import main

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400)]

SITE = """
default: {account: ml, cpus: 1}
embed: {cpus: 2}
train: {nodes: 2}
"""
WORKERS = ("--train.resources.workers", "2")
"""The same wherever results are compared: another number of workers adds in another order."""
HOSTILE = {
    "SLURM_CPU_BIND": "quiet,mask_cpu:0x80",
    "SLURM_MEM_PER_CPU": "50",
    "SLURM_NTASKS": "9",
    "RANK": "1",
    "RAY_ADDRESS": "127.0.0.1:1",
    "TMPDIR": "/only/on/the/login/node",
}
"""What an interactive allocation and a launcher leave in the environment of a shell."""


class Submission:
    """One recipe, workspace and site, and the commands on them."""

    def __init__(self, folder: Path, site: str = SITE, *flags: str) -> None:
        self.workspace = folder / "w"
        self.site = folder / "site.yaml"
        self.site.write_text(site)
        self.flags = [*flags, "--workspace", str(self.workspace)]

    def __call__(self, verb: str, *words: str) -> int:
        """The exit code of a verb."""
        return main([verb, "debug", *words, *self.flags])

    def submit(self, *words: str) -> list[str]:
        """The ids of the jobs that are submitted, in order."""
        before = set(self.workspace.glob("jobs/*/submission.json"))
        assert self("submit", "--cluster", str(self.site), *words) == 0
        (file,) = set(self.workspace.glob("jobs/*/submission.json")) - before
        return [job["id"] for job in json.loads(file.read_text())["jobs"]]

    def rows(self, capsys: pytest.CaptureFixture[str]) -> dict[str, dict]:
        """What `status --json` says, by step."""
        capsys.readouterr()
        assert self("status", "--json") == 0
        return {row["step"]: row for row in json.loads(capsys.readouterr().out)["steps"]}


def selection(workspace: Path) -> bytes:
    """The selection that curation made."""
    (file,) = workspace.glob("curate/*/selection*")
    return file.read_bytes()


def scores(workspace: Path) -> list[dict]:
    """Every result of the evaluation, without the time that it took."""
    (file,) = workspace.glob("evaluate/*/results.json")
    shown = ("set", "metric", "value", "low", "high", "n", "error")
    return [{name: result[name] for name in shown} for result in json.loads(file.read_text())]


@pytest.fixture(scope="module")
def local(slurm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which this machine has run the whole recipe without SLURM."""
    workspace = tmp_path_factory.mktemp("local") / "w"
    command = [sys.executable, "-m", "pipeline", "run", "debug", *WORKERS]
    subprocess.run([*command, "--workspace", str(workspace)], cwd=ROOT, check=True)
    return workspace


@pytest.mark.timeout(900)
def test_a_graph_ends_with_a_report_and_the_results_of_a_laptop(
    slurm: Path,
    local: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Submitted from a hostile environment; training spans two nodes."""
    submission = Submission(tmp_path, SITE, *WORKERS)
    with monkeypatch.context() as patch:
        for name, value in HOSTILE.items():
            patch.setenv(name, value)
        jobs = submission.submit()

    assert len(jobs) == 6
    rows = submission.rows(capsys)
    assert {row["job"]["id"] for row in rows.values()} == set(jobs)
    assert rows["report"]["job"]["state"] == "PENDING"
    assert submission("submit", "--cluster", str(submission.site)) == USAGE
    assert "a step runs once" in capsys.readouterr().err

    assert wait_for_end(jobs[-1], 500.0)["JobState"] == "COMPLETED", logs(submission.workspace)
    rows = submission.rows(capsys)
    assert {row["state"] for row in rows.values()} == {"done"}
    assert {row["job"]["state"] for row in rows.values()} == {"COMPLETED"}
    assert rows["train"]["job"]["nodes"] == "n[1-2]"
    assert 0 < rows["train"]["job"]["used_memory_mb"] < rows["train"]["job"]["asked_memory_mb"]
    assert 0 < rows["train"]["job"]["elapsed_s"] <= 60 * rows["train"]["job"]["limit_min"]
    assert selection(submission.workspace) == selection(local)
    assert scores(submission.workspace) == scores(local)
    check_accounts(submission.workspace, rows)

    assert submission("logs", "train") == 0
    assert "driver_exit=0" in capsys.readouterr().out
    assert submission("submit", "--cluster", str(submission.site)) == 0
    assert "nothing to submit" in capsys.readouterr().out


def check_accounts(workspace: Path, rows: dict[str, dict]) -> None:
    """MLflow's run of each step tells what its job asked for, and has used until then."""
    client = mlflow.MlflowClient(f"sqlite:///{workspace}/mlflow.db")
    experiment = client.get_experiment_by_name("debug")
    runs = client.search_runs([experiment.experiment_id], "tags.step != ''")
    assert {run.info.run_name for run in runs} == rows.keys()

    for run in runs:
        job = rows[run.info.run_name]["job"]
        metrics = run.data.metrics
        assert run.data.tags["slurm_job_id"] == job["id"]
        assert run.data.tags["slurm_nodes"] == job["nodes"]
        assert metrics["slurm_limit_min"] == job["limit_min"]
        assert metrics["slurm_asked_mb"] == job["asked_memory_mb"]
        assert 0 < metrics["slurm_elapsed_s"] <= job["elapsed_s"]
        assert 0 < metrics["slurm_used_mb"] <= job["asked_memory_mb"]
        assert metrics["slurm_used_cpus"] > 0


@pytest.mark.timeout(900)
def test_three_nodes_of_ray_give_the_results_of_a_laptop(local: Path, tmp_path: Path) -> None:
    program = [sys.executable, str(Path(__file__).with_name("on_three_nodes.py"))]
    command = [*program, "run", "debug", *WORKERS, "--workspace", str(tmp_path / "w")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0
    assert selection(tmp_path / "w") == selection(local)
    assert scores(tmp_path / "w") == scores(local)


@pytest.mark.timeout(900)
def test_one_job_makes_the_same_selection(
    slurm: Path, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a shell with few open files, of which the job must not suffer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    submission = Submission(tmp_path, "train: {account: ml, cpus: 2}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        (job,) = submission.submit("--one-job", "--only", "curate")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert wait_for_end(job, 300.0)["JobState"] == "COMPLETED", logs(submission.workspace)
    assert selection(submission.workspace) == selection(local)


def test_what_stands_behind_a_failed_step_is_not_started(
    slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The site's own set-up line ends the first job."""
    submission = Submission(tmp_path, "default: {cpus: 1}\npool: {setup: [exit 3]}")
    jobs = submission.submit()
    assert wait_for_end(jobs[0])["ExitCode"] == "3:0"
    assert {wait_for_end(job)["JobState"] for job in jobs[1:]} == {"CANCELLED"}

    rows = submission.rows(capsys)
    assert rows["pool"]["job"]["state"] == "FAILED"
    assert rows["train"]["job"]["remedy"].startswith("not started, as a job before it did not")
    assert submission("status") == 0
    assert "exit code 3:0" in capsys.readouterr().out


def test_a_job_without_memory_is_told_with_what_it_asked_and_used(
    slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A set-up line takes more than the job has, long enough for SLURM to see it."""
    hog = "python3 -c 'import time; held = b\"x\" * (5 << 30); time.sleep(60)'"
    submission = Submission(
        tmp_path, f"default: {{cpus: 1, memory_gb: 4}}\npool: {{setup: [{json.dumps(hog)}]}}"
    )
    job = submission.submit("--only", "pool")[0]
    assert wait_for_end(job)["JobState"] in ("FAILED", "OUT_OF_MEMORY")

    said = submission.rows(capsys)["pool"]["job"]["remedy"]
    assert said.startswith("out of memory: asked for 4,096 MB per node, used ")
    assert "memory_gb" in said


def test_cancel_ends_what_waits_and_what_runs(
    slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submission = Submission(tmp_path, "default: {cpus: 1}\npool: {setup: [sleep 60]}")
    jobs = submission.submit()
    assert submission("cancel") == 0
    assert {wait_for_end(job)["JobState"] for job in jobs} == {"CANCELLED"}
    rows = submission.rows(capsys)
    assert {row["job"]["is_active"] for row in rows.values()} == {False}
    assert submission("cancel") == 0
    assert "nothing to cancel" in capsys.readouterr().out


def test_a_log_that_the_node_cannot_write_is_named(
    slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder is gone when the job starts, as where nodes do not see the workspace."""
    submission = Submission(tmp_path, "default: {cpus: 1, sbatch: [--hold]}")
    job = submission.submit("--only", "pool")[0]
    submission.workspace.rename(tmp_path / "elsewhere")
    subprocess.run(["scontrol", "release", job], check=True)
    wait_for_end(job)
    (tmp_path / "elsewhere").rename(submission.workspace)
    assert "could not write the log" in submission.rows(capsys)["pool"]["job"]["remedy"]


@pytest.mark.parametrize(
    ("site", "flags", "message"),
    [
        ("default: {nodes: 5}", (), "SLURM cannot run"),
        ("default: {time_min: 999}", (), "ends jobs after 1:00:00"),
        ("default: {partition: 'low,high', time_min: 999}", (), "ends jobs after 1:00:00"),
        ("default: {partition: none}", (), "SLURM has gpu, high, low"),
        ("default: {account: nobody, cpus: 1}", (), "SLURM cannot run"),
        ("default: {account: ml, qos: narrow, cpus: 2}", (), "QOS narrow allows 1"),
        ("default: {partition: gpu, cpus: 1}", (), "embed.resources.gpus is unset"),
        ("default: {partition: 'low,gpu', cpus: 1}", (), "embed.resources.gpus is unset"),
        ("default: {cpus: 1}", ("--embed.resources.workers", "2"), "gives the job of embed cpus 1"),
        ("{}", ("--embed.resources.workers", "8"), "SLURM cannot run embed"),
        (
            "train: {nodes: 1, cpus: 1}",
            ("--embed.resources.workers", "4", "--one-job"),
            "gives the job of embed cpus 1",
        ),
    ],
)
def test_what_would_wait_for_ever_is_refused(
    slurm: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    site: str,
    flags: tuple[str, ...],
    message: str,
) -> None:
    submission = Submission(tmp_path, site)
    assert submission("submit", "--cluster", str(submission.site), *flags) == USAGE
    assert message in capsys.readouterr().err
    queue = subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True)
    assert queue.stdout == ""
    assert not list(submission.workspace.glob("jobs/*"))


def test_a_workspace_with_a_pattern_of_sbatch_in_its_path_is_refused(
    slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "50%u"
    folder.mkdir()
    submission = Submission(folder, "default: {cpus: 1}")
    assert submission("submit", "--cluster", str(submission.site)) == USAGE
    assert "without % in its path" in capsys.readouterr().err


def test_cluster_check_says_what_is_good_and_what_is_not(
    slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One good partition tried with a real job; a QOS limit and a partition that is not there."""
    site = tmp_path / "site.yaml"
    site.write_text(
        "default: {account: ml, cpus: 1}\ntrain: {qos: narrow, cpus: 2}\nembed: {partition: nowhere}\n"
    )
    assert main(["cluster", "check", str(site), "--workspace", str(tmp_path / "w")]) == 1
    printed = capsys.readouterr().out
    assert "sacct answers" in printed
    assert "jobs in low are preempted by REQUEUE, 20 s after the signal" in printed
    assert "a job ran on n" in printed
    assert "imports everything there" in printed
    assert "QOS narrow allows 1" in printed
    assert "SLURM has gpu, high, low" in printed
