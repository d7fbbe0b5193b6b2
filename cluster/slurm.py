"""Jobs for SLURM: their sbatch scripts, tested and submitted through submitit.

A job starts Ray on its nodes, runs one command as Ray's driver, and is requeued under the same id
when it is preempted, runs into its time limit or loses a node. Nothing that a user writes is
expanded by sbatch or evaluated by a shell, but for the set-up lines of the site, which are shell.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError
from submitit.helpers import DelayedSubmission
from submitit.slurm.slurm import _make_sbatch_string

from cluster.jobs import Job
from cluster.progress import PROGRESS_FILE, PROGRESS_VARIABLE
from cluster.site import JobConfig

ROOT = Path(__file__).resolve().parent.parent
MOST_REQUEUES = (
    100  # a job that reaches none of its checkpoints within its time limit must end at some point
)
WARNING_S = 60  # between the signal and the end of the time limit
OPEN_FILES = 65_536

# What an interactive allocation, another launcher or a login node sets for its own processes.
LEAKS = ("SLURM_", "SLURMD_", "SRUN_", "PMI_", "PMIX_", "RAY_", "SUBMITIT_", "TORCHELASTIC_")
LEAKED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES")
SETTINGS = ("SLURM_CONF", "SLURM_CLUSTERS", "RAY_USAGE_STATS_ENABLED")


def script(job: Job) -> str:
    """What sbatch is given. The log of each start of the job is a file of its own; what SLURM itself
    says goes to `*_log.out`.
    """
    command = f"{_python(job.site)} -u -m submitit.core._submit {shlex.quote(str(job.folder))}"
    return _make_sbatch_string(command=command, folder=job.folder, **_parameters(job))


def _python(site: JobConfig) -> str:
    """The command line of Python in the batch script.

    `exec`: the batch shell becomes the job's Python, so that the signal for the batch shell reaches
    it.
    """
    inside = inside_container(site)
    if site.container and site.container.program == "pyxis":
        inside = ("srun", "--overlap", "--nodes=1", "--ntasks=1", *inside)
    return f"exec {shlex.join([*inside, site.python or sys.executable])}"


def inside_container(site: JobConfig) -> tuple[str, ...]:
    """The words that stand before Python, behind those of srun where it is called."""
    container = site.container
    if container is None:
        return ()
    if container.program == "pyxis":
        mounts = [
            ":".join([mount] * 2) if ":" not in mount else mount for mount in container.mounts
        ]
        options = [f"--container-image={container.image}"]
        return (*options, *([f"--container-mounts={','.join(mounts)}"] if mounts else []))
    binds = [word for mount in container.mounts for word in ("--bind", mount)]
    return ("apptainer", "exec", "--nv", *binds, container.image)


def _parameters(job: Job) -> dict[str, Any]:
    """The job in submitit's words."""
    site = job.site
    ask = job.ask
    parameters: dict[str, Any] = {
        "job_name": job.name,
        "nodes": ask.nodes,
        "ntasks_per_node": 1,
        "time": ask.time_min,
        "use_srun": False,
        "stderr_to_stdout": True,
        "setup": _setup(job),
        "wckey": site.wckey,  # submitit sends one of its own otherwise
        "additional_parameters": _further(job),
    }
    named = (
        "partition",
        "account",
        "qos",
        "constraint",
        "gres",
        "exclude",
        "mail_user",
        "mail_type",
    )
    parameters |= {name: getattr(site, name) for name in named}

    if ask.cpus == 0:
        parameters["exclusive"] = True
    else:
        parameters["cpus_per_task"] = ask.cpus

    # 0 asks for all memory of the node, with any number of its cores
    parameters["mem"] = f"{ask.memory_mb}M" if ask.memory_mb else "0"
    has_gpus = "gpu" in (site.gres or "")
    parameters["gpus_per_node"] = ask.gpus if ask.gpus and not has_gpus else None
    if job.after:
        parameters["dependency"] = f"afterok:{':'.join(job.after)}"

    return parameters


