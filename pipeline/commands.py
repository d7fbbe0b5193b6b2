"""What each verb of the command line does; every function returns the exit code.

What only one verb needs and takes long to import (Ray, torch) is imported by that verb.
"""

import hashlib
import json
import logging
import shlex
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.endings import DONE, FAILED, USAGE
from cluster.files import write_atomic
from cluster.logs import console as progress_console
from cluster.storage import absolute
from cluster.words import duration, nearest
from curation.choice.why import why
from curation.encoders.config import describe
from curation.pairs.inspect import inspect_source
from evaluate.results import read_results
from evaluate.tables import TABLE_FORMATS, results_table
from pipeline.graph import build_steps, draw_steps, resolve_backbone
from pipeline.inputs import check_inputs, is_leakage_off, named_sets
from pipeline.lines import headline
from pipeline.plan import print_plan
from pipeline.presets import PRESETS
from pipeline.provenance import environment, git_state
from pipeline.recipe_file import dump_recipe
from pipeline.recipes import DataConfig, Recipe
from pipeline.record import DamagedOutputError, Record, read_record
from pipeline.runner import run_steps
from pipeline.step import Step, in_order
from pipeline.store import Store
from pipeline.tracking import Tracking, tracking_uri

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

    _check_labels(draw_steps(recipe), options)
    store = Store(options.workspace)
    problems = print_plan(
        recipe, store, console, options.force, options.only, options.rows, options.measure
    )

    return USAGE if problems and (recipe.emoji or recipe.data.pairs) else DONE


def run(recipe: Recipe, options: Namespace, console: Console) -> int:
    """Run what is not done yet, then print the scores and where to look."""
    steps = build_steps(recipe)
    store = Store(options.workspace)
    store.make_places(in_order(steps))
    _check_labels(steps, options)
    check_inputs(recipe)

    if is_leakage_off(recipe):
        logger.warning(
            "leakage=off: evaluation images may be trained on, and scores may be too high"
        )

    backbone = recipe.embed.backbone
    header = (
        f"recipe [b]{recipe.name}[/b]   backbone [b]{describe(backbone.name)}[/b]   weights "
        f"{backbone.digest[:12]}"
    )
    progress_console().print(header, soft_wrap=True)

    def open_tracking() -> Tracking:
        commit, dirty = git_state()
        tags = {
            "recipe": recipe.name,
            "commit": commit,
            "dirty": str(dirty),
            "backbone": backbone.name,
        }
        return Tracking(store.workspace, recipe.name, recipe, tags | environment())

    run_steps(
        steps, store, progress_console(), open_tracking, force=options.force, only=options.only
    )

    show_results(steps, store, console, options)
    report = store.folder(in_order(steps)[-1]) / "report.html"
    if report.exists():
        console.print(f"\nreport     {report}", soft_wrap=True)

    where = "" if str(options.workspace) == "workspace" else f" WORKSPACE={options.workspace}"
    console.print(
        f"dashboard  make mlflow{where}   ({tracking_uri(store.workspace)})", soft_wrap=True
    )

    return FAILED if any_set_failed(steps, store) else DONE


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


def submit(recipe: Recipe, options: Namespace, console: Console) -> int:
    """Submit one SLURM job for the whole recipe, on the nodes and partition of `train.resources`.

    The recipe lies in a file named by its content: a job that waits, or is requeued, runs what it
    was submitted with.
    """
    from cluster import slurm  # with Ray and submitit

    steps = build_steps(recipe)
    _check_labels(steps, options)
    check_inputs(recipe)

    text = dump_recipe(recipe)
    folder = options.workspace.resolve() / "jobs"
    file = folder / f"{recipe.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.yaml"
    Store(options.workspace).make_folder(folder)
    write_atomic(file, text)

    command = [
        sys.executable,
        "-m",
        "pipeline",
        "run",
        str(file),
        "--workspace",
        str(options.workspace.resolve()),
    ]
    for flag, labels in (("--only", options.only), ("--force", options.force)):
        command += [flag, *labels] if labels else []

    command += ["--verbose"] if options.verbose else []

    job = slurm.submit(command, recipe.train.resources, folder, recipe.name)
    follow = again(options, "status")
    console.print(
        f"SLURM job {job}: logs in {folder / job}; `{follow}` shows how far it is", soft_wrap=True
    )

    return DONE


def status(recipe: Recipe, options: Namespace, console: Console) -> int:
    """Print every output of the workspace with its state and summary."""
    store = Store(options.workspace)
    rows = status_rows(list(known_outputs(recipe, store).values()), store)
    if options.json:
        print(
            json.dumps(
                {"recipe": recipe.name, "workspace": str(options.workspace), "steps": rows},
                indent=1,
            )
        )
        return DONE

    table = Table("step", "output", "state", "took", "summary", box=None)
    for row in rows:
        mark = str(row["state"]) + ("" if row["current"] else ", other settings")
        took = duration(row["seconds"]) if row["state"] == "done" else ""
        table.add_row(row["step"], row["fingerprint"], mark, took, headline(row["summary"]))

    console.print(table)
    return DONE


