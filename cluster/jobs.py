"""A SLURM job, and what it asks of its nodes: what the workers of its steps need, and what runs
beside them.

Ray and the driver take memory too, and Ray's object store a share of what a node has, so that a
job of two workers of 4 GiB asks for (2 x 4 + 2) / 0.9 = 11.1 GiB.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.resources import OBJECT_STORE_SHARE, Resources
from cluster.site import TIME_MIN, JobConfig
from cluster.words import counted

BESIDE_GB = 2.0  # of the driver and of Ray's servers on one node
LEAST_WORKER_GB = 1.0  # of a worker that names no memory: what its imports alone take


@dataclass(frozen=True)
class Ask:
    """Nodes, and what is asked of each."""

    nodes: int
    cpus: int
    """0: whole nodes."""
    memory_mb: int
    """0: all of it."""
    gpus: int
    time_min: int

    def __str__(self) -> str:
        cpus = counted(self.cpus, "CPU") if self.cpus else "all CPUs"
        memory = f"{self.memory_mb:,} MB" if self.memory_mb else "all memory"
        gpus = f", {counted(self.gpus, 'GPU')}" if self.gpus else ""
        return f"{counted(self.nodes, 'node')} of {cpus}, {memory}{gpus}, {self.time_min} minutes"


@dataclass(frozen=True)
class Job:
    """A job that is not submitted yet."""

    name: str
    command: tuple[str, ...]
    """Ray's driver."""
    ask: Ask
    site: JobConfig
    folder: Path
    """Of its logs, on a file system that all nodes share."""
    after: tuple[str, ...] = ()
    """Ids of the jobs that must have succeeded before it starts."""


@dataclass(frozen=True)
class NodeKind:
    """The smallest node of the partitions that a job may run in; zeros where SLURM lists none."""

    cpus: int = 0
    memory_mb: int = 0
    gpus: int = 0


def ask_of(resources: Resources, site: JobConfig, node: NodeKind, label: str) -> Ask:
    """What the job of a step asks for. ValueError when the site's numbers are below what the
    workers need.

    Without a number of workers a job takes whole nodes, unless the site says how much of them.
    """
    nodes = site.nodes or 1
    workers = math.ceil(resources.workers / nodes)
    cpus = math.ceil(workers * (resources.cpus or 1))
    gpus = math.ceil(workers * (resources.gpus or 0))
    if workers == 0 and resources.gpus:
        gpus = max(node.gpus, math.ceil(resources.gpus))

    least_mb = _least_memory_mb(workers, resources)
    _refuse_less("cpus", site.cpus, cpus, label)
    _refuse_less("memory_gb", site.memory_gb, least_mb / 1024, label)

    cpus = site.cpus or cpus
    memory_mb = math.ceil((site.memory_gb or 0) * 1024)
    if cpus and not memory_mb:
        share_mb = cpus * node.memory_mb // node.cpus if node.cpus else 0
        is_named = resources.memory_gb is not None and workers > 0
        memory_mb = least_mb if is_named else max(least_mb, share_mb)

    return Ask(nodes, cpus, memory_mb, gpus, site.time_min or TIME_MIN)


def _least_memory_mb(workers: int, resources: Resources) -> int:
    """Memory of a node for so many workers, the driver, Ray's servers and the object store."""
    each = LEAST_WORKER_GB if resources.memory_gb is None else resources.memory_gb
    used = max(1, workers) * each + BESIDE_GB
    return math.ceil(used / (1 - OBJECT_STORE_SHARE) * 1024)


def _refuse_less(name: str, value: float | int | None, least: float | int, label: str) -> None:
    if value is not None and value < least:
        raise ValueError(
            f"the site gives the job of {label} {name} {value:g} per node: its workers, the driver "
            f"and Ray need {least:.3g}; raise {name} in the site file, or lower the step's "
            "resources"
        )


def largest(asks: Sequence[Ask]) -> Ask:
    """One allocation with room for every one of several jobs."""
    is_whole = any(ask.cpus == 0 for ask in asks)
    all_memory = any(ask.memory_mb == 0 for ask in asks)
    return Ask(
        nodes=max(ask.nodes for ask in asks),
        cpus=0 if is_whole else max(ask.cpus for ask in asks),
        memory_mb=0 if all_memory else max(ask.memory_mb for ask in asks),
        gpus=max(ask.gpus for ask in asks),
        time_min=max(ask.time_min for ask in asks),
    )
