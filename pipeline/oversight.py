"""How far the steps of a recipe are: outputs in the workspace, and the jobs that make the others.

States come from SLURM, or from Ray's head, at the moment of asking; nothing of a job has to run for them.
"""

import json
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cluster import ray_jobs
from cluster.accounting import JobState, job_states, remedy
from cluster.progress import PROGRESS_FILE
from cluster.words import duration
from pipeline.graph import build_steps, resolve_backbone
from pipeline.lines import headline
from pipeline.ray_submission import RayJob, has_made, last_jobs
from pipeline.recipes import Recipe
from pipeline.record import DamagedOutputError, Record
from pipeline.step import Step, in_order
from pipeline.store import Store
from pipeline.submission import SubmittedJob

logger = logging.getLogger(__name__)

WATCH_S = 5.0
TAIL_S = 2.0
LOG = re.compile(r"(\d+)\.(\d+)\.log")
"""JOB.RESTART.log"""
FATAL = re.compile(r"^error: (.+)", re.MULTILINE)
"""The line on how a command ended."""
SLURM_COLUMNS = ("job", "job ran", "node", "starts", "queued", "memory", "CPU")
NOT_BEGUN = "waits in its job"
"""Of a step that waits for its turn in a job of several steps, or for Ray."""
NOT_FAILURES = {
    "PREEMPTED": "preempted, waits to run again",
    "REQUEUED": "waits to run again",
    "NODE_FAIL": "lost its node, waits to run again",
}


def status_rows(steps: Sequence[Step], store: Store) -> list[dict]:
    """The recipe's steps in order; after each kind, and at the end, what the workspace holds under
    other settings. Search indexes of the recipe's models are at the end, as outputs of the recipe.
    """
    records = {store.folder(record): record for record in store.records()}
    current = {store.folder(step) for step in steps}
    others = [record for folder, record in records.items() if folder not in current]
    jobs = _jobs_of(steps, store)

    rows = []

    # Outputs under other settings stand below the recipe's own of their kind, where people compare
    # them.
    for index, step in enumerate(steps):
        folder = store.folder(step)
        row = _row(step.label, folder.name, _state(step, store), True, records.get(folder))
        rows.append(row | jobs.get(step.label, {}))
        is_last_of_its_kind = step.name not in {later.name for later in steps[index + 1 :]}
        if is_last_of_its_kind:
            rows += [_other_row(other, False) for other in others if other.step == step.name]

    kinds = {step.name for step in steps}
    return rows + [
        _other_row(other, _is_index_of(steps, other)) for other in others if other.step not in kinds
    ]


def _is_index_of(steps: Sequence[Step], record: Record) -> bool:
    """Whether an output is the search index of one of these models; `demo` makes it, no recipe."""
    models = [[step.fingerprint, "model"] for step in steps if step.name == "train"]
    return record.step == "index" and record.inputs.get("model") in models


def _state(step: Step, store: Store) -> str:
    try:
        done = store.record(step)
    except DamagedOutputError:
        return "damaged"
    return "done" if done else "unfinished" if store.partial(step).exists() else "not run"


def _other_row(record: Record, current: bool) -> dict:
    return _row(record.label, record.fingerprint, "done", current, record)


def _row(label: str, fingerprint: str, state: str, current: bool, record: Record | None) -> dict:
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


def _jobs_of(steps: Sequence[Step], store: Store) -> dict[str, dict]:
    """What SLURM, or Ray, says of the last job of each step, by label; nothing for steps without
    one.
    """
    latest = last_jobs(store)
    jobs = {step.label: latest[step.fingerprint] for step in steps if step.fingerprint in latest}

    # Of an output that its job has made Ray has nothing to add, and its head may be gone for good.
    records = {step.label: store.record(step) for step in steps if _state(step, store) == "done"}
    jobs = {
        label: job
        for label, job in jobs.items()
        if isinstance(job, SubmittedJob) or not has_made(job, records.get(label))
    }
    slurm = {job.id: job for job in jobs.values() if isinstance(job, SubmittedJob)}
    ray = {(job.address, job.id): job for job in jobs.values() if isinstance(job, RayJob)}
    states = job_states(list(slurm))
    ray_states = ray_jobs.job_states(list(ray))

    return {
        label: {
            "job": _ray_row(job, ray_states[job.address, job.id])
            if isinstance(job, RayJob)
            else _job_row(job, states.get(job.id))
        }
        for label, job in jobs.items()
    }


