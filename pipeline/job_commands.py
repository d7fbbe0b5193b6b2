"""What the verbs do that are about jobs on a cluster: submit, status, logs, cancel, cluster.

As in pipeline/commands.py, every function returns the exit code.
"""

import itertools
import json
from argparse import Namespace

from rich.console import Console
from rich.markup import escape

from cluster.endings import DONE, FAILED
from cluster.site import SiteConfig
from pipeline import oversight, submission
from pipeline.advice import again
from pipeline.graph import build_steps
from pipeline.inputs import check_inputs
from pipeline.oversight import known_outputs
from pipeline.ray_submission import (
    RayJob,
    cancel_on_ray,
    is_ray_address,
    last_jobs,
    print_ray_log,
    refuse_twice_on_ray,
    submit_to_ray,
)
from pipeline.recipe_file import dump_config
from pipeline.recipes import Recipe
from pipeline.runner import pending
from pipeline.step import check_labels, find_step, in_order
from pipeline.store import Store

TEMPLATE_HEAD = """# A SLURM cluster. Submit to it: python -m pipeline submit RECIPE --cluster FILE.yaml
# Leave out what is as it should be; a step takes what it leaves out from `default`.
"""


def submit(recipe: Recipe, options: Namespace, console: Console) -> int:
    """Submit what is not done as SLURM jobs, one per step, or to a Ray cluster as one."""
    steps = build_steps(recipe)
    check_labels(steps, options.only, options.force, options.exactly)
    check_inputs(recipe)

    if is_ray_address(options.cluster):
        if options.one_job:
            raise ValueError(
                f"--one-job is about SLURM jobs, and --cluster {options.cluster} is a Ray cluster, "
                "on which one job runs all steps: leave it out"
            )
        return submit_to_ray(steps, recipe, options, console)

    todo = pending(steps, Store(options.workspace), options.force, options.only)
    refuse_twice_on_ray(todo, Store(options.workspace))
    code = submission.submit(steps, recipe, options, console)
    if not options.dry_run:
        console.print(
            f"`{escape(again(options, 'status'))}` shows how far they are", soft_wrap=True
        )

    return code


def status(recipe: Recipe, options: Namespace, console: Console) -> int:
    """Print every output of the workspace with its state and summary, and the jobs of the others."""
    store = Store(options.workspace)
    steps = list(known_outputs(recipe, store).values())
    if options.json:
        where = {"recipe": recipe.name, "workspace": str(options.workspace)}
        print(json.dumps({**where, "steps": oversight.status_rows(steps, store)}, indent=1))
    elif options.watch:
        oversight.watch((oversight.status_rows(steps, store) for _ in itertools.count()), console)
    else:
        oversight.status_table(oversight.status_rows(steps, store), console)

    return DONE


def logs(recipe: Recipe, options: Namespace, console: Console) -> int:
    """Print the logs of the last job of a step."""
    steps = in_order(build_steps(recipe))
    if not options.words:
        labels = ", ".join(step.label for step in steps)
        raise ValueError(f"logs needs a step: name one of {labels}")

    step = find_step(steps, options.words[0])
    job = last_jobs(Store(options.workspace)).get(step.fingerprint)
    if job is None:
        raise ValueError(
            f"step {step.label} has no job in {options.workspace}: "
            f"`{again(options, 'submit', '--only', step.label)}` makes one"
        )

    if isinstance(job, RayJob):
        print_ray_log(job, options.follow)
    else:
        oversight.print_logs(job, options.follow, console)

    return DONE


def cancel(recipe: Recipe, options: Namespace, console: Console) -> int:
    """End the jobs of a recipe that have not ended."""
    steps = build_steps(recipe)
    store = Store(options.workspace)
    ended = submission.cancel(steps, store, console) + cancel_on_ray(steps, store, console)
    if not ended:
        console.print("nothing to cancel: no job of this recipe is waiting or running")
    return DONE


def cluster(options: Namespace, console: Console) -> int:
    """Write the template of a site file, or check what one describes on the real thing."""
    if options.recipe == "template":
        print(TEMPLATE_HEAD + dump_config(SiteConfig()), end="")
        return DONE
    if options.recipe == "check" and options.words:
        return _check_site(options, console)

    raise ValueError(
        "cluster needs one of: `cluster template`, which prints a site file; `cluster check "
        "SITE.yaml`, which tries what the file describes"
    )


def _check_site(options: Namespace, console: Console) -> int:
    """Print every check of a site with its remedy; failed where one is not good."""
    from cluster.preflight import check_site  # with submitit

    site = submission.read_site(options.words[0])
    code = DONE
    for finding in check_site(site, Store(options.workspace).workspace):
        mark = "[green]good[/green]" if finding.is_good else "[red]bad [/red]"
        console.print(f"{mark} {finding.jobs}: {escape(finding.text)}", soft_wrap=True)
        if not finding.is_good:
            code = FAILED
            if finding.remedy:
                console.print(f"     remedy: {escape(finding.remedy)}", soft_wrap=True)

    return code
