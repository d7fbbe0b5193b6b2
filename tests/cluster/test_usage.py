"""The account that a job gives of itself, read from what scontrol and sstat print."""

import pytest

from cluster.usage import own_job_usage, parse_usage

RUNNING = (
    "JobId=24 JobName=train UserId=ada(1000) JobState=RUNNING Reason=None Requeue=1 Restarts=1 "
    "RunTime=00:01:40 TimeLimit=1-00:00:00 EligibleTime=2026-11-26T08:00:00 "
    "StartTime=2026-11-26T08:00:12 NodeList=n[1-2] NumNodes=2 NumCPUs=8 "
    "{}=cpu=8,mem=16G,node=2,billing=8,gres/gpu=4 Socks/Node=*"
)

STEPS = """\
24.batch|512000K|00:03:20|1
24.0|2048000K|01:40.500|1
24.1|||
"""


@pytest.mark.parametrize("name", ["TRES", "ReqTRES=cpu=1,mem=1M,node=1 AllocTRES"])
def test_what_was_allocated_stands_beside_what_was_used(name: str) -> None:
    """SLURM has called the allocation TRES, and since 23.02 AllocTRES."""
    usage = parse_usage("24", RUNNING.format(name), STEPS)
    assert (usage.job_id, usage.nodes, usage.restarts) == ("24", "n[1-2]", 1)
    assert (usage.queued_s, usage.elapsed_s, usage.limit_min) == (12, 100.0, 1440.0)
    assert (usage.asked_cpus, usage.asked_mb, usage.asked_gpus) == (8.0, 8192.0, 4.0)
    assert usage.used_mb == 2000.0  # on the second node
    assert usage.used_cpus == pytest.approx((200 + 100.5) / 100)


def test_a_job_without_limit_or_measurement_has_zeros() -> None:
    shown = RUNNING.format("TRES").replace("1-00:00:00", "UNLIMITED").replace(",mem=16G", "")
    usage = parse_usage("24", shown, "")
    assert (usage.limit_min, usage.asked_mb, usage.used_mb, usage.used_cpus) == (0, 0, 0, 0)


def test_a_process_outside_of_slurm_has_no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert own_job_usage() is None


def test_a_job_whose_slurm_does_not_answer_has_no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "24")
    monkeypatch.setenv("PATH", "/nowhere")
    assert own_job_usage() is None
