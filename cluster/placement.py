"""Where workers fit: resources as numbers for the running Ray cluster, node by node: a worker never
spans two nodes.
"""

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence

import ray

from cluster.resources import BYTES_PER_GB, Resources


def resolve(asked: Resources, max_workers: int | None = None) -> Resources:
    """Concrete workers, cpus and gpus for the Ray cluster of this session; at most `max_workers`,
    at least one.

    With `min_workers`, as many of the workers as there is room for now. Raises ValueError when the
    cluster, even idle, has no room for them.
    """
    nodes = _alive_nodes()
    gpus = (
        asked.gpus
        if asked.gpus is not None
        else float(any(node.get("GPU", 0) >= 1 for node in nodes))
    )
    cpus = asked.cpus if asked.cpus is not None else _share_of_cpus(gpus, nodes)
    one = dataclasses.replace(asked, gpus=gpus, cpus=cpus)

    room = _room(one, nodes)
    least = max(1, asked.min_workers or asked.workers)
    if room < least:
        raise ValueError(_too_large(one, least, room, nodes))

    cores = max(1, round(sum(node.get("CPU", 0) for node in nodes)))
    workers = min(asked.workers, room) or min(room, cores)
    return dataclasses.replace(
        one, workers=workers if max_workers is None else max(1, min(workers, max_workers))
    )


def room_for(resources: Resources) -> int:
    """How many workers of these resolved resources the nodes of this session could hold if they
    were idle.
    """
    return _room(resources, _alive_nodes())


def _alive_nodes() -> list[Mapping[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _share_of_cpus(gpus: float, nodes: Sequence[Mapping[str, float]]) -> float:
    """Cores for a worker of so many GPUs: as many on each node as its GPUs leave to it, at least
    one.
    """
    shares = [
        node.get("CPU", 1.0) * gpus / node["GPU"]
        for node in nodes
        if gpus and node.get("GPU", 0) >= gpus
    ]
    return max(1.0, float(math.floor(min(shares, default=1.0))))


def _room(one: Resources, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many workers fit on the idle nodes; no limit when a worker asks for nothing."""
    asked = [
        ("CPU", one.cpus or 0.0),
        ("GPU", one.gpus or 0.0),
        ("memory", (one.memory_gb or 0.0) * BYTES_PER_GB),
    ]
    asked = [(name, amount) for name, amount in asked if amount > 0]
    if not asked:
        return sys.maxsize

    return sum(
        min(math.floor(node.get(name, 0) / amount + 1e-9) for name, amount in asked)
        for node in nodes
    )


def _too_large(one: Resources, wanted: int, room: int, nodes: Sequence[Mapping[str, float]]) -> str:
    have = "; ".join(
        f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU, "
        f"{node.get('memory', 0) / BYTES_PER_GB:.1f} GiB"
        for node in nodes
    )
    asked = f"{one.cpus:g} CPU, {one.gpus:g} GPU, {one.memory_gb or 0:g} GiB"
    return (
        f"{wanted} worker(s) of [{asked}] do not fit: the Ray cluster has room for {room} (nodes: "
        f"[{have}]); lower workers, cpus, gpus or memory_gb, or connect to a larger cluster with "
        "RAY_ADDRESS"
    )
