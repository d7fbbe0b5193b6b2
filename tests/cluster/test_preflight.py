"""Findings of a preflight: what is bad has a remedy."""

import time
from pathlib import Path

import pytest

from cluster.preflight import OPEN_FILES, _check_network, _judge, _judge_network, _kinds, check_site
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


NETWORK = {"backend": "nccl", "processes": 16, "nodes": 2, "bytes": 64 * 1024**2}


def test_a_network_is_told_with_its_speed_or_with_the_remedy() -> None:
    good = _judge_network("train", {**NETWORK, "seconds": 0.01, "bytes_per_s": 12.5e9})
    assert good.text == (
        "all-reduce of 64 MiB over 16 processes on 2 nodes (nccl): 0.01 s, 12.5 GB/s per process"
    )
    bad = _judge_network("train", {**NETWORK, "error": "DistBackendError: timed out"})
    assert not bad.is_good
    assert "DistBackendError: timed out" in bad.text
    assert "NCCL_SOCKET_IFNAME" in bad.remedy


@pytest.mark.slurm
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("setup", "is_good", "text", "remedy"),
    [
        (None, True, "over 2 processes on 2 nodes (gloo): ", ""),
        (("export GLOO_SOCKET_IFNAME=none0",), False, "none0", "export GLOO_SOCKET_IFNAME="),
    ],
    ids=["good", "wrong interface"],
)
def test_the_network_is_tried_on_the_nodes_of_training(
    slurm: Path,
    tmp_path: Path,
    setup: tuple[str, ...] | None,
    is_good: bool,
    text: str,
    remedy: str,
) -> None:
    site = JobConfig(account="ml", cpus=1, nodes=2, setup=setup)
    (finding,) = _check_network(site, tmp_path)
    assert finding.is_good == is_good, finding
    assert text in finding.text
    assert remedy in finding.remedy


@pytest.mark.slurm
def test_one_process_needs_no_network(slurm: Path, tmp_path: Path) -> None:
    (finding,) = _check_network(JobConfig(account="ml"), tmp_path)
    assert finding.is_good
    assert "no all-reduce" in finding.text