def _ray_row(job: RayJob, seen: ray_jobs.RayJobState) -> dict:
    """A job of a Ray cluster in JSON's words; it asks for nothing itself, its steps do."""
    error = "".join(FATAL.findall(seen.message)[-1:])
    return {
        "id": job.id,
        "name": job.name,
        "cluster": job.address,
        "state": seen.state,
        "reason": "" if seen.is_active else seen.message.partition("\n")[0],
        "nodes": "",
        "elapsed_s": seen.elapsed_s,
        "is_active": seen.is_active,
        "progress": _progress(job) if seen.state == "RUNNING" else "",
        "remedy": ray_jobs.remedy(job.address, seen, error),
        "log": "",
    }


def _job_row(job: SubmittedJob, state: JobState | None) -> dict:
    """A job in JSON's words."""
    # The last start decides: earlier ones may have ended with errors that a restart cured.
    log = last_log(job)
    error = "".join(FATAL.findall(log.read_text(errors="replace"))[-1:]) if log else ""
    seen = state or JobState("UNKNOWN")
    return {
        "id": job.id,
        "name": job.name,
        "state": seen.state,
        "reason": seen.reason,
        "nodes": seen.nodes,
        "elapsed_s": seen.elapsed_s,
        "limit_min": job.ask.time_min,
        "restarts": seen.restarts,
        "queued_s": seen.queued_s,
        "is_active": seen.is_active,
        "progress": _progress(job) if seen.state == "RUNNING" else "",
        "remedy": remedy(seen, job.ask.memory_mb, job.ask.time_min, error),
        "asked_nodes": job.ask.nodes,
        "asked_cpus": job.ask.cpus,
        "asked_gpus": job.ask.gpus,
        "asked_memory_mb": job.ask.memory_mb,
        "used_memory_mb": round(seen.used_mb),
        "used_cpu_share": round(seen.used_cpu_share, 3),
        "log": str(log or ""),
    }


def _progress(job: SubmittedJob | RayJob) -> str:
    """The last line of progress that a job has told, with its rate and the time that is left."""
    with suppress(OSError, ValueError, KeyError):
        return str(json.loads((job.folder / PROGRESS_FILE).read_text())["text"])
    return ""


def status_table(rows: Sequence[Mapping], console: Console) -> None:
    """Print the rows; of jobs only where there are some, and below the table what to do."""
    jobs = [row["job"] for row in rows if "job" in row]
    has_slurm = any("cluster" not in job for job in jobs)
    columns = SLURM_COLUMNS if has_slurm else SLURM_COLUMNS[:2] if jobs else ()
    table = Table(box=None)
    for name in ("step", "output", "state", "took", *columns):
        table.add_column(name, no_wrap=True)
    table.add_column()

    for row in rows:
        # What the output says comes first; the job fills in what is not known yet.
        took = duration(row["seconds"]) if row["state"] == "done" else ""
        text = headline(row["summary"])
        cells = list[str]()
        if job := row.get("job"):
            text = text or (job["progress"] if row["state"] == "unfinished" else "")
            cells = _job_cells(job)
        one_line = Text(text, no_wrap=True, overflow="ellipsis")
        padding = [""] * (len(columns) - len(cells))
        table.add_row(row["step"], row["fingerprint"], _word(row), took, *cells, *padding, one_line)

    # A job can have several steps, and so several rows: its remedy is printed once.
    console.print(table)
    for job in {
        job["id"]: job for job in jobs if job["remedy"] and not _is_done(job, rows)
    }.values():
        console.print(
            f"[red]job {job['id']} ({job['name']})[/red]: {escape(job['remedy'])}", soft_wrap=True
        )
        if job["log"]:
            console.print(f"   log: {escape(job['log'])}", soft_wrap=True, highlight=False)


