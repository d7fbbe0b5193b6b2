"""The states of jobs, read from what sacct and scontrol 22.05 print."""

import pytest

from cluster.accounting import JobState, parse_sacct, parse_scontrol, remedy

PREEMPTED_ONCE = """\
7|PREEMPTED|n1|61|0:15||2026-11-26T08:00:00|2026-11-26T08:00:05|2|00:30.500
7.batch|CANCELLED|n1|61|0:15|904000K|2026-11-26T08:00:05|2026-11-26T08:00:05|2|00:30.500
7|COMPLETED|n2|100|0:0||2026-11-26T08:01:06|2026-11-26T08:01:16|2|01:40.000
7.batch|COMPLETED|n2|100|0:0|512000K|2026-11-26T08:01:16|2026-11-26T08:01:16|2|01:40.000
8|CANCELLED by 1000|None assigned|0|0:0||2026-11-26T08:00:00|None|1|00:00:00
9|PENDING|None assigned|0|0:0||2026-11-26T08:00:00|Unknown|0|00:00:00
10|CANCELLED|None assigned|0|0:0||2026-11-26T08:00:00|None|1|00:00:00
"""

PENDING = (
    "JobId=12 JobName=train UserId=ada(1000) JobState=PENDING Reason=QOSMaxCpuPerJobLimit "
    "Dependency=(null) Requeue=1 Restarts=3 BatchFlag=1 ExitCode=0:0 RunTime=1-02:03:04 "
    "TimeLimit=01:00:00 Partition=gpu ReqNodeList=(null) ExcNodeList=(null) NodeList=(null) "
    "NumNodes=2 NumCPUs=8"
)


def test_every_start_of_a_job_counts() -> None:
    states = parse_sacct(PREEMPTED_ONCE)
    again = states["7"]
    assert (again.state, again.nodes, again.elapsed_s) == ("COMPLETED", "n2", 100)
    assert again.restarts == 1
    assert again.queued_s == 15
    assert again.used_mb == pytest.approx(904000 / 1024)
    assert again.used_cpu_share == pytest.approx(0.5)


def test_a_job_that_never_started_has_no_node_and_no_usage() -> None:
    states = parse_sacct(PREEMPTED_ONCE)
    assert (states["8"].state, states["8"].is_active) == ("CANCELLED", False)
    assert states["9"] == JobState("PENDING", exit_code="0:0")


def test_a_job_behind_a_failed_one_is_told_from_one_that_a_user_cancelled() -> None:
    states = parse_sacct(PREEMPTED_ONCE)
    assert "a job before it did not succeed" in remedy(states["10"], asked_mb=0, time_min=1)
    assert remedy(states["8"], asked_mb=0, time_min=1).startswith("cancelled")


def test_a_job_that_the_controller_forgot_does_not_go_on() -> None:
    lost = JobState("NODE_FAIL", is_forgotten=True)
    assert JobState("NODE_FAIL").is_active
    assert not lost.is_active
    assert "`submit` again" in remedy(lost, asked_mb=0, time_min=1)


def test_scontrol_says_why_a_job_pends() -> None:
    state = parse_scontrol(PENDING)
    assert (state.state, state.reason, state.nodes) == ("PENDING", "QOSMaxCpuPerJobLimit", "")
    assert (state.restarts, state.elapsed_s) == (3, 93_784)


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        (JobState("OUT_OF_MEMORY", used_mb=4096.0), "asked for 4,096 MB per node, used 4,096 MB"),
        (JobState("FAILED", exit_code="0:9", used_mb=5000.0), "out of memory"),
        (JobState("TIMEOUT", elapsed_s=3600), "asked for 30 minutes, used 60"),
        (JobState("FAILED", exit_code="0:53", nodes="n1"), "n1 could not write the log"),
        (JobState("CANCELLED", nodes="n1"), "cancelled"),
        (JobState("FAILED", exit_code="1:0"), "exit code 1:0"),
    ],
    ids=lambda value: value.state if isinstance(value, JobState) else "",
)
def test_a_failure_has_a_remedy(job: JobState, expected: str) -> None:
    assert expected in remedy(job, asked_mb=4096, time_min=30)


@pytest.mark.parametrize("state", ["PREEMPTED", "REQUEUED", "NODE_FAIL", "RUNNING", "COMPLETED"])
def test_what_is_no_failure_has_none(state: str) -> None:
    assert remedy(JobState(state), asked_mb=4096, time_min=30) == ""
