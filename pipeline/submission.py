"""A recipe as jobs of a cluster: one per step, each with what its step needs, behind those it reads
from.

What is done gets no job. A step without resources of its own (tokenizer, report) runs in the job of
the step before it where that holds no GPUs, and the images of all evaluation sets are one job. Every
submission has a folder in the workspace: its recipe, its jobs and their logs.
"""

import json
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from cluster.accounting import job_states
from cluster.endings import DONE
from cluster.files import write_atomic
from cluster.jobs import Ask, Job, ask_of, largest
from cluster.limits import asked_partitions, check_limits, check_time, smallest
from cluster.resources import Resources
from cluster.site import JobConfig, SiteConfig
from curation.config import CurateConfig, EmbedConfig
from evaluate.config import EvaluateConfig, ImagesConfig
from pipeline.recipe_file import dump_recipe, load_config, read_file
from pipeline.recipes import Recipe
from pipeline.runner import pending
from pipeline.step import Step, in_order
from pipeline.store import Store
from train.config import TrainConfig

JOBS = "jobs"
SUBMISSION = "submission.json"
LIGHT = Resources(workers=1, gpus=0.0)
"""Of a step that has no resources of its own: it runs in the driver."""


@dataclass(frozen=True)
class Group:
    """Steps that share a job."""

    name: str
    steps: tuple[Step, ...]
    ask: Ask
    site: JobConfig


@dataclass(frozen=True)
class SubmittedJob:
    """A job as the workspace remembers it."""

    id: str
    name: str
    steps: dict[str, str]
    """Fingerprints by label."""
    after: list[str]
    """Names of the jobs that it waits for."""
    ask: Ask
    folder: Path
    submitted: str


def read_site(name: str | None) -> SiteConfig:
    """The site file, or a site of which nothing is said."""
    if name is None:
        return SiteConfig()
    template = "cluster template"
    return load_config(SiteConfig, read_file(name, template), name, template)


def resources_of(step: Step) -> tuple[Resources, str]:
    """What the workers of a step need, and the flag that says so."""
    match step.config:
        case EmbedConfig(resources=resources):
            return resources, "embed"
        case ImagesConfig(embed=EmbedConfig(resources=resources)):
            return resources, "embed"
        case CurateConfig(resources=resources):
            return resources, "curate"
        case TrainConfig(resources=resources):
            return resources, "train"
        case EvaluateConfig(resources=resources):
            return resources, "evaluate"
    return LIGHT, ""


def group_steps(todo: Sequence[Step], site: SiteConfig) -> list[Group]:
    """The jobs of these steps, in the order in which they can be submitted."""
    groups = list[Group]()
    for step in todo:
        last = groups[-1] if groups else None
        if last and _joins(step, last, site):
            images = last.steps[0].name == step.name
            name = step.name if images else last.name
            groups[-1] = replace(last, name=name, steps=(*last.steps, step))
        else:
            job = site.job(step.name)
            groups.append(Group(step.label, (step,), step_ask(step, job), job))
    return groups


def _joins(step: Step, group: Group, site: SiteConfig) -> bool:
    """Whether a step runs in the job of the steps before it."""
    if step.name == "images":
        return group.steps[0].name == "images"
    has_gpus = group.ask.gpus > 0 or "gpu" in (group.site.gres or "")
    is_described = getattr(site, step.name) != JobConfig()
    return resources_of(step)[0] is LIGHT and not has_gpus and not is_described


def one_group(todo: Sequence[Step], site: SiteConfig, name: str) -> list[Group]:
    """All steps in one allocation with room for each, on what the site says of training."""
    job = site.job("train")
    asks = [step_ask(step, job) for step in todo]
    return [Group(name, tuple(todo), largest(asks), job)] if todo else []


def step_ask(step: Step, site: JobConfig) -> Ask:
    """What the job of a step asks for. ValueError when the site names less than the step needs, or a
    partition that SLURM does not list.
    """
    return ask_of(resources_of(step)[0], site, smallest(asked_partitions(site)), step.label)


def planned_groups(todo: Sequence[Step], recipe: Recipe, options: Namespace) -> list[Group]:
    """The jobs that `submit` makes of these steps: one per step, or with --one-job, one for all."""
    site = read_site(options.cluster)
    return one_group(todo, site, recipe.name) if options.one_job else group_steps(todo, site)


def refusals(group: Group) -> list[str]:
    """Why SLURM would leave the job pending for ever, or would run it without GPUs; empty where
    nothing is known against it.
    """
    partitions = asked_partitions(group.site)
    node = smallest(partitions)
    reasons = list[str]()

    # LIGHT steps name 0 GPUs, so that this concerns steps with resources of their own.
    flags = dict.fromkeys(
        flag for step in group.steps for need, flag in [resources_of(step)] if need.gpus is None
    )
    if node.gpus and "gpu" not in (group.site.gres or ""):
        reasons += [
            f"{flag}.resources.gpus is unset, and partition {partitions[0].name} has nodes with "
            f"{node.gpus} GPUs: a job has only those it asks for; say --{flag}.resources.gpus 1 for "
            "one per worker, or 0 to work on CPUs"
            for flag in flags
        ]

    for check in (
        partial(check_time, group.ask, partitions, group.name),
        partial(check_limits, group.ask, group.site, partitions, group.name),
    ):
        try:
            check()
        except ValueError as error:
            reasons.append(str(error))

    return reasons


