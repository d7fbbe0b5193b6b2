"""What each verb of the command line does; every function returns the exit code.

What only one verb needs and takes long to import (Ray, torch) is imported by that verb.
"""

import json
import logging
import shlex
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.endings import DONE, FAILED, USAGE
from cluster.logs import console as progress_console
from cluster.storage import absolute, kind_of
from curation.choice.why import why
from curation.encoders.config import describe
from curation.pairs.inspect import inspect_source
from evaluate.tables import TABLE_FORMATS, results_table, seeds_table
from pipeline.advice import again, rebuilding
from pipeline.experiments import prepare_mlflow, tracking_uri
from pipeline.graph import build_steps, draw_steps, resolve_backbone
from pipeline.inputs import check_inputs, is_leakage_off, named_sets
from pipeline.job_plan import print_jobs
from pipeline.outcome import results_by_model, scored_models
from pipeline.oversight import known_outputs
from pipeline.plan import print_plan
from pipeline.presets import PRESETS
from pipeline.provenance import environment
from pipeline.ray_submission import is_ray_address
from pipeline.recipe_file import dump_recipe
from pipeline.recipes import DataConfig, Recipe
from pipeline.record import DamagedOutputError, read_record
from pipeline.runner import check_inputs_done, run_steps
from pipeline.seeds import results_by_seed
from pipeline.step import Step, check_labels, find_step, in_order
from pipeline.store import Store
from pipeline.tracking import Tracking
from train.export.names import check_formats

logger = logging.getLogger(__name__)


def recipes(options: Namespace, console: Console) -> int:
    """List the presets."""
    table = Table("recipe", "what it makes", box=None)
    for name, preset in PRESETS.items():
        table.add_row(name, preset.description)
    console.print(table)
    return DONE


def inspect(recipe: Recipe, options: Namespace, console: Console) -> int:
    """Show what would be read of a source; it fails where a run would stop."""
    text, is_read = inspect_source(absolute(Path(options.recipe)), recipe.embed.source)
    print(text)
    return DONE if is_read else FAILED


def config(recipe: Recipe, options: Namespace, console: Console) -> int:
    """Print the recipe as YAML."""
    print(dump_recipe(recipe), end="")
    return DONE


def plan(recipe: Recipe, options: Namespace, console: Console) -> int:
    """Print what would run and what it costs; wrong usage where what the recipe names cannot be
    used.

    A preset whose pairs are not named yet is no wrong usage: its costs are what one wants to know
    first.
    """
    if options.rows < 0:
        raise ValueError(
            f"--rows is {options.rows}: a number of pairs is required; leave it out to count "
            "those embedded"
        )

    if options.one_job and not options.cluster:
        raise ValueError("--one-job plans a SLURM job: add --cluster SITE.yaml")
    if is_ray_address(options.cluster):
        raise ValueError(
            f"--cluster is {options.cluster}: a plan of jobs needs the site file of a SLURM cluster; "
            "on a Ray cluster one job runs all steps"
        )

    check_labels(draw_steps(recipe), options.only, options.force, options.exactly)
    store = Store(options.workspace)
    problems = print_plan(
        recipe, store, console, options.force, options.only, options.rows, options.measure
    )
    if options.cluster and not problems:
        problems = print_jobs(build_steps(resolve_backbone(recipe)), recipe, options, console)

    return USAGE if problems and (recipe.emoji or recipe.data.pairs) else DONE


def run(recipe: Recipe, options: Namespace, console: Console) -> int:
    """Run what is not done yet, then print the scores and where to look."""
    steps = build_steps(recipe)
    store = Store(options.workspace, rebuilding(options))
    store.make_places(in_order(steps))
    check_labels(steps, options.only, options.force, options.exactly)
    check_inputs(recipe)

    if is_leakage_off(recipe):
        logger.warning(
            "leakage=off: evaluation images may be trained on, and scores may be too high"
        )

    backbone = recipe.embed.backbone
    header = (
        f"recipe [b]{escape(recipe.name)}[/b]   backbone [b]{describe(backbone.name)}[/b]   weights "
        f"{backbone.digest[:12]}"
    )
    progress_console().print(header, soft_wrap=True)

    opened = list[Tracking]()

    def open_tracking() -> Tracking:
        tags = {"recipe": recipe.name, "backbone": backbone.name}
        opened.append(Tracking(store.workspace, recipe.name, recipe, tags | environment()))
        return opened[0]

    exactly = options.exactly
    if exactly:
        check_inputs_done(steps, store, options.force, exactly)
    asked = exactly or options.only
    run_steps(steps, store, progress_console(), open_tracking, force=options.force, only=asked)
    if exactly and in_order(steps)[-1].label not in exactly:
        return DONE  # another job makes the report, and says there what could not be scored

    if options.register or (opened and opened[0].is_on):
        track_models(recipe, steps, store, options.register, console)

    show_results(steps, store, console, options)
    report = store.folder(in_order(steps)[-1]) / "report.html"
    if report.exists():
        console.print(f"\nreport     {escape(str(report))}", soft_wrap=True)

    folder = str(options.workspace)
    where = "" if folder == "workspace" else f" WORKSPACE={shlex.quote(folder)}"
    dashboard = f"make mlflow{where}   ({tracking_uri(store.workspace)})"
    console.print(f"dashboard  {escape(dashboard)}", soft_wrap=True)
    if opened and opened[0].experiment:
        # MLflow opens on traces of language models unless the address says otherwise.
        page = f"#/experiments/{opened[0].experiment}/runs?workflowType=machine_learning"
        console.print(f"           http://127.0.0.1:5000/{page}", soft_wrap=True)
    if any(step.name == "train" for step in in_order(steps)):
        console.print(f"search     {escape(again(options, 'demo'))}", soft_wrap=True)

    return FAILED if any_set_failed(steps, store) else DONE


