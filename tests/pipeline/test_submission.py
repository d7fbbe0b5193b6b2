"""A recipe as jobs: which steps share one, what each asks for, and the scripts that sbatch gets."""

import json
from pathlib import Path

import pytest

from cluster.endings import USAGE
from cluster.jobs import Ask
from cluster.limits import QOS_LIMITS
from cluster.site import JobConfig, SiteConfig
from pipeline.__main__ import main
from pipeline.graph import build_steps, resolve_backbone
from pipeline.presets import PRESETS
from pipeline.recipe_file import ConfigError, dump_config, load_config
from pipeline.step import in_order
from pipeline.store import Store
from pipeline.submission import (
    SUBMISSION,
    group_steps,
    latest_jobs,
    one_group,
)

STEPS = in_order(build_steps(resolve_backbone(PRESETS["debug"])))


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests read nothing of a cluster that this machine may belong to."""
    monkeypatch.setenv("PATH", "/nowhere")


def load(text: str) -> SiteConfig:
    return load_config(SiteConfig, text, "site.yaml", "cluster template")


def test_short_steps_share_a_job_with_the_step_before_them() -> None:
    groups = group_steps(STEPS, SiteConfig())
    assert {group.name: [step.label for step in group.steps] for group in groups} == {
        "pool": ["pool"],
        "embed": ["embed"],
        "images": ["images@classification", "images@retrieval", "images@segmentation"],
        "curate": ["curate", "tokenizer"],
        "train": ["train"],
        "evaluate": ["evaluate", "report"],
    }


def test_a_step_that_the_site_describes_or_behind_gpus_has_a_job_of_its_own() -> None:
    site = SiteConfig(tokenizer=JobConfig(cpus=4), evaluate=JobConfig(gres="gpu:a100:1"))
    names = [group.name for group in group_steps(STEPS, site)]
    assert names[-5:] == ["curate", "tokenizer", "train", "evaluate", "report"]


def test_one_job_has_all_steps() -> None:
    (group,) = one_group(STEPS, SiteConfig(train=JobConfig(nodes=2)), "debug")
    assert len(group.steps) == len(STEPS)
    assert (group.ask.nodes, group.ask.cpus) == (2, 0)


def test_a_step_takes_what_it_leaves_out_from_the_default() -> None:
    site = load("default: {account: ml, time_min: 30}\ntrain: {partition: gpu, time_min: 600}\n")
    assert site.job("train") == JobConfig(partition="gpu", account="ml", time_min=600)
    assert site.job("embed") == JobConfig(account="ml", time_min=30)


def test_the_template_is_a_site_file_that_says_nothing() -> None:
    assert load(dump_config(SiteConfig())) == SiteConfig() == load("")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trian: {nodes: 2}", "unknown key 'trian': did you mean 'train'"),
        ("train: {node: 2}", "unknown key 'node': did you mean 'nodes'"),
        ("train: {nodes: two}", "train: nodes is 'two'"),
        ("train: {nodes: 0}", "nodes is 0: must be at least 1"),
        ("train: {sbatch: [-p gpu]}", "begins with two hyphens"),
        ('train: {partition: "a\\nb"}', "one line of text"),
        ("train: {container: {program: docker, image: x}}", "'docker'"),
    ],
)
def test_a_site_file_is_read_strictly(text: str, message: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        load(text)


def dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], site: str, *flags: str) -> str:
    file = tmp_path / "site.yaml"
    file.write_text(site)
    where = ["--workspace", str(tmp_path / "it's $(here)"), "--cluster", str(file), "--dry-run"]
    assert main(["submit", "debug", *where, *flags]) == 0
    assert not (tmp_path / "it's $(here)" / "jobs").exists()
    return capsys.readouterr().out


def test_a_dry_run_prints_every_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = """
default: {account: ml, exclude: 'n[1-2]', setup: [module load cuda], wckey: mine}
train: {partition: gpu, nodes: 2, time_min: 600, sbatch: [--switches=1, --exclusive]}
"""
    printed = dry_run(
        tmp_path, capsys, site, "--train.resources.workers", "4", "--train.resources.gpus", "1"
    )
    scripts = printed.split("# job ")[1:]
    assert [script.partition(":")[0] for script in scripts] == [
        "pool",
        "embed",
        "images",
        "curate",
        "train",
        "evaluate",
    ]
    train = scripts[4].splitlines()
    for line in (
        "#SBATCH --account=ml",
        "#SBATCH --partition=gpu",
        "#SBATCH --nodes=2",
        "#SBATCH --gpus-per-node=2",
        "#SBATCH --cpus-per-task=2",
        "#SBATCH --mem=4552M",
        "#SBATCH --time=600",
        "#SBATCH --switches=1",
        "#SBATCH --exclusive",
        "#SBATCH --wckey=mine",
        "#SBATCH --exclude='n[1-2]'",
        "#SBATCH --dependency='afterok:<id of embed>:<id of curate>'",
        "#SBATCH --kill-on-invalid-dep=yes",
        "#SBATCH --signal=B:USR2@60",
        "#SBATCH --propagate=NONE",
        "module load cuda",
    ):
        assert line in train
    assert "gpus-per-node" not in "".join(scripts[:4])
    assert "--partition" not in scripts[1]
    assert "--exclusive" in scripts[1]  # no number of workers: whole nodes
    assert "--dependency" not in scripts[0]


SITE = """
default: {account: ml, cpus: 2, memory_gb: 8}
train: {partition: gpu, nodes: 3, time_min: 90, gres: 'gpu:a100:4'}
"""


def plan_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str]:
    file = tmp_path / "site.yaml"
    file.write_text(SITE)
    where = ["--workspace", str(tmp_path / "w"), "--cluster", str(file)]
    code = main(["plan", "debug", *where, *flags])
    return code, capsys.readouterr().out.partition("SLURM jobs")[2]


def test_a_plan_without_slurm_has_the_jobs_of_a_dry_run_and_their_hours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, planned = plan_jobs(tmp_path, capsys)
    names = [group.name for group in group_steps(STEPS, load(SITE))]
    rows = [line.split() for line in planned.splitlines()]
    assert code == 0
    assert [row[0] for row in rows if row[:1] and row[0] in names] == names
    (train,) = [row for row in rows if row[:1] == ["train"]]
    expected = "train train gpu ml default 3 x 1 2 8,192 MB 4 90 min embed, curate"
    assert " ".join(train) == expected

    # five jobs of 2 cores for an hour, and 3 nodes x 1.5 hours of 2 cores and 4 GPUs
    assert "18 GPU-hours, 19 core-hours" in planned
    assert "limits were not checked: sinfo and sacctmgr do not answer" in planned
    assert not (tmp_path / "w" / "jobs").exists()


def test_a_plan_of_one_job_has_one_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, planned = plan_jobs(tmp_path, capsys, "--one-job", "--only", "embed")
    assert "1 job asking" in planned
    assert "debug" in planned.splitlines()[2]


def test_a_plan_names_every_limit_that_is_exceeded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands with SLURM's output: a partition of 60 minutes, and a QOS of one node per job."""
    qos = "normal|" + "|".join({"MaxTRES": "node=1"}.get(name, "") for name in QOS_LIMITS)
    answers = {
        "sinfo": "cpu*|2:00:00|4|8000|(null)\ngpu|1:00:00|4|8000|gpu:a100:4",
        "sacctmgr": f'case "$*" in *qos*) echo "{qos}";; *cluster*) echo cluster;; esac',
        "sbatch": "exit 0",
    }
    for name, answer in answers.items():
        text = f'echo "{answer}"' if name == "sinfo" else answer
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    code, planned = plan_jobs(tmp_path, capsys)
    refused = [line for line in planned.splitlines() if line.startswith("submit would refuse")]
    assert code == USAGE
    assert len(refused) == 2
    assert "train: time_min is 90" in refused[0]
    assert "train asks for 3 node: QOS normal allows 1 (MaxTRES)" in refused[1]
    assert "not checked" not in planned


