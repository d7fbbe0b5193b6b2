"""Submit a command as a SLURM job that starts Ray on its nodes and runs the command as Ray's
driver.

What SLURM would leave pending for ever is refused here. A job that is preempted, runs into its time
limit or loses a node is requeued under the same id; the command continues from what it left on
disk.
"""

import math
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import submitit

from cluster.allocation import RayJob
from cluster.resources import Resources
from cluster.session import ROOT

MOST_REQUEUES = (
    100  # a job that reaches none of its checkpoints within its time limit must end at some point
)
WARNING_S = 60  # between the signal and the end of the time limit

Parameters = dict[str, str | int | list[str] | dict[str, str | bool]]


def submit(command: Sequence[str], resources: Resources, folder: Path, name: str) -> str:
    """Submit `command` and return the job's id; `folder`, on a file system that all nodes share,
    receives its logs.

    The job holds `resources.nodes` nodes and all of `resources.workers` on them, or whole nodes
    when workers is 0. Inside, `cluster.session` finds the job's Ray. A command that exits with
    `endings.REQUEUE` is requeued.
    """
    if shutil.which("sbatch") is None:
        raise ValueError(
            "sbatch is not on PATH: SLURM jobs are submitted with it; log in to a node of "
            "the cluster"
        )

    folder.mkdir(parents=True, exist_ok=True)
    # `exec`: the batch shell becomes the job's Python, so that the signal for the batch shell reaches it
    python = f"exec {shlex.quote(sys.executable)}"
    executor = submitit.SlurmExecutor(
        folder.absolute() / "%j", max_num_timeout=MOST_REQUEUES, python=python
    )
    partition = _partition(resources.partition)
    parameters = _parameters(resources, name, partition.gpus)
    executor.update_parameters(**parameters)
    _check(executor, resources, partition)

    return executor.submit(RayJob(tuple(command))).job_id


@dataclass(frozen=True)
class _Partition:
    """What SLURM lists of a partition."""

    name: str
    limit: str
    """Longest job, as SLURM writes it."""
    gpus: int
    """Fewest GPUs of a node that has some; 0 when none has."""


def _partition(name: str | None) -> _Partition:
    """The partition asked for, else the site's default; one without limits when SLURM lists no such
    thing.
    """
    listing = subprocess.run(
        ["sinfo", "--noheader", "--format=%P %l %G"], capture_output=True, text=True
    ).stdout
    rows = [line.split(maxsplit=2) for line in listing.splitlines()]
    ours = [row for row in rows if (row[0].rstrip("*") == name if name else row[0].endswith("*"))]
    if not ours:
        return _Partition("", "infinite", 0)

    gpus = [count for _, _, generic in ours if (count := _gpus(generic))]
    return _Partition(ours[0][0].rstrip("*"), ours[0][1], min(gpus, default=0))


def _gpus(generic: str) -> int:
    """GPUs among SLURM's generic resources of a node: "gpu:a100:4(S:0-1),gpu:t4:1,shard:8" has
    5.
    """
    return sum(int(count) for count in re.findall(r"(?<![^,])gpu(?::[^:,(]+)?:(\d+)", generic))


def _parameters(resources: Resources, name: str, node_gpus: int) -> Parameters:
    """The job in submitit's words; whole nodes have `node_gpus` each, and only those asked for
    reach every job step.
    """
    parameters: Parameters = {
        "job_name": name,
        "nodes": resources.nodes,
        "ntasks_per_node": 1,
        "time": resources.time_min,
        "use_srun": False,
        "stderr_to_stdout": True,
        "setup": [
            f"export PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}} "
            "RAY_USAGE_STATS_ENABLED=0",
            "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(od -An -vtx1 -N32 /dev/urandom | tr "
            "-d ' \\n')",
        ],
    }
    parameters["additional_parameters"] = {"signal": f"B:USR2@{WARNING_S}", "requeue": True}
    sites = {"partition": resources.partition, "account": resources.account, "qos": resources.qos}
    parameters |= {key: value for key, value in sites.items() if value is not None}
    workers = math.ceil(resources.workers / resources.nodes)

    if workers == 0:
        parameters |= {"exclusive": True, "mem": "0"}
    else:
        parameters["cpus_per_task"] = max(1, math.ceil(workers * (resources.cpus or 1)))
        if resources.memory_gb is not None:
            parameters["mem"] = f"{math.ceil(workers * resources.memory_gb * 1024)}M"

    if resources.gpus:
        parameters["gpus_per_node"] = math.ceil(workers * resources.gpus) or max(
            node_gpus, math.ceil(resources.gpus)
        )

    return parameters


def _check(executor: submitit.SlurmExecutor, resources: Resources, partition: _Partition) -> None:
    """Refuse what no node of the partition could ever run."""
    text = executor._make_submission_file_text("true", "check")
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as script:
        script.write(text)
        script.flush()
        tested = subprocess.run(
            ["sbatch", "--test-only", script.name], capture_output=True, text=True
        )

    if tested.returncode != 0:
        raise ValueError(
            f"SLURM cannot run {resources}: it says {tested.stderr.strip()!r}; "
            "ask for what `sinfo -o '%P %D %c %m %G'` lists"
        )
    if resources.time_min > _minutes(partition.limit):
        raise ValueError(
            f"resources.time_min is {resources.time_min}: partition {partition.name} ends jobs "
            f"after {partition.limit}; ask for less, the job is requeued and continues"
        )
    if resources.gpus is None and partition.gpus:
        raise ValueError(
            f"resources.gpus is unset, and partition {partition.name} has nodes with "
            f"{partition.gpus} GPUs: a job has only those it asks for; say --train.resources.gpus "
            "1 for one a worker, or 0 to train on CPUs"
        )


def _minutes(limit: str) -> float:
    """SLURM's [days-]hours:minutes:seconds, or minutes:seconds, in minutes."""
    if limit == "infinite":
        return math.inf
    days, _, clock = limit.rpartition("-")
    fields = [int(field) for field in clock.split(":")]
    hours, minutes, seconds = [0] * (3 - len(fields)) + fields
    return (int(days or 0) * 24 + hours) * 60 + minutes + seconds / 60
