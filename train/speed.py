"""How fast training has been since the last line of metrics, summed over all ranks.

Tokens, FLOP and cut captions are counted from the packed captions, not estimated from a mean. MFU
is the model's FLOP, without recomputation, over the dense bfloat16 peak of the GPUs; it is left out
when no peak is known.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch
import torch.distributed as dist

from train.flop import peak_tflops


class Speed:
    """Counts of one rank since the object was made."""

    def __init__(self) -> None:
        self.started_s = time.perf_counter()
        self.waited_s = 0.0
        self.num_pairs = 0
        self.num_tokens = 0
        self.num_truncated = 0
        self.flop = 0.0

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the time of the body as waiting for data."""
        started_s = time.perf_counter()
        yield
        self.waited_s += time.perf_counter() - started_s

    def add(self, num_pairs: int, num_tokens: int, num_truncated: int, flop: float) -> None:
        """Count one step of this rank."""
        self.num_pairs += num_pairs
        self.num_tokens += num_tokens
        self.num_truncated += num_truncated
        self.flop += flop

    def rates(self, device: torch.device) -> dict[str, float]:
        """Rates over all ranks, mean share of time spent waiting for data, largest memory in GB.

        All ranks must call it at the same step: it is a collective.
        """
        elapsed_s = max(1e-9, time.perf_counter() - self.started_s)

        # All counts in one sum over ranks, in float64: float32 counts exactly only up to 2**24.
        counts = [
            self.num_pairs,
            self.num_tokens,
            self.num_truncated,
            self.flop,
            self.waited_s / elapsed_s,
            elapsed_s,
        ]
        sums = torch.tensor(counts, dtype=torch.float64, device=device)
        most = torch.tensor(memory_bytes(device), dtype=torch.float64, device=device)
        dist.all_reduce(sums)
        dist.all_reduce(most, dist.ReduceOp.MAX)

        world = dist.get_world_size()
        num_pairs, num_tokens, num_truncated, flop, waits, elapsed = sums.tolist()
        mean_s = elapsed / world  # clocks of ranks differ a little
        tflops = flop / mean_s / 1e12
        peak = peak_tflops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None

        return {
            "pairs_per_s": num_pairs / mean_s,
            "tokens_per_s": num_tokens / mean_s,
            "model_tflop_per_s": tflops,
            **({"mfu": tflops / (peak * world)} if peak else {}),
            "data_wait": waits / world,
            "memory_gb": float(most) / 1e9,
            "captions_cut": num_truncated,
        }


def memory_bytes(device: torch.device) -> float:
    """Peak memory allocated on a GPU so far; on a CPU, the resident memory of the process now."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return float(psutil.Process().memory_info().rss)
