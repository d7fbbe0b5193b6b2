"""The devices of the workers of a Ray session, measured once, and configs settled for them.

If all nodes are this host, its processor is measured in this process. GPUs and other hosts are
measured by tasks, on the nodes where the workers will run.
"""

import logging
import socket
from collections.abc import Sequence
from functools import cache
from typing import Literal, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.machine import (
    Choice,
    Device,
    check_precision,
    choose_precision,
    holds_precision,
    leaves_precision_open,
    measure_device,
    settle,
)
from cluster.resources import Resources

Kind = Literal["cpu", "cuda"]

logger = logging.getLogger(__name__)


T = TypeVar("T")


def settled(config: T, resources: Resources) -> T:
    """The config for workers with these resources, with each `auto` replaced for their device."""
    if not leaves_precision_open(config):
        return config
    return settle(config, {"precision": choose_precision(device_of(resources)).value})


def precision_choice(config: object) -> Choice | None:
    """What `auto` stands for in a step's config; None if no precision is `auto`."""
    resources = getattr(config, "resources", None)
    if resources is None or not leaves_precision_open(config):
        return None
    return choose_precision(device_of(resources))


def slow_choices(config: object, where: str) -> list[str]:
    """Warnings about precisions that the user named and that are slow on the workers' device.

    ValueError for a precision that is impossible there.
    """
    resources = getattr(config, "resources", None)
    if resources is None or not holds_precision(config):
        return []
    return check_precision(config, device_of(resources), where)


def device_of(resources: Resources) -> Device:
    """The device of workers with these resources: a GPU if they have one, else their processor."""
    nodes = _alive_nodes()
    has_gpu = any(node["Resources"].get("GPU", 0) >= 1 for node in nodes)
    kind: Kind = "cuda" if (has_gpu if resources.gpus is None else resources.gpus > 0) else "cpu"
    if kind == "cpu" and all(node["NodeManagerHostname"] == socket.gethostname() for node in nodes):
        return measure_device("cpu")
    return _devices_of_session(kind, ray.get_runtime_context().get_job_id())[0]


@cache
def _devices_of_session(kind: Kind, session: str) -> Sequence[Device]:
    """One device per host, this host's first; `session` only makes the cache one per session.

    All workers compute in one precision, the choice for the first device. A warning names each host
    that is slow in it.
    """
    wanted = {"GPU": 1.0} if kind == "cuda" else {"CPU": 1.0}
    hosts = {
        node["NodeManagerHostname"]: node["NodeID"]
        for node in _alive_nodes()
        if all(node["Resources"].get(name, 0) >= count for name, count in wanted.items())
    }

    if not hosts:
        raise ValueError(
            f"no node of this Ray session has a {next(iter(wanted))}, which resources ask for: "
            "lower resources.gpus, or connect to a cluster that has one with RAY_ADDRESS"
        )

    names = sorted(hosts, key=lambda host: (host != socket.gethostname(), host))

    # A task per node that takes no CPU, so that it also runs on a node whose CPUs are taken. It
    # takes a small share of a GPU, or Ray would hide all GPUs from it.
    tasks = [
        ray.remote(measure_device)
        .options(
            num_cpus=0,
            num_gpus=0.01 if kind == "cuda" else 0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(hosts[name], soft=False),
        )
        .remote(kind)
        for name in names
    ]
    devices = ray.get(tasks)

    choice = choose_precision(devices[0])

    for name, device in zip(names, devices, strict=True):
        if choice.value == "bfloat16" and not device.is_fast_in_bfloat16:
            logger.warning(
                "node %s (%s) is slow in bfloat16, which all workers use because %s is fast in it; "
                "set float32, or leave the node out",
                name,
                device.name,
                names[0],
            )

    return devices


def _alive_nodes() -> list[dict]:
    return [node for node in ray.nodes() if node["Alive"]] if ray.is_initialized() else []