def status_rows(steps: Sequence[Step], store: Store) -> list[dict]:
    """The recipe's steps in order; after each kind, and at the end, what the workspace holds under
    other settings.
    """
    records = {store.folder(record): record for record in store.records()}
    current = {store.folder(step) for step in steps}
    others = [record for folder, record in records.items() if folder not in current]

    rows = []

    for index, step in enumerate(steps):
        folder = store.folder(step)
        rows.append(
            _status_row(step.label, folder.name, _state(step, store), True, records.get(folder))
        )
        is_last_of_its_kind = step.name not in {later.name for later in steps[index + 1 :]}
        if is_last_of_its_kind:
            rows += [_other_row(other) for other in others if other.step == step.name]

    return rows + [
        _other_row(other) for other in others if other.step not in {step.name for step in steps}
    ]


def _state(step: Step, store: Store) -> str:
    try:
        done = store.record(step)
    except DamagedOutputError:
        return "damaged"
    return "done" if done else "unfinished" if store.partial(step).exists() else "not run"


def _other_row(record: Record) -> dict:
    return _status_row(record.label, record.fingerprint, "done", False, record)


def _status_row(
    label: str, fingerprint: str, state: str, current: bool, record: Record | None
) -> dict:
    done = (
        {"seconds": record.seconds, "finished": record.finished, "commit": record.commit}
        if record
        else {}
    )
    summary = record.summary if record else {}

    return {
        "step": label,
        "fingerprint": fingerprint,
        "state": state,
        "current": current,
        **done,
        "summary": summary,
    }


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
    done = [step for step in scored if store.record(step)]
    name = "curated" if len(done) > 1 else "model"
    results = {
        step.label.partition("@")[2] or name: read_results(store.folder(step)) for step in done
    }

    written = next((kind for kind in TABLE_FORMATS if getattr(options, kind)), None)

    if options.json:
        print(json.dumps(results, indent=1))
    elif written:
        print(TABLE_FORMATS[written](results), end="")
    elif results:
        console.print(results_table(results))
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
            else f"remove {folder}"
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


def known_outputs(recipe: Recipe, store: Store) -> dict[Path, Step]:
    """The recipe's steps in order, by the folders of their outputs; none, and a warning, where data
    are missing.
    """
    try:
        return {
            store.folder(step): step for step in in_order(build_steps(resolve_backbone(recipe)))
        }
    except (ValueError, OSError) as error:
        logger.warning(
            "recipe %s cannot be resolved, so its outputs are not marked: %s", recipe.name, error
        )
        return {}


def export(recipe: Recipe, options: Namespace, console: Console) -> int:
    """Write a trained model in the formats of others."""
    from pipeline.exported import folder_subject, step_subject  # with torch, and the model itself
    from pipeline.exporting import check_formats, export_formats

    if options.to is None:
        raise ValueError("export needs a folder to write into: add --to FOLDER")

    check_formats(options.format)
    if options.model:
        return export_formats(
            folder_subject(recipe, options.model, options), options.to, options.format, console
        )

    steps = build_steps(recipe)
    store = Store(options.workspace)
    step = find_step(steps, options.words[0] if options.words else "train")
    if step.name != "train":
        raise ValueError(f"step {step.label} makes no model: name a train step, such as `train`")
    if store.record(step) is None:
        raise ValueError(
            f"step {step.label} has not run: `{again(options, 'run', '--only', step.label)}`"
        )

    store.check_sizes(step)

    subject = step_subject(recipe, steps, step, store, options)
    return export_formats(subject, options.to, options.format, console)


def again(options: Namespace, verb: str, *words: str) -> str:
    """The command line for another verb on the same recipe, flags and workspace."""
    where = [] if str(options.workspace) == "workspace" else ["--workspace", str(options.workspace)]
    return shlex.join(
        ["python", "-m", "pipeline", verb, options.recipe, *words, *where, *options.flags]
    )


def _check_labels(steps: Sequence[Step], options: Namespace) -> None:
    for label in (*options.only, *options.force):
        find_step(steps, label)


def find_step(steps: Sequence[Step], label: str) -> Step:
    """The step with this label. ValueError gives the nearest one."""
    labels = {step.label: step for step in in_order(steps)}
    if label not in labels:
        raise ValueError(
            f"there is no step {label!r}{nearest(label, labels)}; steps: {', '.join(labels)}"
        )
    return labels[label]