def test_a_plan_of_jobs_needs_a_site_file() -> None:
    assert main(["plan", "debug", "--one-job"]) == USAGE
    assert main(["plan", "debug", "--cluster", "http://head:8265"]) == USAGE


def test_no_key_is_sent_that_nobody_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "wckey" not in dry_run(tmp_path, capsys, "")


def test_a_container_stands_before_python(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    apptainer = "default: {python: python3, container: {program: apptainer, image: a b.sif, mounts: [/data]}}"
    printed = dry_run(tmp_path, capsys, apptainer, "--one-job")
    assert "\nexec apptainer exec --nv --bind /data 'a b.sif' python3 -u -m submitit" in printed
    pyxis = "default: {python: python3, container: {program: pyxis, image: hub/x, mounts: [/data]}}"
    printed = dry_run(tmp_path, capsys, pyxis, "--one-job")
    assert (
        "\nexec srun --overlap --nodes=1 --ntasks=1 --container-image=hub/x "
        "--container-mounts=/data:/data python3 -u -m submitit" in printed
    )


def test_submit_without_slurm_says_where_to_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "debug", "--workspace", str(tmp_path / "w")]) == USAGE
    assert "log in to a node of the cluster" in capsys.readouterr().err
    assert not list((tmp_path / "w").glob("jobs/*"))


