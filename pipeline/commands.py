"""What each word of the command line does with a recipe; every function returns the exit code."""

import hashlib
import json
import logging
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster import slurm
from cluster.files import sha256_file, write_atomic
from cluster.logs import console as progress_console
from cluster.words import nearest
from curation.choice.decisions import why
from curation.encoders.config import describe
from evaluate.tables import results_table
from pipeline.graph import build_steps, draw_steps, resolve_backbone
from pipeline.inputs import check_evaluation
from pipeline.plan import print_plan
from pipeline.recipe_file import dump_recipe
from pipeline.recipes import Recipe
from pipeline.runner import environment, git_state, headline, run_steps
from pipeline.step import Step, in_order
from pipeline.store import DamagedOutput, Record, Store, read_record
from pipeline.tracking import Tracking, tracking_uri
from train.export.folder import LoadedModel
from train.export.formats import FORMATS, export_format, read_model
from train.loop import MODEL

log = logging.getLogger(__name__)


def plan(recipe: Recipe, options: Namespace, console: Console) -> int:
    if options.rows < 0:
        raise ValueError(f"--rows {options.rows}: a number of pairs is needed; leave it out to take those embedded")
    for label in (*options.only, *options.force):
        find_step(draw_steps(recipe), label)
    print_plan(recipe, Store(options.workspace), console, options.force, options.only, options.rows, options.measure)
    return 0


def run(recipe: Recipe, options: Namespace, console: Console) -> int:
    steps, store = build_steps(recipe), Store(options.workspace)
    for label in (*options.only, *options.force):
        find_step(steps, label)
    check_evaluation(recipe)
    backbone = recipe.embed.backbone
    header = f"recipe [b]{recipe.name}[/b]   backbone [b]{describe(backbone.name)}[/b]   weights {backbone.digest[:12]}"
    progress_console().print(header, soft_wrap=True)
    commit, dirty = git_state()
    tags = {"recipe": recipe.name, "commit": commit, "dirty": str(dirty), "backbone": backbone.name, **environment()}
    run_steps(
        steps,
        store,
        progress_console(),
        lambda: Tracking(store.workspace, recipe.name, recipe, tags),
        force=options.force,
        only=options.only,
    )
    show_results(steps, store, console, options)
    report = store.folder(in_order(steps)[-1]) / "report.html"
    if report.exists():
        console.print(f"\nreport     {report}", soft_wrap=True)
    where = "" if str(options.workspace) == "workspace" else f" WORKSPACE={options.workspace}"
    console.print(f"dashboard  make mlflow{where}   ({tracking_uri(store.workspace)})", soft_wrap=True)
    return 0


def submit(recipe: Recipe, options: Namespace, console: Console) -> int:
    """One SLURM job for the whole recipe, on the nodes and partition of `train.resources`.

    The recipe lies in a file named by its content: a job that waits, or is requeued, runs what it was submitted with.
    """
    folder, steps, text = options.workspace.resolve() / "jobs", build_steps(recipe), dump_recipe(recipe)
    check_evaluation(recipe)
    file = folder / f"{recipe.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(file, text)
    command = [sys.executable, "-m", "pipeline", "run", str(file), "--workspace", str(options.workspace.resolve())]
    for flag, labels in (("--only", options.only), ("--force", options.force)):
        command += [flag, *(find_step(steps, label).label for label in labels)] if labels else []
    command += ["--verbose"] if options.verbose else []
    job = slurm.submit(command, recipe.train.resources, folder, recipe.name)
    console.print(
        f"SLURM job {job}: logs in {folder / job}; `{again(options, 'status')}` shows how far it is",
        soft_wrap=True,
    )
    return 0