def _is_done(job: Mapping, rows: Sequence[Mapping]) -> bool:
    """Whether everything that a job had to make is there by now."""
    return all(row["state"] == "done" for row in rows if row.get("job", {}).get("id") == job["id"])


def _job_cells(job: Mapping) -> list[str]:
    """The cells of SLURM_COLUMNS; of a Ray job the first two."""
    elapsed = duration(job["elapsed_s"]) if job["elapsed_s"] else ""
    if "cluster" in job:
        return [job["id"], elapsed]

    used = f"{job['used_memory_mb']:,}" if job["used_memory_mb"] else "?"
    asked = f"{job['asked_memory_mb']:,}" if job["asked_memory_mb"] else "all"
    cpu = f"{job['used_cpu_share']:.0%}" if job["used_cpu_share"] else ""
    return [
        job["id"],
        f"{elapsed} of {job['limit_min']:,} min" if elapsed else f"{job['limit_min']:,} min asked",
        job["nodes"],
        str(job["restarts"] + 1) if job["nodes"] else "",
        duration(job["queued_s"]) if job["nodes"] else "",
        f"{used} of {asked} MB" if job["nodes"] else f"{asked} MB asked",
        cpu,
    ]


def _word(row: Mapping) -> str:
    """The state of a step in a word: that of its output, or of the job that makes it."""
    # The output decides: a job may have failed after it had finished this step.
    job = row.get("job")
    if row["state"] in ("done", "damaged") or not job:
        return str(row["state"]) + ("" if row["current"] else ", other settings")
    if job["state"] == "RUNNING" and row["state"] == "not run":
        return NOT_BEGUN
    if job["state"] in NOT_FAILURES and job["is_active"]:
        return NOT_FAILURES[job["state"]]
    word = str(job["state"]).lower().replace("_", " ")
    return f"{word} ({job['reason']})" if job["state"] == "PENDING" and job["reason"] else word


def watch(read: Iterator[list[dict]], console: Console) -> None:
    """Print the table every few seconds until no job is waiting or running."""
    for rows in read:
        if console.is_terminal:
            console.clear()
        status_table(rows, console)
        if not any(row["job"]["is_active"] for row in rows if "job" in row):
            return
        time.sleep(WATCH_S)


def logs_of(job: SubmittedJob) -> list[Path]:
    """The logs of all starts of a job, oldest first."""
    matches = {path: LOG.fullmatch(path.name) for path in job.folder.glob("*.log")}
    ours = [path for path, match in matches.items() if match and match.group(1) == job.id]

    # By number: as text, start 10 would come before start 2.
    return sorted(ours, key=lambda path: int(path.name.split(".")[1]))


def last_log(job: SubmittedJob) -> Path | None:
    """The log of the last start; what SLURM itself wrote where the job never got to its own."""
    starts = logs_of(job)
    log_of_slurm = job.folder / f"{job.id}_0_log.out"
    return starts[-1] if starts else log_of_slurm if log_of_slurm.exists() else None


def print_logs(job: SubmittedJob, follow: bool, console: Console) -> None:
    """Print the logs of a job, each start under its name; with `follow`, until the job has ended."""
    printed = dict[Path, int]()
    while True:
        is_over = not follow or not _is_active(job)  # asked first, so that the last lines are read

        # What SLURM itself wrote is complete when the job has ended, and is printed last.
        log_of_slurm = job.folder / f"{job.id}_0_log.out"
        last = [log_of_slurm] if is_over and log_of_slurm.exists() else []
        for path in (*logs_of(job), *last):
            if path not in printed:
                console.print(
                    f"[bold]==> {escape(str(path))} <==[/bold]", soft_wrap=True, highlight=False
                )

            # Only what is new since the last turn. Bytes, because a character may be cut in two.
            with path.open("rb") as file:
                file.seek(printed.get(path, 0))
                text = file.read()
            printed[path] = printed.get(path, 0) + len(text)
            if text:
                print(text.decode(errors="replace"), end="", flush=True)
        if is_over:
            return
        time.sleep(TAIL_S)


def _is_active(job: SubmittedJob) -> bool:
    state = job_states([job.id]).get(job.id)
    return state is not None and state.is_active


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