def test_steps_alone_need_their_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--workspace", str(tmp_path / "w")]
    assert main(["run", "debug", "--exactly", "tokenizer", *where]) == USAGE
    assert "tokenizer cannot run alone: pool, embed, " in capsys.readouterr().err


def test_status_shows_a_job_of_which_slurm_knows_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The ledger is read without SLURM, and only the last submission of an output counts."""
    store = Store(tmp_path)
    train = next(step for step in STEPS if step.label == "train")
    ask = {"nodes": 2, "cpus": 4, "memory_mb": 8000, "gpus": 0, "time_min": 60}
    for number, name in (("11", "20260101-000000-debug"), ("12", "20260102-000000-debug")):
        job = {
            "id": number,
            "name": "train",
            "steps": {"train": train.fingerprint},
            "after": [],
            "ask": ask,
            "folder": "train",
            "submitted": "2026-01-01T00:00:00+0000",
        }
        folder = tmp_path / "jobs" / name
        (folder / "train").mkdir(parents=True)
        (folder / SUBMISSION).write_text(json.dumps({"recipe": "debug", "jobs": [job]}))
        (folder / "train" / f"{number}.1.log").write_text("second start\n")
        (folder / "train" / f"{number}.0.log").write_text("first start\n")

    job = latest_jobs(store)[train.fingerprint]
    assert (job.id, job.ask) == ("12", Ask(2, 4, 8000, 0, 60))

    where = ["--workspace", str(tmp_path)]
    assert main(["status", "debug", "--json", *where]) == 0
    rows = {row["step"]: row for row in json.loads(capsys.readouterr().out)["steps"]}
    assert rows["train"]["job"]["state"] == "UNKNOWN"
    assert "job" not in rows["embed"]
    assert main(["status", "debug", "--watch", *where]) == 0  # ends: no job is active
    capsys.readouterr()

    assert main(["logs", "debug", "train", *where]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if "start" in line] == [
        "first start",
        "second start",
    ]
    assert main(["logs", "debug", "embed", *where]) == USAGE
    assert main(["cancel", "debug", *where]) == 0


def test_options_of_submission_belong_to_submit() -> None:
    assert main(["run", "debug", "--one-job"]) == USAGE
    assert main(["cluster", "chekc"]) == USAGE