def status(recipe: Recipe, options: Namespace, console: Console) -> int:
    store = Store(options.workspace)
    rows = status_rows(list(known_outputs(recipe, store).values()), store)
    if options.json:
        print(json.dumps({"recipe": recipe.name, "workspace": str(options.workspace), "steps": rows}, indent=1))
        return 0
    table = Table("step", "output", "state", "seconds", "summary", box=None)
    for row in rows:
        mark = str(row["state"]) + ("" if row["current"] else ", other settings")
        seconds = f"{row['seconds']:.1f}" if row["state"] == "done" else ""
        table.add_row(row["step"], row["fingerprint"], mark, seconds, headline(row["summary"]))
    console.print(table)
    return 0


def status_rows(steps: Sequence[Step], store: Store) -> list[dict]:
    """The recipe's steps in order; after each kind, and at the end, what the workspace holds under other settings."""
    records = {store.folder(record): record for record in store.records()}
    current = {store.folder(step) for step in steps}
    others = [record for folder, record in records.items() if folder not in current]
    rows = []
    for index, step in enumerate(steps):
        folder = store.folder(step)
        rows.append(_status_row(step.label, folder.name, _state(step, store), True, records.get(folder)))
        if step.name not in {later.name for later in steps[index + 1 :]}:
            rows += [_other_row(other) for other in others if other.step == step.name]
    return rows + [_other_row(other) for other in others if other.step not in {step.name for step in steps}]


def _state(step: Step, store: Store) -> str:
    try:
        done = store.record(step)
    except DamagedOutput:
        return "damaged"
    return "done" if done else "unfinished" if store.partial(step).exists() else "not run"


def _other_row(record: Record) -> dict:
    return _status_row(record.label, record.fingerprint, "done", False, record)


def _status_row(label: str, fingerprint: str, state: str, current: bool, record: Record | None) -> dict:
    done = {"seconds": record.seconds, "finished": record.finished, "commit": record.commit} if record else {}
    summary = record.summary if record else {}
    return {"step": label, "fingerprint": fingerprint, "state": state, "current": current, **done, "summary": summary}


def show(recipe: Recipe, options: Namespace, console: Console) -> int:
    steps, store = in_order(build_steps(recipe)), Store(options.workspace)
    if not options.words:
        return show_results(steps, store, console, options)
    step = find_step(steps, options.words[0])
    record = store.record(step)
    if record is None:
        raise ValueError(f"step {step.label} has not run: `{again(options, 'run', '--only', step.label)}`")
    answer: Mapping[str, object] = asdict(record)
    if len(options.words) > 1:
        if step.name != "curate":
            remedy = again(options, "show", "curate", options.words[1])
            raise ValueError(f"{step.label} knows nothing of single pairs, which curation decides on: `{remedy}`")
        answer = why(store.folder(step), options.words[1])
    console.print_json(json.dumps(answer))
    return 0


def show_results(steps: Sequence[Step], store: Store, console: Console, options: Namespace) -> int:
    """The table of all scores, one column per arm."""
    scored = [step for step in in_order(steps) if step.name == "evaluate"]
    done = [step for step in scored if store.record(step)]
    name = "curated" if len(done) > 1 else "model"
    arms = {step.label.partition("@")[2] or name: store.folder(step) / "results.json" for step in done}
    results = {arm: json.loads(path.read_text()) for arm, path in arms.items()}
    if options.json:
        print(json.dumps(results, indent=1))
    elif results:
        console.print(results_table(results))
    elif scored:
        console.print(f"no results yet: `{escape(again(options, 'run'))}` makes them", soft_wrap=True)
    else:
        console.print("no results: the recipe has no evaluation set; name one as --data.retrieval, for example")
    return 0


def verify(recipe: Recipe, options: Namespace, console: Console) -> int:
    """Every finished output of the workspace, made by this recipe or not."""
    store, bad = Store(options.workspace), 0
    current = known_outputs(recipe, store)
    for folder in store.finished_folders():
        label, problems = _verified(folder, store)
        state = "[red]damaged[/red]" if problems else "[green]good[/green]"
        console.print(f"{label or folder.parent.name:<22} {folder.name}  {state}")
        remedy = again(options, "run", "--force", label) if label and folder in current else f"remove {folder}"
        for problem in problems:
            console.print(f"   {escape(problem)}\n   remedy: {escape(remedy)}", soft_wrap=True)
        bad += bool(problems)
    return 1 if bad else 0


