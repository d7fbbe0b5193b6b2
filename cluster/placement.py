"""Resources as numbers for the running Ray cluster; a worker never spans two nodes."""

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence

import ray

from cluster.resources import BYTES_PER_GB, Resources


def resolve(asked: Resources, max_workers: int | None = None) -> Resources:
    """Concrete workers, cpus and gpus for the Ray cluster of this session.

    The number of workers is at least 1 and at most `max_workers`. With `min_workers`, it is as many
    of `workers` as fit. ValueError if the cluster has no room for them even when it is idle.
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

    # The number that was asked for; otherwise as many as fit, but no more than the cluster has
    # cores: the room is unlimited when a worker asks for nothing.
    cores = max(1, round(sum(node.get("CPU", 0) for node in nodes)))
    workers = min(asked.workers, room) or min(room, cores)
    return dataclasses.replace(
        one, workers=workers if max_workers is None else max(1, min(workers, max_workers))
    )


def room_for(resources: Resources) -> int:
    """How many workers with these resolved resources fit on the idle nodes of this session."""
    return _room(resources, _alive_nodes())


def _alive_nodes() -> list[Mapping[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _share_of_cpus(gpus: float, nodes: Sequence[Mapping[str, float]]) -> float:
    """Cores for a worker with `gpus` GPUs: the node's cores times the worker's share of its GPUs.

    A worker with 2 of the 8 GPUs of a node of 96 cores gets 24. With several kinds of nodes, the
    smallest such number; without GPUs, 1.
    """
    shares = [
        node.get("CPU", 1.0) * gpus / node["GPU"]
        for node in nodes
        if gpus and node.get("GPU", 0) >= gpus
    ]
    return max(1.0, float(math.floor(min(shares, default=1.0))))


def _room(one: Resources, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many workers fit on the idle nodes; unlimited if a worker asks for nothing."""
    asked = [
        ("CPU", one.cpus or 0.0),
        ("GPU", one.gpus or 0.0),
        ("memory", (one.memory_gb or 0.0) * BYTES_PER_GB),
    ]
    asked = [(name, amount) for name, amount in asked if amount > 0]
    if not asked:
        return sys.maxsize

    # Per node, the scarcest resource decides. The 1e-9 corrects quotients such as 0.3 / 0.1, which
    # is 2.9999999999999996 in floating point.
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
    return (
        f"{wanted} worker(s) of [{one.per_worker()}] do not fit: the Ray cluster has room for {room} (nodes: "
        f"[{have}]); lower workers, cpus, gpus or memory_gb, or connect to a larger cluster with "
        "RAY_ADDRESS"
    )