def track_models(
    recipe: Recipe, steps: Sequence[Step], store: Store, name: str | None, console: Console
) -> None:
    """Log the trained models and their scores; with a name, register the model of the step train
    under it. ValueError where that fails; without a name it is a warning, as all of tracking.
    """
    if not any(step.name == "train" and store.record(step) for step in in_order(steps)):
        return

    try:
        prepare_mlflow()
        from pipeline.logged_models import log_models, register  # with MLflow, torch, transformers

        models = log_models(recipe, steps, store)
        if name:
            version = register(store, models["train"], name)
            uri = shlex.quote(tracking_uri(store.workspace))
            place = shlex.quote(f"models:/{name}/{version}")
            serve = f"MLFLOW_TRACKING_URI={uri} mlflow models serve -m {place} --env-manager local"
            console.print(escape(f"registered {name} version {version}"), soft_wrap=True)
            console.print(escape(f"serve      {serve}"), soft_wrap=True)
    except Exception as error:  # the boundary: whatever the server does must not stop the work
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        if name:
            raise ValueError(
                f"--register {name}: {tracking_uri(store.workspace)} did not take the model: "
                f"{reason}; repair that, and run the same command again"
            ) from error
        logger.warning("models=not logged reason=%s: the run goes on without", reason)


def evaluate(recipe: Recipe, options: Namespace, console: Console) -> int:
    """Score a model on sets: a recipe without pairs, of which only the settings of evaluation
    count.
    """
    if not options.model and not recipe.others:
        raise ValueError(
            "evaluate without a model: add --model FOLDER, or --model "
            "open_clip:ARCHITECTURE:WEIGHTS"
        )
    if not options.set:
        raise ValueError(
            "evaluate without a set: add --set PATH, --set TASK:PATH or --set PATH@VARIANT"
        )

    models = (str(options.model),) if options.model else ()
    sets = named_sets(options.set)
    scored = replace(
        recipe,
        name="evaluation",
        emoji=None,
        data=DataConfig(
            classification=sets["classification"],
            retrieval=sets["retrieval"],
            segmentation=sets["segmentation"],
            similarity=sets["similarity"],
        ),
        compare=(),
        others=(*models, *recipe.others),
    )

    return run(scored, options, console)


def any_set_failed(steps: Sequence[Step], store: Store) -> bool:
    """Whether an evaluation set could not be scored: the table has its reason, and all others are
    scored.
    """
    records = [store.record(step) for step in in_order(steps) if step.name == "evaluate"]
    return any(record and record.summary.get("failed_sets") for record in records)


def show(recipe: Recipe, options: Namespace, console: Console) -> int:
    """Print the scores; or the record of one step; or what curation decided on one pair."""
    steps = in_order(build_steps(recipe))
    store = Store(options.workspace)
    if not options.words:
        return show_results(steps, store, console, options)

    step = find_step(steps, options.words[0])
    record = store.record(step)
    if record is None:
        raise ValueError(
            f"step {step.label} has not run: `{again(options, 'run', '--only', step.label)}`"
        )

    answer: Mapping[str, object] = asdict(record)
    if len(options.words) > 1:
        if step.name != "curate":
            remedy = again(options, "show", "curate", options.words[1])
            raise ValueError(
                f"step {step.label} keeps no record of single pairs, only curate does: `{remedy}`"
            )
        answer = why(store.folder(step), options.words[1])

    console.print_json(json.dumps(answer))
    return DONE


