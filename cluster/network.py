"""The network that training needs, tried: an all-reduce over all GPUs of a Ray cluster, or over its
nodes where it has none. `python -m cluster.network FILE` writes what came of it as JSON.

The processes meet as those of Ray Train do: on the address of the first one's node, by NCCL with
GPUs and by gloo without.
"""

import json
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import ray
import torch
import torch.distributed as dist
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.files import write_atomic
from cluster.session import free_port, session

NUM_BYTES = 64 * 1024**2  # a bucket of gradients
BYTES_PER_VALUE = 4
REPEATS = 5
MEET_S = 60  # in which the processes must find each other, and end an all-reduce
PATIENCE_S = 150.0


def measure() -> dict:
    """Processes, nodes, backend and bytes of an all-reduce; its seconds and rate, or the error."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    gpus = [int(node["Resources"].get("GPU", 0)) for node in nodes]
    backend = "nccl" if any(gpus) else "gloo"

    # One process per GPU, the processes of a node in a row; without GPUs one per node.
    counts = gpus if backend == "nccl" else [1] * len(nodes)
    places = [
        node["NodeID"] for node, count in zip(nodes, counts, strict=True) for _ in range(count)
    ]
    facts = {
        "backend": backend,
        "processes": len(places),
        "nodes": len(set(places)),
        "bytes": NUM_BYTES,
    }

    try:
        address = ray.get(_on(places[0], _free_address, 0), timeout=PATIENCE_S)
        calls = [
            _on(place, _seconds_of, int(backend == "nccl"), backend, address, rank, len(places))
            for rank, place in enumerate(places)
        ]
        seconds = max(ray.get(calls, timeout=PATIENCE_S))
        rate = bus_bandwidth(NUM_BYTES, len(places), seconds)
        return {**facts, "seconds": seconds, "bytes_per_s": rate}
    except GetTimeoutError:
        return {**facts, "error": f"no end within {PATIENCE_S:.0f} s"}
    except RayTaskError as error:
        return {**facts, "error": " ".join(f"{type(error.cause).__name__}: {error.cause}".split())}
    except RayError as error:
        return {**facts, "error": " ".join(f"{type(error).__name__}: {error}".split())}


def _on(node: str, function: Callable, gpus: int, *args: object) -> ray.ObjectRef:
    """Call a function on a node, in a process of its own that takes no CPU."""
    placed = ray.remote(max_calls=1, max_retries=0)(function).options(
        num_cpus=0,
        num_gpus=gpus,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
    )
    return placed.remote(*args)


def _free_address() -> str:
    """Where the processes meet, on the node of the first one."""
    return f"{ray.util.get_node_ip_address()}:{free_port()}"


def _seconds_of(backend: str, address: str, rank: int, size: int) -> float:
    """Seconds of one all-reduce, the mean of several, as one of the processes measures it.

    RuntimeError when the processes do not find each other in time, or the sum is wrong.
    """
    patience = timedelta(seconds=MEET_S)
    dist.init_process_group(backend, f"tcp://{address}", patience, size, rank)
    device = torch.device("cuda" if backend == "nccl" else "cpu")

    try:
        values = torch.ones(NUM_BYTES // BYTES_PER_VALUE, device=device)
        dist.all_reduce(values)  # the first one makes the connections
        if not bool((values == size).all()):
            raise RuntimeError(f"the sum of {size} ones is {values.max().item():g}")

        start_s = time.perf_counter()
        for _ in range(REPEATS):
            values.fill_(1.0)
            dist.all_reduce(values)
        values.sum().item()  # waits for the GPU
        return (time.perf_counter() - start_s) / REPEATS
    finally:
        dist.destroy_process_group()


def bus_bandwidth(num_bytes: int, processes: int, seconds: float) -> float:
    """Bytes per second through the connection of each process, whatever their number.

    Each of n processes must send 2 (n - 1) / n of the data, and receive as much: 64 MB over 4
    processes in 1 s are 96 MB/s. nccl-tests calls it busbw.
    """
    return 2 * (processes - 1) / processes * num_bytes / seconds


if __name__ == "__main__":
    with session():
        write_atomic(Path(sys.argv[1]), json.dumps(measure()))
