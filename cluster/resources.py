"""What a step may ask for: the only spelling of Ray and SLURM options.

Resources are machine facts: they say how fast a step runs, never what it computes, so no fingerprint holds them.
`resolve` makes them concrete against the running Ray cluster, node by node: a worker never spans two nodes.
"""

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray

MACHINE_FACT = {"machine_fact": True}
"""Metadata of a config's field that says how or where, not what, is computed: it is no part of a fingerprint either."""

BYTES_PER_GB = 1024**3


@dataclass(frozen=True)
class Resources:
    workers: int = 0
    """Processes that share the work; 0: as many as the cluster has room for."""
    min_workers: int = 0
    """Fewest that training goes on with when a node is lost, `workers` being the most; 0: always `workers`."""
    cpus: float | None = None
    """CPU cores per worker, also the number of its BLAS threads; unset: 1, or with GPUs its share of the node's."""
    gpus: float | None = None
    """GPUs per worker; unset: 1 when the cluster has GPUs, otherwise 0. To be set for a SLURM partition with GPUs."""
    memory_gb: float | None = None
    """Memory reserved per worker, GiB; unset: none is reserved."""
    nodes: int = 1
    """SLURM nodes that a submitted job asks for."""
    time_min: int = 60
    """SLURM time limit, minutes; a job that runs into it is requeued and continues."""
    partition: str | None = None
    """SLURM partition; unset: the site's default."""
    account: str | None = None
    """SLURM account; unset: the site's default."""
    qos: str | None = None
    """SLURM quality of service; unset: the site's default."""

    def __post_init__(self) -> None:
        for field, least in (
            ("workers", 0),
            ("min_workers", 0),
            ("cpus", 0),
            ("gpus", 0),
            ("memory_gb", 0),
            ("nodes", 1),
            ("time_min", 1),
        ):
            value = getattr(self, field)
            if value is not None and not value >= least:
                raise ValueError(
                    f"resources.{field} is {value}: must be at least {least}; leave it out for the default"
                )
        if self.min_workers > self.workers:
            raise ValueError(
                f"resources.min_workers is {self.min_workers}: must be at most resources.workers, {self.workers}; "
                "set both"
            )

    @property
    def threads(self) -> int:
        """BLAS and OpenMP threads of one worker."""
        return max(1, math.floor(self.cpus or 1))

    def actor_options(self) -> dict[str, float]:
        """Keyword arguments for the `.options()` of a Ray actor or task."""
        if self.gpus is None or self.cpus is None:
            raise ValueError("resources.gpus or cpus is unset: Ray needs numbers; call resolve() first")
        options: dict[str, float] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        if self.memory_gb is not None:
            options["memory"] = math.ceil(self.memory_gb * BYTES_PER_GB)
        return options

    def resolve(self, max_workers: int | None = None) -> "Resources":
        """Concrete workers and gpus for the Ray cluster of this session; at most `max_workers`, at least one.

        With `min_workers`, as many of the workers as there is room for now. Raises ValueError when the cluster, even
        idle, has no room for them.
        """
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = self.gpus if self.gpus is not None else float(any(node.get("GPU", 0) >= 1 for node in nodes))
        cpus = self.cpus if self.cpus is not None else _share_of_cpus(gpus, nodes)
        one = dataclasses.replace(self, gpus=gpus, cpus=cpus)
        room = _room(one, nodes)
        least = max(1, self.min_workers or self.workers)
        if room < least:
            raise ValueError(_too_large(one, least, room, nodes))
        cores = max(1, round(sum(node.get("CPU", 0) for node in nodes)))
        workers = min(self.workers, room) or min(room, cores)
        return dataclasses.replace(one, workers=workers if max_workers is None else max(1, min(workers, max_workers)))

    def room(self) -> int:
        """How many such workers the nodes of this session have room for when idle; of resources that are resolved."""
        return _room(self, [node["Resources"] for node in ray.nodes() if node["Alive"]])


def _share_of_cpus(gpus: float, nodes: Sequence[Mapping[str, float]]) -> float:
    """Cores for a worker of so many GPUs: as many on each node as its GPUs leave to it, at least one."""
    shares = [node.get("CPU", 1.0) * gpus / node["GPU"] for node in nodes if gpus and node.get("GPU", 0) >= gpus]
    return max(1.0, float(math.floor(min(shares, default=1.0))))


def _room(one: Resources, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many workers fit on the idle nodes; no limit when a worker asks for nothing."""
    asked = [("CPU", one.cpus or 0.0), ("GPU", one.gpus or 0.0), ("memory", (one.memory_gb or 0.0) * BYTES_PER_GB)]
    asked = [(name, amount) for name, amount in asked if amount > 0]
    if not asked:
        return sys.maxsize
    return sum(min(math.floor(node.get(name, 0) / amount + 1e-9) for name, amount in asked) for node in nodes)


def _too_large(one: Resources, wanted: int, room: int, nodes: Sequence[Mapping[str, float]]) -> str:
    have = "; ".join(
        f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU, {node.get('memory', 0) / BYTES_PER_GB:.1f} GiB"
        for node in nodes
    )
    asked = f"{one.cpus:g} CPU, {one.gpus:g} GPU, {one.memory_gb or 0:g} GiB"
    return (
        f"{wanted} worker(s) of [{asked}] do not fit: the Ray cluster has room for {room} (nodes: [{have}]); "
        "lower workers, cpus, gpus or memory_gb, or connect to a larger cluster with RAY_ADDRESS"
    )