def submit(steps: Sequence[Step], recipe: Recipe, options: Namespace, console: Console) -> int:
    """Submit what is not done; with --dry-run, print the scripts instead."""
    store = Store(options.workspace)
    todo = pending(steps, store, options.force, options.only)
    if not todo:
        console.print("nothing to submit: every step is done")
        return DONE

    groups = planned_groups(todo, recipe, options)
    for group in groups:
        if reasons := refusals(group):
            raise ValueError("\n".join(reasons))

    folder = submission_folder(store, recipe)
    jobs = [job_of(group, folder, store, options.verbose) for group in groups]

    from cluster import slurm  # with submitit, which other verbs need not wait for

    if options.dry_run:
        for job, group in zip(jobs, groups, strict=True):
            waits = jobs_before(group, groups)
            title = f"# job {job.name}: {', '.join(step.label for step in group.steps)}"
            print(title + (f"; starts after {', '.join(waits)} has succeeded" if waits else ""))
            print(slurm.script(replace(job, after=tuple(f"<id of {name}>" for name in waits))))
        return DONE

    refuse_twice(todo, store)
    for job in jobs:
        slurm.check(job)

    store.make_folder(folder)
    write_atomic(folder / "recipe.yaml", dump_recipe(recipe))
    submitted = list[SubmittedJob]()
    for job, group in zip(jobs, groups, strict=True):
        waits = jobs_before(group, groups)
        ids = tuple(other.id for other in submitted if other.name in waits)
        try:
            number = slurm.submit(replace(job, after=ids))
        except BaseException:
            if submitted:  # half a graph is of no use
                slurm.cancel([other.id for other in submitted])
            raise
        prints = {step.label: step.fingerprint for step in group.steps}
        submitted.append(SubmittedJob(number, job.name, prints, waits, job.ask, job.folder, _now()))
        _write(folder, recipe.name, submitted)
        labels = ", ".join(prints)
        behind = f", after {', '.join(ids)}" if ids else ""
        console.print(f"job [b]{number}[/b]  {escape(labels)}: {job.ask}{behind}", soft_wrap=True)

    console.print(f"logs, and everything about these jobs: {escape(str(folder))}", soft_wrap=True)
    return DONE


def submission_folder(store: Store, recipe: Recipe) -> Path:
    """Where a submission of this second keeps its recipe, its jobs and their logs."""
    return store.workspace / JOBS / f"{time.strftime('%Y%m%d-%H%M%S')}-{recipe.name}"


def job_of(group: Group, folder: Path, store: Store, verbose: bool) -> Job:
    """The SLURM job of a group of steps."""
    labels = [step.label for step in group.steps]
    forced = [step.label for step in group.steps if store.record(step)]
    command = [
        group.site.python or sys.executable,
        *("-m", "pipeline", "run", str(folder / "recipe.yaml")),
        *("--workspace", str(store.workspace), "--exactly", *labels),
        *(["--force", *forced] if forced else []),
        *(["--verbose"] if verbose else []),
    ]
    return Job(group.name, tuple(command), group.ask, group.site, folder / group.name)


def jobs_before(group: Group, groups: Sequence[Group]) -> list[str]:
    """Names of the jobs whose steps this one reads from."""
    needs = {need.label for step in group.steps for need in step.upstream()}
    return [
        other.name
        for other in groups
        if other is not group and needs & {step.label for step in other.steps}
    ]


def refuse_twice(todo: Sequence[Step], store: Store) -> None:
    """ValueError for an output that an earlier job is still making."""
    latest = latest_jobs(store)
    states = job_states([job.id for job in latest.values()])
    for step in todo:
        job = latest.get(step.fingerprint)
        if job and job.id in states and states[job.id].is_active:
            raise ValueError(
                f"step {step.label} is in job {job.id}, which is {states[job.id].state}: a step "
                "runs once; wait for the job, or `cancel` it first"
            )


def _write(folder: Path, recipe: str, jobs: Sequence[SubmittedJob]) -> None:
    rows = [{**asdict(job), "folder": str(job.folder.relative_to(folder))} for job in jobs]
    write_atomic(folder / SUBMISSION, json.dumps({"recipe": recipe, "jobs": rows}, indent=1))


def latest_jobs(store: Store) -> dict[str, SubmittedJob]:
    """The job that last had to make an output, by the output's fingerprint."""
    latest = dict[str, SubmittedJob]()
    for file in sorted((store.workspace / JOBS).glob(f"*/{SUBMISSION}")):
        for row in json.loads(file.read_text())["jobs"]:
            folder = file.parent / row["folder"]
            job = SubmittedJob(**{**row, "ask": Ask(**row["ask"]), "folder": folder})
            latest |= dict.fromkeys(job.steps.values(), job)
    return latest


def cancel(steps: Sequence[Step], store: Store, console: Console) -> int:
    """End the SLURM jobs that have not ended, of the steps of a recipe, and return their number."""
    latest = latest_jobs(store)
    jobs = {job.id: job for step in in_order(steps) if (job := latest.get(step.fingerprint))}
    states = job_states(list(jobs))
    active = [job for job in jobs if job in states and states[job].is_active]
    if not active:
        return 0

    from cluster import slurm  # with submitit

    slurm.cancel(active)
    for number in active:
        console.print(f"cancelled job {number}: {', '.join(jobs[number].steps)}")
    return len(active)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
