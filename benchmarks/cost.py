"""What a pass costs where it runs: CPU seconds and resident memory, or a GPU's seconds and
allocated memory.
"""

import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

UNITS = {"cpu": "cpu-s", "cuda": "gpu-s"}
T = TypeVar("T")


class Cost(NamedTuple):
    """Time of the quickest pass, memory of all."""

    seconds: float
    """CPU seconds, or seconds until a GPU is done."""
    wall_s: float
    peak_mb: float
    """By how much the passes raised the peak memory of this process, or of the GPU, in MB."""


def alone(function: Callable[..., T], *arguments: object) -> T:
    """The function's result from a process of its own. BrokenProcessPool if that process dies."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def cost_of(run: Callable[[], object], repeats: int, device: torch.device) -> Cost:
    """Run it so many times; on a GPU once more before, which is not timed."""
    is_gpu = device.type == "cuda"
    before = peak_mb(device)
    if is_gpu:
        run()

    clock = time.perf_counter if is_gpu else time.process_time
    timed = []
    for _ in range(repeats):
        wall = time.perf_counter()
        started = clock()
        run()
        if is_gpu:
            torch.cuda.synchronize(device)
        timed.append((clock() - started, time.perf_counter() - wall))

    return Cost(*min(timed), peak_mb(device) - before)


def peak_mb(device: torch.device) -> float:
    """The peak so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def device_name(device: torch.device) -> str:
    """The GPU as its maker calls it, or the processor with the vector instructions that torch
    uses.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'processor'} ({torch.backends.cpu.get_cpu_capability()})"
