"""The resources of a step: its workers, and what each of them needs.

Resources are machine facts: they decide how fast a step runs, never what it computes, so that no
fingerprint contains them. cluster/placement.py turns them into numbers for the running Ray cluster,
cluster/jobs.py into a SLURM job.
"""

import math
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from cluster.ranges import check_ranges

BYTES_PER_GB = 1024**3
OBJECT_STORE_SHARE = (
    0.1  # of a node's memory; only what actors exchange goes there, embeddings are memory-mapped
)


@dataclass(frozen=True)
class Resources:
    """The resources that a step asks for, per worker, and for a SLURM job as a whole."""

    workers: Annotated[int, Ge(0)] = 0
    """Processes that share the work; 0: as many as the cluster has room for."""
    min_workers: Annotated[int, Ge(0)] = 0
    """Elastic training: after a node is lost, continue with as few as this many workers, and with
    at most `workers`; 0: always `workers`.
    """
    cpus: Annotated[float | None, Ge(0)] = None
    """CPU cores per worker, and its number of BLAS threads; unset: 1, or with GPUs, its share of
    the node's cores.
    """
    gpus: Annotated[float | None, Ge(0)] = None
    """GPUs per worker; unset: 1 if the cluster has GPUs, otherwise 0. Set it for a SLURM partition
    with GPUs.
    """
    memory_gb: Annotated[float | None, Ge(0)] = None
    """Memory reserved per worker, in GiB; unset: none is reserved. A SLURM job asks for this and for
    the memory of the driver and of Ray.
    """

    def __post_init__(self) -> None:
        check_ranges(self, "resources")
        if self.min_workers > self.workers:
            raise ValueError(
                f"resources.min_workers is {self.min_workers}: must be at most resources.workers, "
                f"{self.workers}; set both"
            )

    @property
    def threads(self) -> int:
        """BLAS and OpenMP threads of one worker."""
        return max(1, math.floor(self.cpus or 1))

    def per_worker(self) -> str:
        """What one worker asks for, in words: 2 CPU, 1 GPU, 4 GiB; no memory where none is asked."""
        parts = [f"{self.cpus or 0:g} CPU", f"{self.gpus or 0:g} GPU"]
        if self.memory_gb:
            parts.append(f"{self.memory_gb:g} GiB")
        return ", ".join(parts)

    def actor_options(self) -> dict[str, float]:
        """Keyword arguments for the `.options()` of a Ray actor or task."""
        if self.gpus is None or self.cpus is None:
            raise ValueError(
                "resources.gpus or cpus is unset: Ray needs numbers; call placement.resolve() first"
            )
        options: dict[str, float] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        if self.memory_gb is not None:
            options["memory"] = math.ceil(self.memory_gb * BYTES_PER_GB)
        return options
