"""A SLURM cluster, described once: what jobs ask of it, for all steps and per step.

The description is a YAML file, read as strictly as a recipe. What a step leaves unset is taken from
`default`, and what `default` leaves unset is left to SLURM.
"""

import re
from dataclasses import dataclass, fields, replace
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from cluster.ranges import check_ranges

TIME_MIN = 60


@dataclass(frozen=True)
class ContainerConfig:
    """An image with the project's environment, and the program that starts it."""

    program: Literal["pyxis", "apptainer"]
    """pyxis adds options to srun; apptainer is called on the node."""
    image: str
    """The image, as the program names it."""
    mounts: tuple[str, ...] = ()
    """Folders that the container sees, as `/outside:/inside` or `/both`; the workspace and this
    repository must be among them.
    """


@dataclass(frozen=True)
class JobConfig:
    """What a job asks of SLURM beside what the workers of its step need."""

    partition: str | None = None
    """Partition; of several, with commas, the first one with room runs the job."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that nodes must have, such as `a100&infiniband`."""
    gres: str | None = None
    """Generic resources per node, such as `gpu:a100:8`; GPUs in it take the place of those counted
    from the workers.
    """
    exclude: str | None = None
    """Nodes not to run on, such as `node[17,23-25]`."""
    reservation: str | None = None
    """Reservation to run in."""
    nodes: Annotated[int | None, Ge(1)] = None
    """Nodes; unset: 1."""
    cpus: Annotated[int | None, Ge(1)] = None
    """CPU cores per node; unset: those of the step's workers, or all where their number is 0."""
    memory_gb: Annotated[float | None, Gt(0)] = None
    """Memory per node, GiB; unset: that of the workers and what the driver and Ray take besides."""
    time_min: Annotated[int | None, Ge(1)] = None
    """Time limit, minutes; a job that reaches it is requeued and continues; unset: 60."""
    wckey: str | None = None
    """Workload characterization key, where the site asks for one."""
    mail_user: str | None = None
    """Address that SLURM writes to."""
    mail_type: str | None = None
    """Events that it writes about, such as `END,FAIL`."""
    python: str | None = None
    """Python of the jobs, with the project's packages; unset: the one that submits."""
    container: ContainerConfig | None = None
    """Container of everything in the job, such as {program: apptainer, image: /images/dinotxt.sif,
    mounts: [/data]}; unset: none.
    """
    setup: tuple[str, ...] | None = None
    """Lines of shell before Python starts: modules, proxies, NCCL_SOCKET_IFNAME."""
    sbatch: tuple[str, ...] | None = None
    """Further options of sbatch, such as `--switches=1`."""

    def __post_init__(self) -> None:
        check_ranges(self, "site")
        for item in fields(self):
            value = getattr(self, item.name)
            lines = (
                (value,) if isinstance(value, str) else value if isinstance(value, tuple) else ()
            )
            for line in lines:
                _check_line(item.name, line)

        for option in self.sbatch or ():
            if not re.match(r"--[a-z]", option):
                raise ValueError(
                    f"sbatch has {option!r}: each entry is one option of sbatch and begins with "
                    "two hyphens, such as --switches=1; correct it"
                )


def _check_line(name: str, line: str) -> None:
    if not line.strip() or "\n" in line:
        raise ValueError(
            f"{name} is {line!r}: one line of text is required, not an empty one; correct it, or "
            "leave it out"
        )


@dataclass(frozen=True)
class SiteConfig:
    """What the jobs of all steps ask for, and those of one step otherwise."""

    default: JobConfig = JobConfig()
    """Of every job."""
    pool: JobConfig = JobConfig()
    """Of the step that makes the pool of the quickstart."""
    embed: JobConfig = JobConfig()
    """Of embedding the pairs."""
    images: JobConfig = JobConfig()
    """Of embedding the images of evaluation sets, which curation compares the pairs with."""
    curate: JobConfig = JobConfig()
    """Of clustering and selecting."""
    tokenizer: JobConfig = JobConfig()
    """Of the tokenizer."""
    train: JobConfig = JobConfig()
    """Of training, and of a whole recipe as one job."""
    evaluate: JobConfig = JobConfig()
    """Of evaluation."""
    report: JobConfig = JobConfig()
    """Of the report."""

    def job(self, step: str) -> JobConfig:
        """What jobs of a step ask for, by the step's name."""
        own = getattr(self, step)
        unset = {
            item.name: getattr(self.default, item.name)
            for item in fields(own)
            if getattr(own, item.name) is None
        }
        return replace(own, **unset)
