"""A recipe as the SLURM jobs that `submit` would make of it: what each asks for, and all together.

Nothing is submitted. Limits are compared where SLURM answers; without SLURM the jobs are the same,
but what the site leaves to SLURM (cores of whole nodes, memory) is not known.
"""

from argparse import Namespace
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.limits import asked_partitions, named_gpus, smallest, unanswered
from cluster.words import counted, number
from pipeline.recipes import Recipe
from pipeline.runner import pending
from pipeline.step import Step
from pipeline.store import Store
from pipeline.submission import (
    Group,
    job_of,
    jobs_before,
    planned_groups,
    refusals,
    submission_folder,
)


def print_jobs(
    steps: Sequence[Step], recipe: Recipe, options: Namespace, console: Console
) -> list[str]:
    """Print the jobs of the steps that are not done, and the hours they ask for; returns why
    `submit` would refuse them.
    """
    store = Store(options.workspace)
    todo = pending(steps, store, options.force, options.only)
    if not todo:
        console.print("\nno SLURM job: every step is done")
        return []

    groups = planned_groups(todo, recipe, options)
    console.print(_jobs_table(groups))
    console.print(_total(groups), soft_wrap=True)

    problems = [problem for group in groups for problem in refusals(group)]
    silent = unanswered()
    if "sinfo" not in silent:
        problems += _refused_by_sbatch(groups, recipe, store)
    for problem in problems:
        console.print(f"[red]submit would refuse:[/red] {escape(problem)}", soft_wrap=True)

    if silent:
        console.print(
            f"[yellow]limits were not checked:[/yellow] {' and '.join(silent)} "
            f"{'does' if len(silent) == 1 else 'do'} not answer here; plan on a node of the cluster",
            soft_wrap=True,
        )
    elif not problems:
        console.print("no limit of a partition, QOS or account is in the way")

    return problems


def _jobs_table(groups: Sequence[Group]) -> Table:
    """One row per job; SLURM's default stands where the site file names nothing."""
    table = Table(title="\nSLURM jobs", title_justify="left", box=None)
    for name in ("job", "steps", "partition", "account", "qos", "nodes x tasks"):
        table.add_column(name)
    for name in ("CPUs", "memory", "GPUs", "limit"):
        table.add_column(name, justify="right")
    table.add_column("after")

    for group in groups:
        ask = group.ask
        named = (group.site.partition, group.site.account, group.site.qos)
        table.add_row(
            escape(group.name),
            escape(", ".join(step.label for step in group.steps)),
            *(escape(name or "default") for name in named),
            f"{ask.nodes} x 1",  # the one task per node is Ray, which starts the workers
            str(ask.cpus or "all"),
            f"{ask.memory_mb:,} MB" if ask.memory_mb else "all",
            str(_node_gpus(group)),
            f"{ask.time_min:,} min",
            escape(", ".join(jobs_before(group, groups))),
        )

    table.caption = "CPUs, memory and GPUs are per node"
    table.caption_justify = "left"
    return table


def _node_gpus(group: Group) -> int:
    """GPUs that a job asks for per node; those that the site names take the place of those counted
    from the workers.
    """
    return named_gpus(group.site.gres) or group.ask.gpus


def _total(groups: Sequence[Group]) -> str:
    """Core-hours and GPU-hours of all jobs, if each ran until its time limit."""
    core_hours = 0.0
    gpu_hours = 0.0
    unknown = list[str]()

    for group in groups:
        node_hours = group.ask.nodes * group.ask.time_min / 60
        cpus = group.ask.cpus or smallest(asked_partitions(group.site)).cpus
        core_hours += node_hours * cpus
        gpu_hours += node_hours * _node_gpus(group)
        if not cpus:
            unknown.append(f"{group.name} ({counted(group.ask.nodes, 'node')})")

    more = f", and the cores of whole nodes for {', '.join(unknown)}" if unknown else ""
    return escape(
        f"{counted(len(groups), 'job')} asking at most, if each ran until its time limit: "
        f"{number(gpu_hours)} GPU-hours, {number(core_hours)} core-hours{more}"
    )


def _refused_by_sbatch(groups: Sequence[Group], recipe: Recipe, store: Store) -> list[str]:
    """What `sbatch --test-only` says against the jobs."""
    from cluster import slurm  # with submitit

    folder = submission_folder(store, recipe)
    problems = list[str]()
    for group in groups:
        try:
            slurm.check(job_of(group, folder, store, False))
        except ValueError as error:
            problems.append(str(error))
    return problems
