"""A recipe as one job of a Ray cluster, which must see the workspace; and what became of it.

The job's address and id are kept in the workspace, beside the recipe that it runs.
"""

import json
import shlex
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from cluster import ray_jobs
from cluster.endings import DONE
from cluster.files import write_atomic
from cluster.progress import PROGRESS_FILE, PROGRESS_VARIABLE
from pipeline.advice import again
from pipeline.recipe_file import dump_recipe
from pipeline.recipes import Recipe
from pipeline.record import Record
from pipeline.runner import pending
from pipeline.step import Step, in_order
from pipeline.store import Store
from pipeline.submission import (
    JOBS,
    SubmittedJob,
    latest_jobs,
    refuse_twice,
    submission_folder,
)

RAY_JOB = "ray_job.json"
TAIL_S = 2.0


@dataclass(frozen=True)
class RayJob:
    """A job of a Ray cluster as the workspace remembers it."""

    id: str
    name: str
    address: str
    steps: dict[str, str]
    """Fingerprints by label."""
    submitted: str
    folder: Path


def submit_to_ray(
    steps: Sequence[Step], recipe: Recipe, options: Namespace, console: Console
) -> int:
    """Submit what is not done as one job; with --dry-run, print its command instead."""
    store = Store(options.workspace)
    todo = pending(steps, store, options.force, options.only)
    if not todo:
        console.print("nothing to submit: every step is done")
        return DONE

    folder = submission_folder(store, recipe)
    file = folder / "recipe.yaml"
    command = ["python", "-m", "pipeline", "run", str(file), "--workspace", str(store.workspace)]
    for flag, labels in (("--only", options.only), ("--force", options.force)):
        command += [flag, *labels] if labels else []
    if options.dry_run:
        print(f"# one Ray job at {options.cluster}: {', '.join(step.label for step in todo)}")
        print(shlex.join(command))
        return DONE

    refuse_twice(todo, store)
    refuse_twice_on_ray(todo, store)
    store.make_folder(folder)
    write_atomic(file, dump_recipe(recipe))
    variables = {PROGRESS_VARIABLE: str(folder / PROGRESS_FILE)}
    number = ray_jobs.submit(options.cluster, command, recipe.name, variables)

    prints = {step.label: step.fingerprint for step in todo}
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    job = RayJob(number, recipe.name, options.cluster, prints, now, folder)

    # Without the folder, which the file's own place says: a workspace may be moved.
    facts = {name: value for name, value in asdict(job).items() if name != "folder"}
    write_atomic(folder / RAY_JOB, json.dumps(facts, indent=1))
    console.print(
        f"Ray job [b]{number}[/b]  {escape(', '.join(prints))}\n"
        f"`{escape(again(options, 'logs', todo[0].label, '--follow'))}` shows its output, "
        f"`{escape(again(options, 'cancel'))}` ends it",
        soft_wrap=True,
    )
    return DONE


def refuse_twice_on_ray(todo: Sequence[Step], store: Store) -> None:
    """ValueError for an output that a Ray job is still making."""
    latest = latest_ray_jobs(store)
    jobs = {step.label: latest[step.fingerprint] for step in todo if step.fingerprint in latest}
    states = ray_jobs.job_states([(job.address, job.id) for job in jobs.values()])
    for label, job in jobs.items():
        state = states[job.address, job.id]
        if state.is_active:
            raise ValueError(
                f"step {label} is in Ray job {job.id}, which is {state.state}: a step runs once; "
                "wait for the job, or `cancel` it first"
            )


def latest_ray_jobs(store: Store) -> dict[str, RayJob]:
    """The Ray job that last had to make an output, by the output's fingerprint."""
    # Folders sort by their time: a later job takes the place of an earlier one.
    latest = dict[str, RayJob]()
    for file in sorted((store.workspace / JOBS).glob(f"*/{RAY_JOB}")):
        job = RayJob(**json.loads(file.read_text()), folder=file.parent)
        latest |= dict.fromkeys(job.steps.values(), job)
    return latest


def last_jobs(store: Store) -> dict[str, SubmittedJob | RayJob]:
    """The job of either kind that last had to make an output, by the output's fingerprint."""
    jobs: dict[str, SubmittedJob | RayJob] = dict(latest_jobs(store))
    for fingerprint, job in latest_ray_jobs(store).items():
        other = jobs.get(fingerprint)

        # Folders of submissions begin with their time.
        if other is None or other.folder.parent.name < job.folder.name:
            jobs[fingerprint] = job

    return jobs


def has_made(job: RayJob, record: Record | None) -> bool:
    """Whether an output was finished after its job was submitted: one that is made again has an
    older record until then.
    """
    if record is None:
        return False
    return datetime.fromisoformat(record.finished) >= datetime.fromisoformat(job.submitted)


def print_ray_log(job: RayJob, follow: bool) -> None:
    """Print the log of a job; with `follow`, until the job has ended."""
    printed = 0
    while True:
        state = ray_jobs.job_states([(job.address, job.id)])[job.address, job.id]
        is_over = not follow or not state.is_active  # asked first: the last lines are read
        text = ray_jobs.log(job.address, job.id)
        print(text[printed:], end="", flush=True)
        printed = len(text)
        if is_over:
            return
        time.sleep(TAIL_S)


def cancel_on_ray(steps: Sequence[Step], store: Store, console: Console) -> int:
    """End the Ray jobs of the steps of a recipe, and return their number. ValueError where a head
    does not answer.
    """
    latest = latest_ray_jobs(store)
    jobs = {
        (job.address, job.id): job
        for step in in_order(steps)
        if (job := latest.get(step.fingerprint)) and not has_made(job, store.record(step))
    }
    active = 0

    for (address, number), state in ray_jobs.job_states(list(jobs)).items():
        if state.state == ray_jobs.UNREACHABLE:
            raise ValueError(ray_jobs.unreachable(address, state.message))
        if state.is_active:
            ray_jobs.stop(address, number)
            active += 1
            labels = ", ".join(jobs[address, number].steps)
            console.print(f"stopped Ray job {number}: {escape(labels)}", soft_wrap=True)

    return active


def is_ray_address(cluster: str | None) -> bool:
    """Whether `--cluster` names the Jobs API of a Ray cluster instead of a site file."""
    return (cluster or "").startswith(("http://", "https://"))
