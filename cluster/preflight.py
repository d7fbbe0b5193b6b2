"""What a site file describes, tried on the cluster: one finding per check, with what to do.

A small job per kind of job runs the real thing: the site's set-up lines, Ray inside the allocation,
the project's imports, a file in the workspace. One of the size of training tries the network.
"""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

from cluster import slurm
from cluster.accounting import job_states, remedy
from cluster.jobs import Job, ask_of
from cluster.limits import (
    Partition,
    asked_partitions,
    check_limits,
    check_time,
    named_gpus,
    smallest,
)
from cluster.resources import Resources
from cluster.site import JobConfig, SiteConfig
from cluster.words import counted

PATIENCE_S = 300.0
POLL_S = 1.0
SKEW_S = 2.0
DISK_GB = 10.0
OPEN_FILES = 4096
TRIED_MIN = 10
LOG_LINES = 3


class Finding(NamedTuple):
    """One check: of which jobs, what was looked at and what was seen."""

    jobs: str
    is_good: bool
    text: str
    remedy: str = ""


def check_site(site: SiteConfig, workspace: Path) -> Iterator[Finding]:
    """Every check in turn, as it is made; the jobs that are tried write below `workspace`."""
    yield from _check_slurm()
    if shutil.which("sbatch") is None:
        return

    yield _check_accounting()
    yield _check_disk(workspace)
    for names, job in _kinds(site).items():
        yield from _check_kind(names, job, workspace)
    yield from _check_network(site.job("train"), workspace)


def _check_slurm() -> Iterator[Finding]:
    version = _printed("sinfo", "--version").strip()
    yield Finding(
        "all",
        bool(version),
        version or "no SLURM: `sinfo --version` says nothing",
        "log in to a node of the cluster with SLURM's commands on PATH",
    )


def _check_accounting() -> Finding:
    done = subprocess.run(["sacct", "-n", "-X"], capture_output=True, text=True)
    return Finding(
        "all",
        done.returncode == 0,
        "sacct answers" if done.returncode == 0 else f"sacct fails: {done.stderr.strip()}",
        "`status` then asks scontrol, which forgets a job minutes after its end, and limits of QOS "
        "and accounts are not checked; ask for slurmdbd",
    )


def _check_disk(workspace: Path) -> Finding:
    free_gb = shutil.disk_usage(_existing(workspace)).free / 1e9
    return Finding(
        "all",
        free_gb >= DISK_GB,
        f"{free_gb:,.0f} GB free at {workspace}",
        "choose a workspace with more room: `plan` says what a recipe stores",
    )


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())


def _kinds(site: SiteConfig) -> dict[str, JobConfig]:
    """The different jobs that a site file describes, by the names of their sections."""
    names = {site.default: ["default"]}
    for item in fields(site):
        if item.name != "default" and getattr(site, item.name) != JobConfig():
            names.setdefault(site.job(item.name), []).append(item.name)
    return {", ".join(steps): job for job, steps in names.items()}


def _check_kind(names: str, site: JobConfig, workspace: Path) -> Iterator[Finding]:
    try:
        partitions = asked_partitions(site)
    except ValueError as error:
        yield Finding(names, False, str(error))
        return

    listed = ", ".join(
        f"{partition.name} (at most {partition.limit}; nodes of {partition.node.cpus} CPUs, "
        f"{partition.node.memory_mb:,} MB, {partition.node.gpus} GPUs)"
        for partition in partitions
    )
    yield Finding(
        names,
        bool(partitions),
        f"partition {listed or 'not named, and there is no default'}",
        "name a partition that `sinfo` lists",
    )
    yield from (_check_preemption(names, partition) for partition in partitions)

    has_gpus = any(partition.node.gpus for partition in partitions)
    resources = Resources(workers=1, cpus=1.0, gpus=1.0 if has_gpus else 0.0)
    whole = ask_of(replace(resources, workers=site.nodes or 1), site, smallest(partitions), names)
    folder = workspace / "jobs" / f"{time.strftime('%Y%m%d-%H%M%S')}-check" / names.split(",")[0]
    job = Job("check", (), whole, site, folder)
    try:
        check_time(whole, partitions, names)
        check_limits(whole, site, partitions, names)
        slurm.check(job)
    except ValueError as error:
        yield Finding(names, False, str(error))
        return
    yield Finding(
        names, True, f"SLURM would start {whole}; no limit of QOS or account is in the way"
    )

    small = replace(site, nodes=None, cpus=None, memory_gb=None, time_min=TRIED_MIN)
    tried = ask_of(resources, small, smallest(partitions), names)
    yield from _try(names, replace(job, ask=tried, site=small), has_gpus)