def _further(job: Job) -> dict[str, str | bool]:
    """Options that submitit has no name for."""
    options: dict[str, str | bool] = {
        "signal": f"B:USR2@{WARNING_S}",
        "requeue": True,
        "propagate": "NONE",  # the limits of the login node's shell stay there
    }
    if job.site.reservation:
        options["reservation"] = job.site.reservation
    if job.after:
        options["kill-on-invalid-dep"] = "yes"  # else a job behind a failed one pends for ever

    for option in job.site.sbatch or ():
        name, equals, value = option.removeprefix("--").partition("=")
        options[name] = value if equals else True

    return options


def _setup(job: Job) -> list[str]:
    """The lines of shell before Python: a log per start, limits, variables, the site's own."""
    folder = shlex.quote(str(job.folder))
    variables = {"PYTHONPATH": str(ROOT), PROGRESS_VARIABLE: str(job.folder / PROGRESS_FILE)}
    exports = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    return [
        f'exec >>{folder}/"$SLURM_JOB_ID.${{SLURM_RESTART_COUNT:-0}}.log" 2>&1',
        f'ulimit -Sn {OPEN_FILES} 2>/dev/null || ulimit -Sn "$(ulimit -Hn)"',
        f"export {exports[0]}${{PYTHONPATH:+:$PYTHONPATH}} {exports[1]}",
        "export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token "
        "RAY_AUTH_TOKEN=$(od -An -vtx1 -N32 /dev/urandom | tr -d ' \\n')",
        *(job.site.setup or ()),
    ]


def check(job: Job) -> None:
    """Refuse what no node could ever run, without submitting it. ValueError says what SLURM says."""
    if "%" in str(job.folder):
        raise ValueError(
            f"the workspace lies in {job.folder}: SLURM expands % in the paths of its logs; choose a "
            "workspace without % in its path"
        )
    _require_sbatch()
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script(job))
        file.flush()
        with without_leaks():
            tested = subprocess.run(
                ["sbatch", "--test-only", file.name], capture_output=True, text=True
            )

    if tested.returncode != 0:
        raise ValueError(
            f"SLURM cannot run {job.name} on {job.ask}: it says {tested.stderr.strip()!r}; ask for "
            "what `sinfo -o '%P %D %c %m %G'` lists"
        )


def submit(job: Job) -> str:
    """Submit a job and return its id."""
    _require_sbatch()
    job.folder.mkdir(parents=True, exist_ok=True)
    executor = submitit.SlurmExecutor(
        job.folder, max_num_timeout=MOST_REQUEUES, python=_python(job.site)
    )
    executor.update_parameters(**_parameters(job))
    try:
        with without_leaks():
            return executor.submit(Driver(job.command, inside_container(job.site))).job_id
    except FailedJobError as error:
        raise ValueError(f"sbatch refuses {job.name}: {error}") from error


@dataclass
class Driver:
    """What submitit runs in the job: Ray on its nodes and the command as its driver.

    Ray is imported there and not where the job is submitted.
    """

    command: tuple[str, ...]
    container: tuple[str, ...] = ()
    job: Any = field(default=None, repr=False)

    def __call__(self) -> None:
        """Run the command, and exit as it does."""
        from cluster.allocation import RayJob

        self.job = RayJob(self.command, self.container)
        self.job()

    def checkpoint(self) -> DelayedSubmission:
        """Called when SLURM warns of the end: let the command save, then start again."""
        if self.job is not None:
            self.job.checkpoint()
        return DelayedSubmission(Driver(self.command, self.container))


@contextmanager
def without_leaks() -> Iterator[None]:
    """The environment of this process without what belongs to an allocation, a launcher or a Ray
    that it may run in: sbatch hands all of it to the job.
    """
    leaked = {
        name: value
        for name, value in os.environ.items()
        if (name.startswith(LEAKS) or name in LEAKED) and name not in SETTINGS
    }
    for name in leaked:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(leaked)


def _require_sbatch() -> None:
    if shutil.which("sbatch") is None:
        raise ValueError(
            "sbatch is not on PATH: SLURM jobs are submitted with it; log in to a node of "
            "the cluster"
        )


def cancel(jobs: Sequence[str]) -> None:
    """Ask SLURM to end jobs. ValueError says what it says."""
    _require_sbatch()
    done = subprocess.run(["scancel", *jobs], capture_output=True, text=True)
    if done.returncode != 0:
        raise ValueError(f"scancel {' '.join(jobs)} failed: {done.stderr.strip()}")
