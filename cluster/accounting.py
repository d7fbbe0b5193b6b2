"""What SLURM says of jobs: from `sacct -D`, which knows every start of a job, else from `scontrol`.

sacct lags some seconds and does not say why a job pends, so that what it holds for active is asked
of scontrol. Without accounting, scontrol knows a job until some minutes after its end.
"""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

ACTIVE = (
    "PENDING",
    "RUNNING",
    "CONFIGURING",
    "COMPLETING",
    "SUSPENDED",
    "REQUEUED",
    "REQUEUE_FED",
    "REQUEUE_HOLD",
    "PREEMPTED",
    "NODE_FAIL",
    "RESIZING",
    "SIGNALING",
    "STAGE_OUT",
    "STOPPED",
)
"""A job in one of these goes on, or is about to be requeued, unless scontrol does not know it."""
NEVER = "DependencyNeverSatisfied"
FORGOTTEN = "Invalid job id"  # what scontrol says of a job that ended some minutes ago
FIELDS = (
    "JobIDRaw",
    "State",
    "NodeList",
    "ElapsedRaw",
    "ExitCode",
    "MaxRSS",
    "Eligible",
    "Start",
    "AllocCPUS",
    "TotalCPU",
)
UNITS = {"": 1 / 1024**2, "K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2}
NO_LOG = "0:53"
"""Exit code of a job whose log the node could not open."""
KILLED = "0:9"


@dataclass(frozen=True)
class JobState:
    """A job as SLURM sees it."""

    state: str
    reason: str = ""
    """Why it pends, or ended."""
    nodes: str = ""
    elapsed_s: int = 0
    """Since its last start."""
    restarts: int = 0
    exit_code: str = ""
    """Of the command, and the signal that ended it: `1:0`."""
    used_mb: float = 0.0
    """Most memory that it took on one node; 0 where SLURM did not measure it."""
    queued_s: int = 0
    """Between the times from which it could start and its starts, together."""
    used_cpu_share: float = 0.0
    """CPU time it took, as a share of the time of its cores."""
    is_forgotten: bool = False
    """The controller does not know it any more: whatever its last state, it does not go on."""

    @property
    def is_active(self) -> bool:
        return self.state in ACTIVE and not self.is_forgotten


def job_states(jobs: Sequence[str]) -> dict[str, JobState]:
    """What is known of each job, by its id; a job of which nothing is known is left out."""
    if not jobs:
        return {}

    command = [
        "sacct",
        "-D",
        "-n",
        "-P",
        f"--jobs={','.join(jobs)}",
        f"--format={','.join(FIELDS)}",
    ]
    states = parse_sacct(printed(command)[0])

    for job in jobs:
        recorded = states.get(job)
        if recorded is None or recorded.is_active:
            shown, complaint = printed(["scontrol", "--oneliner", "show", "job", job])
            if recorded and FORGOTTEN in complaint:
                states[job] = replace(recorded, is_forgotten=True)
            if "JobState=" in shown:
                live = parse_scontrol(shown)
                states[job] = replace(
                    recorded or live,
                    state=live.state,
                    reason=live.reason,
                    nodes=live.nodes,
                    elapsed_s=live.elapsed_s,
                    restarts=live.restarts,
                    exit_code=live.exit_code,
                )

    return states


def printed(command: list[str]) -> tuple[str, str]:
    """What a command of SLURM prints and complains of; nothing where it is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return "", ""
    return done.stdout if done.returncode == 0 else "", done.stderr


def parse_sacct(text: str) -> dict[str, JobState]:
    """The last state of each job; its rows are its starts in order, each with its steps."""
    states = dict[str, JobState]()
    for line in text.splitlines():
        row = dict(zip(FIELDS, line.split("|"), strict=True))
        job, _, step = row["JobIDRaw"].partition(".")
        before = states.get(job)
        if step:
            if before:
                used_mb = max(before.used_mb, megabytes(row["MaxRSS"]))
                states[job] = replace(before, used_mb=used_mb)
            continue

        nodes = "" if row["NodeList"] == "None assigned" else row["NodeList"]
        states[job] = JobState(
            state=row["State"].split()[0],  # "CANCELLED by 1000"
            # by nobody, before it ran: SLURM ended what its dependencies will never let start
            reason=NEVER if row["State"] == "CANCELLED" and not nodes else "",
            nodes=nodes,
            elapsed_s=int(row["ElapsedRaw"] or 0),
            restarts=before.restarts + 1 if before else 0,
            exit_code=row["ExitCode"],
            used_mb=before.used_mb if before else 0.0,
            queued_s=(before.queued_s if before else 0) + waited_s(row["Eligible"], row["Start"]),
            used_cpu_share=_share(row),
        )

    return states


def parse_scontrol(text: str) -> JobState:
    """The state in the line of `scontrol --oneliner show job`."""
    facts = dict(fact.split("=", 1) for fact in text.split() if "=" in fact)
    reason = "" if facts["Reason"] == "None" else facts["Reason"]
    if facts["JobState"] == "CANCELLED" and reason.startswith("Dependency"):
        reason = NEVER  # far behind the job that failed, SLURM says "Dependency" alone
    nodes = facts.get("NodeList", "")
    return JobState(
        state=facts["JobState"],
        reason=reason,
        nodes="" if nodes == "(null)" else nodes,
        elapsed_s=round(seconds(facts["RunTime"])),
        restarts=int(facts["Restarts"]),
        exit_code=facts["ExitCode"],
    )


def megabytes(amount: str) -> float:
    """'535526K' in megabytes."""
    found = re.fullmatch(r"([\d.]+)([KMGT]?)", amount)
    return float(found.group(1)) * UNITS[found.group(2)] if found else 0.0


def waited_s(eligible: str, started: str) -> int:
    """Seconds between two times as sacct writes them; 0 for a job that has not started."""
    try:
        waited = datetime.fromisoformat(started) - datetime.fromisoformat(eligible)
    except ValueError:
        return 0
    return max(0, round(waited.total_seconds()))


def _share(row: dict[str, str]) -> float:
    core_s = int(row["ElapsedRaw"] or 0) * int(row["AllocCPUS"] or 0)
    return seconds(row["TotalCPU"]) / core_s if core_s else 0.0


def seconds(clock: str) -> float:
    """[days-][hours:]minutes:seconds, as SLURM writes durations."""
    days, _, rest = clock.rpartition("-")
    counts = [float(count) for count in rest.split(":")]
    total = 0.0
    for count in counts:
        total = total * 60 + count
    return int(days or 0) * 86_400 + total


def remedy(job: JobState, asked_mb: int, time_min: int, last_error: str = "") -> str:
    """What to do about a job that failed; nothing for one that did not."""
    again = "`submit` again continues from what is kept"
    used = f", used {job.used_mb:,.0f} MB" if job.used_mb else ""
    is_over = job.exit_code == KILLED and asked_mb and job.used_mb > asked_mb

    if job.state == "OUT_OF_MEMORY" or (job.state == "FAILED" and is_over):
        asked = f"{asked_mb:,} MB" if asked_mb else "all memory"
        return (
            f"out of memory: asked for {asked} per node{used}; raise the step's "
            f"resources.memory_gb, or memory_gb in the site file; {again}"
        )
    if job.state == "TIMEOUT":
        return (
            f"ran into its limit: asked for {time_min} minutes, used {job.elapsed_s / 60:.0f}; "
            f"raise time_min in the site file; {again}"
        )
    if job.exit_code == NO_LOG:
        return (
            f"the node {job.nodes} could not write the log: the workspace must lie on a file system "
            "that all nodes share; `cluster check` tests it"
        )
    if job.state == "CANCELLED":
        is_behind = job.reason == NEVER
        why = "not started, as a job before it did not succeed" if is_behind else "cancelled"
        return f"{why}; {again}"
    if job.state in ("FAILED", "BOOT_FAIL", "DEADLINE") or job.is_forgotten:
        return last_error or f"ended with exit code {job.exit_code}; its log says why; {again}"

    return ""
