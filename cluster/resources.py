"""What a step may ask for: the only spelling of Ray and SLURM options.

Resources are machine facts: they say how fast a step runs, never what it computes, so no
fingerprint holds them. They become numbers in cluster/placement.py, against the running Ray
cluster.
"""

import math
from dataclasses import dataclass

BYTES_PER_GB = 1024**3


@dataclass(frozen=True)
class Resources:
    workers: int = 0
    """Processes that share the work; 0: as many as the cluster has room for."""
    min_workers: int = 0
    """Fewest that training goes on with when a node is lost, `workers` being the most; 0: always
    `workers`.
    """
    cpus: float | None = None
    """CPU cores per worker, also the number of its BLAS threads; unset: 1, or with GPUs its share
    of the node's.
    """
    gpus: float | None = None
    """GPUs per worker; unset: 1 when the cluster has GPUs, otherwise 0. To be set for a SLURM
    partition with GPUs.
    """
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
                    f"resources.{field} is {value}: must be at least {least}; leave it out for "
                    "the default"
                )

        if self.min_workers > self.workers:
            raise ValueError(
                f"resources.min_workers is {self.min_workers}: must be at most resources.workers, "
                f"{self.workers}; set both"
            )

    @property
    def threads(self) -> int:
        """BLAS and OpenMP threads of one worker."""
        return max(1, math.floor(self.cpus or 1))

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
