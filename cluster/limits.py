"""What a SLURM cluster allows: its partitions, and the limits of associations and QOS.

A job beyond a limit is accepted by sbatch and pends for ever, also where `sbatch --test-only` says
that it could start: limits are compared here, as sacctmgr lists them.
"""

import getpass
import math
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.jobs import Ask, NodeKind
from cluster.site import JobConfig

ASSOCIATION_LIMITS = ("MaxTRES", "MaxTRESPerNode", "GrpTRES", "MaxWall")
QOS_LIMITS = (
    "MaxTRES",
    "MaxTRESPerNode",
    "MaxTRESPerUser",
    "MaxTRESPerAccount",
    "GrpTRES",
    "MaxWall",
)
UNITS_MB = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2, "P": 1024**3}


@dataclass(frozen=True)
class Partition:
    """What SLURM lists of a partition, and of its smallest node."""

    name: str
    limit: str
    """Longest job, as SLURM writes it."""
    node: NodeKind
    """Fewest cores and megabytes of its nodes; fewest GPUs of a node that has some."""


def asked_partitions(site: JobConfig) -> list[Partition]:
    """The partitions that a job may run in: those named, or the default one; none without SLURM.
    ValueError for a name that SLURM does not list.
    """
    rows = _listed("sinfo", "--exact", "--noheader", "--format=%P|%l|%c|%m|%G")
    listed = {row[0].rstrip("*") for row in rows}
    if site.partition:
        names = site.partition.split(",")
    else:
        names = [row[0].rstrip("*") for row in rows if row[0].endswith("*")][:1]

    for name in names:
        if rows and name not in listed:
            raise ValueError(
                f"partition is {name!r}: SLURM has {', '.join(sorted(listed))}; correct it in the "
                "site file"
            )

    return [_partition(name, rows) for name in names if name in listed]


def _partition(name: str, rows: Sequence[Sequence[str]]) -> Partition:
    ours = [row for row in rows if row[0].rstrip("*") == name]
    gpus = [count for row in ours if (count := count_gpus(row[4]))]
    node = NodeKind(
        min(int(row[2]) for row in ours), min(int(row[3]) for row in ours), min(gpus, default=0)
    )
    return Partition(name, ours[0][1], node)


def smallest(partitions: Sequence[Partition]) -> NodeKind:
    """The least that a node of these partitions has."""
    if not partitions:
        return NodeKind()
    nodes = [partition.node for partition in partitions]
    return NodeKind(
        min(node.cpus for node in nodes),
        min(node.memory_mb for node in nodes),
        min((node.gpus for node in nodes if node.gpus), default=0),
    )


def count_gpus(generic: str) -> int:
    """GPUs among SLURM's generic resources of a node: "gpu:a100:4(S:0-1),gpu:t4:1,shard:8" has
    5.
    """
    return sum(int(count) for count in re.findall(r"(?<![^,])gpu(?::[^:,(]+)?:(\d+)", generic))


def named_gpus(gres: str | None) -> int:
    """GPUs per node that a site names for its jobs; 0 where it names none."""
    named = gres or ""
    if "gpu" not in named:
        return 0
    return count_gpus(named) or 1  # "gpu" alone is one


def unanswered() -> list[str]:
    """The commands that list limits and do not answer here: without SLURM, or without accounts."""
    questions = (("sinfo", "--noheader"), ("sacctmgr", "-nP", "show", "cluster"))
    return [question[0] for question in questions if not _listed(*question)]


def check_time(ask: Ask, partitions: Sequence[Partition], label: str) -> None:
    """ValueError when no partition runs a job for as long as is asked."""
    limits = {partition.name: partition.limit for partition in partitions}
    if limits and all(ask.time_min > minutes(limit) for limit in limits.values()):
        raise ValueError(
            f"{label}: time_min is {ask.time_min}, and partition "
            f"{', '.join(f'{name} ends jobs after {limit}' for name, limit in limits.items())}; "
            "ask for less, the job is requeued and continues"
        )