def _check_preemption(names: str, partition: Partition) -> Finding:
    """Whether a preempted job hears of it in time to save its state."""
    settings = _printed("scontrol", "show", "config")
    shown = _printed("scontrol", "--oneliner", "show", "partition", partition.name)
    mode = _value(r"\bPreemptMode=(\S+)", shown)
    grace = _value(r"\bGraceTime=(\S+)", shown)
    kill_wait = _value(r"KillWait\s*=\s*(\d+)", settings)
    if "preempt/none" in settings or mode in ("", "OFF"):
        return Finding(names, True, f"jobs in {partition.name} are not preempted")

    is_told = "preempt_send_user_signal" in settings
    text = (
        f"jobs in {partition.name} are preempted by {mode}, {grace} s after the signal "
        f"(then KillWait, {kill_wait} s)"
    )
    return Finding(
        names,
        is_told and grace not in ("0", ""),
        text if is_told else f"{text}, and their warning signal is not sent",
        "ask for SlurmctldParameters=preempt_send_user_signal and a GraceTime longer than a "
        "checkpoint takes: until then a preempted job loses what it did since its last checkpoint",
    )


def _value(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found.group(1) if found else ""


def _try(names: str, job: Job, has_gpus: bool) -> Iterator[Finding]:
    """Run a small job and judge what it says of its node."""
    submitted_s = time.time()
    try:
        node = _said_by("cluster.probe", job)
    except TrialError as error:
        yield Finding(names, False, str(error), error.remedy)
        return

    yield Finding(names, True, f"a job ran on {node['host']}, with Ray, and wrote to {job.folder}")
    yield from _judge(names, node, submitted_s, has_gpus)


class TrialError(Exception):
    """A job that was tried did not say anything."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


def _said_by(module: str, job: Job) -> dict:
    """The JSON that a module of ours writes when it runs as a job. TrialError if it does not."""
    file = job.folder / "said.json"
    command = (job.site.python or sys.executable, "-m", module, str(file))
    try:
        number = slurm.submit(replace(job, command=command))
    except (ValueError, OSError) as error:
        raise TrialError(str(error)) from error

    failure = _wait(number, job)
    if failure or not file.exists():
        raise TrialError(
            f"a job tried on {job.ask} {failure or f'ended well, and {file} is not seen here'}",
            "free nodes for it if it waited; otherwise put the workspace on a file system that all "
            "nodes share and write to",
        )

    return json.loads(file.read_text())


def _judge(names: str, node: dict, submitted_s: float, has_gpus: bool) -> Iterator[Finding]:
    missing = node["import_problems"]
    yield Finding(
        names,
        not missing,
        "; ".join(missing) or f"{node['python']} imports everything there",
        "name in the site file a `python` with the project's packages that the nodes see",
    )

    early_s = submitted_s - node["time"]
    late_s = node["time"] - time.time()
    skew_s = max(0.0, early_s, late_s)
    yield Finding(
        names,
        skew_s <= SKEW_S,
        f"the node's clock is off by at least {skew_s:.1f} s" if skew_s else "the clocks agree",
        "synchronize the clocks of the nodes (NTP): records and logs are ordered by them",
    )
    yield Finding(
        names,
        node["open_files"] >= OPEN_FILES,
        f"{node['open_files']:,} files may be open there",
        f"ask for a hard limit of open files of {slurm.OPEN_FILES:,} on the nodes",
    )
    free_gb = node["temporary_free"] / 1e9
    yield Finding(
        names,
        free_gb >= DISK_GB,
        f"{free_gb:,.0f} GB free in {node['temporary']}",
        "export another TMPDIR in the site's `setup`",
    )
    if has_gpus:
        yield Finding(
            names,
            node["gpus_seen"] == node["gpus_given"] > 0,
            f"PyTorch sees {node['gpus_seen']} of {node['gpus_given']} GPUs",
            "install PyTorch for the CUDA of the nodes' driver (`make setup EXTRAS=gpu,dev`)",
        )


def _check_network(site: JobConfig, workspace: Path) -> Iterator[Finding]:
    """An all-reduce over the nodes and GPUs of a training job; what keeps such a job from running is
    named by the checks before.
    """
    names = "train"
    folder = workspace / "jobs" / f"{time.strftime('%Y%m%d-%H%M%S')}-check" / "network"
    try:
        partitions = asked_partitions(site)
        node = smallest(partitions)
        gpus = named_gpus(site.gres) or node.gpus
        processes = (site.nodes or 1) * max(1, gpus)
        if processes == 1:
            yield Finding(names, True, "training asks for one node without GPUs: no all-reduce")
            return

        short = replace(site, time_min=TRIED_MIN)
        resources = Resources(workers=processes, cpus=1.0, gpus=1.0 if gpus else 0.0)
        ask = ask_of(resources, short, node, names)
        check_limits(ask, short, partitions, names)
        network = _said_by("cluster.network", Job("check", (), ask, short, folder))
    except (TrialError, ValueError) as error:
        yield Finding(names, False, f"no all-reduce was tried: {error}")
        return

    yield _judge_network(names, network)


def _judge_network(names: str, network: dict) -> Finding:
    what = (
        f"all-reduce of {network['bytes'] / 1024**2:.0f} MiB over {network['processes']} processes on "
        f"{counted(network['nodes'], 'node')} ({network['backend']})"
    )
    if "error" not in network:
        speed = f"{network['seconds']:.3g} s, {network['bytes_per_s'] / 1e9:.3g} GB/s per process"
        return Finding(names, True, f"{what}: {speed}")

    variable = f"{network['backend'].upper()}_SOCKET_IFNAME"
    return Finding(
        names,
        False,
        f"{what} failed: {network['error']}",
        "name in the site's `setup` the interface over which the nodes see each other, such as "
        f"`export {variable}=eth0`; `ip -brief address` on a node lists them",
    )


def _wait(number: str, job: Job) -> str:
    """How a tried job failed; nothing when it succeeded."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        state = job_states([number]).get(number)
        if state and not state.is_active:
            if state.state == "COMPLETED":
                return ""
            why = remedy(state, job.ask.memory_mb, job.ask.time_min)
            return f"ended as {state.state} ({why}){_tail(job.folder)}"
        time.sleep(POLL_S)

    slurm.cancel([number])
    reason = f"{state.state.lower()}: {state.reason}" if state else "unknown to SLURM"
    return f"did not end within {PATIENCE_S:.0f} s ({reason})"


def _tail(folder: Path) -> str:
    """The last lines of the log of the last start; those of Ray on single nodes say less."""
    starts = [path for path in folder.glob("*.log") if ".ray-" not in path.name]
    logs = sorted(starts, key=lambda path: path.stat().st_mtime)
    lines = logs[-1].read_text(errors="replace").splitlines()[-LOG_LINES:] if logs else []
    return f"; its log ends with {' / '.join(lines)!r}" if lines else ""


def _printed(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
