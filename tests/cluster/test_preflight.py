"""Findings of a preflight: what is bad has a remedy."""

import time
from pathlib import Path

import pytest

from cluster.preflight import OPEN_FILES, _judge, _kinds, check_site
from cluster.site import JobConfig, SiteConfig

GOOD = {
    "import_problems": [],
    "python": "/env/bin/python",
    "open_files": OPEN_FILES,
    "temporary": "/tmp",
    "temporary_free": 50e9,
    "gpus_seen": 2,
    "gpus_given": 2,
}


def judged(**facts: object) -> list[str]:
    """What is bad about a node that is good but for these facts."""
    now = time.time()
    node = {**GOOD, "time": now, **facts}
    findings = list(_judge("train", node, now, has_gpus=True))
    assert all(finding.remedy for finding in findings if not finding.is_good)
    return [finding.text for finding in findings if not finding.is_good]


def test_a_good_node_passes() -> None:
    assert judged() == []


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"import_problems": ["torch: No module named 'torch'"]}, "No module named 'torch'"),
        ({"time": 0.0}, "clock is off by"),
        ({"time": 1e10}, "clock is off by"),
        ({"open_files": 1024}, "1,024 files"),
        ({"temporary_free": 1e9}, "1 GB free in /tmp"),
        ({"gpus_seen": 0}, "PyTorch sees 0 of 2 GPUs"),
        ({"gpus_seen": 0, "gpus_given": 0}, "PyTorch sees 0 of 0 GPUs"),
    ],
    ids=str,
)
def test_what_is_bad_about_a_node_is_named_alone(facts: dict, text: str) -> None:
    (bad,) = judged(**facts)
    assert text in bad


def test_each_kind_of_job_is_tried_once() -> None:
    gpu = JobConfig(partition="gpu")
    kinds = _kinds(SiteConfig(default=JobConfig(account="ml"), train=gpu, evaluate=gpu))
    assert kinds == {
        "default": JobConfig(account="ml"),
        "train, evaluate": JobConfig(account="ml", partition="gpu"),
    }


def test_without_slurm_there_is_one_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    (finding,) = check_site(SiteConfig(), tmp_path)
    assert not finding.is_good
    assert "log in to a node of the cluster" in finding.remedy