def check_limits(ask: Ask, site: JobConfig, partitions: Sequence[Partition], label: str) -> None:
    """ValueError for the first limit of an association or QOS that keeps the job pending for ever;
    nothing is checked where the site keeps no accounts.
    """
    asked = _tres_of(ask, smallest(partitions))
    for where, name, limit in _limits(site, partitions):
        if name == "MaxWall":
            over = [("minutes", float(ask.time_min), minutes(limit))]
        else:
            per = ask.nodes if name == "MaxTRESPerNode" else 1
            over = [(kind, asked.get(kind, 0) / per, most) for kind, most in _tres(limit).items()]

        for kind, wanted, most in over:
            if wanted > most:
                raise ValueError(
                    f"{label} asks for {wanted:g} {kind}: {where} allows {most:g} ({name}), and "
                    "SLURM would let the job wait for ever; ask for less, or name another qos or "
                    "account in the site file"
                )


def _limits(site: JobConfig, partitions: Sequence[Partition]) -> list[tuple[str, str, str]]:
    """Where a limit stands, its name and its value, for every limit that holds for the job."""
    user = getpass.getuser()
    account = site.account or _default_account(user)
    if not account:
        return []  # no accounts are kept here

    columns = ("User", "Partition", "DefaultQOS", *ASSOCIATION_LIMITS)
    wanted = (f"account={account}", f"format={','.join(columns)}")
    rows = _listed("sacctmgr", "-nP", "show", "assoc", *wanted)
    names = [partition.name for partition in partitions]
    ours = [
        dict(zip(columns, row, strict=True))
        for row in rows
        if row[0] in ("", user) and row[1] in ("", *names)
    ]
    limits = [
        (f"account {account}", name, row[name])
        for row in ours
        for name in ASSOCIATION_LIMITS
        if row[name]
    ]

    defaults = [row["DefaultQOS"] for row in ours if row["User"] == user and row["DefaultQOS"]]
    qos_columns = ("Name", *QOS_LIMITS)
    qos_of_partitions = [_qos_of_partition(name) for name in names]
    holding = {site.qos or next(iter(defaults), "normal"), *qos_of_partitions}
    for row in _listed("sacctmgr", "-nP", "show", "qos", f"format={','.join(qos_columns)}"):
        values = dict(zip(qos_columns, row, strict=True))
        if values["Name"] in holding:
            limits += [
                (f"QOS {values['Name']}", name, values[name]) for name in QOS_LIMITS if values[name]
            ]

    return limits


def _default_account(user: str) -> str:
    rows = _listed("sacctmgr", "-nP", "show", "user", user, "format=DefaultAccount")
    return rows[0][0] if rows else ""


def _qos_of_partition(name: str) -> str:
    """The QOS whose limits hold for every job of a partition; empty when it has none."""
    shown = " ".join(row[0] for row in _listed("scontrol", "--oneliner", "show", "partition", name))
    found = re.search(r"\bQoS=(\S+)", shown)
    return found.group(1) if found and found.group(1) != "N/A" else ""


def _tres_of(ask: Ask, node: NodeKind) -> dict[str, float]:
    """Everything that a job asks for, by SLURM's names of trackable resources."""
    return {
        "cpu": float(ask.nodes * (ask.cpus or node.cpus)),
        "mem": float(ask.nodes * (ask.memory_mb or node.memory_mb)),
        "node": float(ask.nodes),
        "gres/gpu": float(ask.nodes * ask.gpus),
    }


def _tres(text: str) -> dict[str, float]:
    """SLURM's list of resources: "cpu=4,mem=8G,gres/gpu=2" is {cpu: 4, mem: 8192, gres/gpu: 2}."""
    amounts = {}
    for entry in filter(None, text.split(",")):
        name, _, amount = entry.partition("=")
        unit = UNITS_MB.get(amount[-1:], 1)
        amounts[name] = float(amount.rstrip("KMGTP")) * unit
    return amounts


def minutes(limit: str) -> float:
    """SLURM's [days-]hours:minutes:seconds, or minutes:seconds, in minutes."""
    if limit == "infinite":
        return math.inf
    days, _, clock = limit.rpartition("-")
    counts = [int(count) for count in clock.split(":")]
    hours, mins, seconds = [0] * (3 - len(counts)) + counts
    return (int(days or 0) * 24 + hours) * 60 + mins + seconds / 60


def _listed(*command: str) -> list[list[str]]:
    """The rows that a command of SLURM prints, as columns; none where it fails, or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return (
        [line.split("|") for line in done.stdout.splitlines() if line]
        if not done.returncode
        else []
    )
