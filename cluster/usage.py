"""What the SLURM job that this process runs in has asked for and used until now.

sacct knows what a job used only once it has ended. While it runs, scontrol knows what it asked for
and sstat what its processes have used, so that a job can give its own account.
"""

import os
import re
from dataclasses import dataclass

from cluster.accounting import megabytes, printed, seconds, waited_s

FIELDS = ("JobID", "MaxRSS", "AveCPU", "NTasks")


@dataclass(frozen=True)
class JobUsage:
    """A start of a job, from its beginning until now."""

    job_id: str
    nodes: str
    """As SLURM writes them: `n[1-2]`."""
    restarts: int
    queued_s: int
    """From the time at which this start became possible to the start."""
    elapsed_s: float
    limit_min: float
    """Time limit; 0 where the partition has none."""
    asked_cpus: float
    """On all nodes together."""
    used_cpus: float
    """Busy on average, on all nodes together."""
    asked_mb: float
    """Memory per node."""
    used_mb: float
    """Most memory that one node has used."""
    asked_gpus: float
    """On all nodes together."""


def own_job_usage() -> JobUsage | None:
    """The account of this process's job; None outside of SLURM, or where SLURM does not answer."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return None

    shown = printed(["scontrol", "--oneliner", "show", "job", job])[0]
    if "JobState=" not in shown:
        return None

    # One row per step of the job: the batch process, and Ray on each further node.
    steps = printed(["sstat", "-a", "-n", "-P", f"--jobs={job}", f"--format={','.join(FIELDS)}"])[0]
    return parse_usage(job, shown, steps)


def parse_usage(job: str, shown: str, steps: str) -> JobUsage:
    """The account in the line of `scontrol --oneliner show job` and the rows of sstat."""
    facts = dict(fact.split("=", 1) for fact in shown.split() if "=" in fact)
    elapsed_s = seconds(facts["RunTime"])
    limit = facts["TimeLimit"]

    # What was allocated: TRES until SLURM 23.02, AllocTRES since.
    resources = facts.get("AllocTRES") or facts.get("TRES", "")
    amounts = dict(amount.split("=", 1) for amount in resources.split(",") if "=" in amount)
    num_nodes = int(amounts.get("node", 1))

    used_mb = 0.0
    used_cpu_s = 0.0
    for line in steps.splitlines():
        row = dict(zip(FIELDS, line.split("|"), strict=True))
        used_mb = max(used_mb, megabytes(row["MaxRSS"]))
        if re.search(r"\d", row["AveCPU"]):  # empty for a step that has just begun
            used_cpu_s += seconds(row["AveCPU"]) * int(row["NTasks"] or 1)

    return JobUsage(
        job_id=job,
        nodes=facts["NodeList"],
        restarts=int(facts["Restarts"]),
        queued_s=waited_s(facts["EligibleTime"], facts["StartTime"]),
        elapsed_s=elapsed_s,
        limit_min=seconds(limit) / 60 if limit[0].isdigit() else 0.0,
        asked_cpus=float(amounts.get("cpu", 0)),
        used_cpus=used_cpu_s / elapsed_s if elapsed_s else 0.0,
        asked_mb=megabytes(amounts.get("mem", "")) / num_nodes,
        used_mb=used_mb,
        asked_gpus=float(amounts.get("gres/gpu", 0)),
    )