def show_results(steps: Sequence[Step], store: Store, console: Console, options: Namespace) -> int:
    """Print the table of all scores, one column per model."""
    scored = [step for step in in_order(steps) if step.name == "evaluate"]
    results = results_by_model(in_order(steps), store)
    written = next((kind for kind in TABLE_FORMATS if getattr(options, kind)), None)

    if options.json:
        print(json.dumps(results, indent=1))
    elif written:
        print(TABLE_FORMATS[written](results), end="")
    elif results:
        console.print(results_table(results))
        _show_seeds(scored_models(in_order(steps), store), store, console)
    elif scored:
        console.print(
            f"no results yet: `{escape(again(options, 'run'))}` makes them", soft_wrap=True
        )
    else:
        console.print(
            "no results: the recipe has no evaluation set; name one with --data.retrieval, "
            "for example"
        )

    return DONE


def _show_seeds(models: Mapping[str, Step], store: Store, console: Console) -> None:
    """Print mean and spread of the models that were trained with several seeds; nothing without
    one.
    """
    runs = {name: results_by_seed(step, store) for name, step in models.items()}
    several = {model: by_seed for model, by_seed in runs.items() if len(by_seed) > 1}
    if several:
        console.print(seeds_table(several))


def verify(recipe: Recipe, options: Namespace, console: Console) -> int:
    """Check every finished output of the workspace, of this recipe or not."""
    store = Store(options.workspace)
    current = known_outputs(recipe, store)
    code = DONE

    for folder in store.finished_folders():
        label, problems = _verified(folder, store)
        state = "[red]damaged[/red]" if problems else "[green]good[/green]"
        console.print(f"{label or folder.parent.name:<22} {folder.name}  {state}")
        remedy = (
            again(options, "run", "--force", label)
            if label and folder in current
            else f"remove {shlex.quote(str(folder))}"
        )
        for problem in problems:
            console.print(f"   {escape(problem)}\n   remedy: {escape(remedy)}", soft_wrap=True)
            code = FAILED

    return code


def _verified(folder: Path, store: Store) -> tuple[str, list[str]]:
    """The label of a finished output, none where its record cannot be read, and all problems."""
    try:
        record = read_record(folder)
    except DamagedOutputError as error:
        return "", [str(error)]
    return (record.label, store.verify(record)) if record else ("", [])


def export(recipe: Recipe, options: Namespace, console: Console) -> int:
    """Write a trained model in the formats of others."""
    if options.to is None:
        raise ValueError("export needs a folder to write into: add --to FOLDER")
    if options.to.is_file():
        raise ValueError(f"--to is {options.to}, a file: a folder is required; name another")
    if options.model and not options.model.is_dir():
        raise ValueError(
            f"--model {options.model} is no folder: one with config.json and model.safetensors, "
            "or with published dino.txt weights (*head*.pth, *text*.pth), is required; correct the "
            "path"
        )

    check_formats(options.format)

    store = Store(options.workspace, rebuilding(options))
    steps = [] if options.model else build_steps(recipe)
    step = None if options.model else _trained(steps, store, options)

    from pipeline.exported import folder_subject, step_subject  # with torch, and the model itself
    from pipeline.exporting import export_formats

    subject = (
        folder_subject(recipe, options.model, options)
        if step is None
        else step_subject(recipe, steps, step, store, options)
    )
    return export_formats(subject, options.to, options.format, console)


def _trained(steps: Sequence[Step], store: Store, options: Namespace) -> Step:
    """The train step to export, `train` if none is named. ValueError if it has made no model."""
    step = find_step(steps, options.words[0] if options.words else "train")
    if step.name != "train":
        raise ValueError(f"step {step.label} makes no model: name a train step, such as `train`")
    if store.record(step) is None:
        raise ValueError(
            f"step {step.label} has not run: `{again(options, 'run', '--only', step.label)}`"
        )

    store.check_sizes(step)
    return step


def demo(recipe: Recipe, options: Namespace, console: Console) -> int:
    """Serve the search page until Ctrl-C. ValueError where no model has been trained."""
    if options.images and not kind_of(absolute(options.images)):
        raise ValueError(
            f"--images {options.images} does not exist: a folder of images, or a tar of one, is "
            "required; correct the path"
        )

    store = Store(options.workspace)
    steps = in_order(build_steps(recipe))
    if not any(step.name == "train" and store.record(step) for step in steps):
        raise ValueError(
            f"no model of recipe {recipe.name} is trained in {options.workspace}: run it first, as "
            f"`{again(options, 'run')}`"
        )

    from pipeline.demo import serve  # with torch, FAISS and the web server

    return serve(recipe, options, console)