def _verified(folder: Path, store: Store) -> tuple[str, list[str]]:
    """The label of a finished output, none where its record cannot be read, and all problems."""
    try:
        record = read_record(folder)
    except DamagedOutput as error:
        return "", [str(error)]
    return (record.label, store.verify(record)) if record else ("", [])


def known_outputs(recipe: Recipe, store: Store) -> dict[Path, Step]:
    """The recipe's steps in order, by the folders of their outputs; none, and a warning, where data are missing."""
    try:
        return {store.folder(step): step for step in in_order(build_steps(resolve_backbone(recipe)))}
    except (ValueError, OSError) as error:
        log.warning("recipe=%s its own outputs cannot be told from those of others: %s", recipe.name, error)
        return {}


def export(recipe: Recipe, options: Namespace, console: Console) -> int:
    """Every format asked for; one that the model cannot have is named, and the others are still made."""
    if options.to is None:
        raise ValueError("export without a folder to write into: add --to FOLDER")
    for name in options.format:
        if name not in FORMATS:
            raise ValueError(f"there is no format {name!r}{nearest(name, FORMATS)}; formats: {', '.join(FORMATS)}")
    loaded, source = exported_model(recipe, options)
    table, failed = Table("format", "folder", "differs from the model by at most", box=None), False
    for name in options.format or FORMATS:
        try:
            parity = export_format(name, loaded, options.to, source)["parity"]
            table.add_row(
                name, str(options.to / name), "  ".join(f"{kind} {value:.1e}" for kind, value in parity.items())
            )
        except ValueError as error:
            failed = True
            table.add_row(name, "[red]not made[/red]", escape(str(error)))
    console.print(table)
    return 1 if failed else 0


def exported_model(recipe: Recipe, options: Namespace) -> tuple[LoadedModel, dict[str, str]]:
    """The model to export and where it is from: a folder, or a train step of the recipe (`train` if none is named)."""
    if options.model:
        weights = sorted(path for path in options.model.glob("*") if path.suffix in (".safetensors", ".pth"))
        return read_model(options.model), {path.name: sha256_file(path) for path in weights}
    steps, store = build_steps(recipe), Store(options.workspace)
    step = find_step(steps, options.words[0] if options.words else "train")
    if step.name != "train":
        raise ValueError(f"step {step.label} makes no model: name a train step, such as `train`")
    if store.record(step) is None:
        raise ValueError(f"step {step.label} has not run: `{again(options, 'run', '--only', step.label)}`")
    store.check_sizes(step)
    folder = store.folder(step)
    source = {"recipe": recipe.name, "step": step.label, "fingerprint": folder.name}
    return read_model(folder / MODEL), source


def config(recipe: Recipe, options: Namespace, console: Console) -> int:
    print(dump_recipe(recipe), end="")
    return 0


COMMANDS: dict[str, Callable[[Recipe, Namespace, Console], int]] = {
    "plan": plan,
    "run": run,
    "submit": submit,
    "status": status,
    "show": show,
    "verify": verify,
    "export": export,
    "config": config,
}


def again(options: Namespace, verb: str, *words: str) -> str:
    """The command line for another verb on the same recipe, flags and workspace."""
    where = [] if str(options.workspace) == "workspace" else ["--workspace", str(options.workspace)]
    return shlex.join(["python", "-m", "pipeline", verb, options.recipe, *words, *where, *options.flags])


def find_step(steps: Sequence[Step], label: str) -> Step:
    """The step with this label. ValueError gives the nearest one."""
    labels = {step.label: step for step in in_order(steps)}
    if label not in labels:
        raise ValueError(f"there is no step {label!r}{nearest(label, labels)}; steps: {', '.join(labels)}")
    return labels[label]
