"""Where outputs live: `<workspace>/<step>/<fingerprint>/`, done when it holds record.json, and not before.

A step builds in a `.partial` sibling that survives an interruption; the record is written into it and the folder is
renamed. A file lock per output keeps two runs on one workspace from building the same thing at once.
"""

import fcntl
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from cluster.files import sha256_file, sync, write_atomic
from cluster.storage import absolute
from curation.shards.manifest import MANIFEST, read_manifest
from curation.shards.manifest import verify as verify_shards
from pipeline.fingerprint import Json, fingerprint
from pipeline.step import Output, Step

log = logging.getLogger(__name__)

RECORD = "record.json"


class DamagedOutput(ValueError):
    """A finished output is not as its record says."""


@dataclass(frozen=True)
class Record:
    """What record.json holds: everything needed to say how an output came to be."""

    step: str
    label: str
    fingerprint: str
    config: Json
    inputs: dict[str, Json]
    summary: dict[str, float]
    commit: str
    dirty: bool
    environment: dict[str, str]
    command: str
    host: str
    started: str
    finished: str
    seconds: float
    files: dict[str, int]
    """Bytes of every file of the output."""
    choices: dict[str, str] = field(default_factory=dict)
    """What `auto` stood for on the machine that made the output, and why; of all machines that continued it."""
    checksums: dict[str, str] = field(default_factory=dict)
    """SHA-256 of every file but shards, whose manifest has theirs; none in records written before there were any."""


class Store:
    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace.resolve()

    def folder(self, output: Step | Record) -> Path:
        """Final place of what a step puts out, or has put out, there or not."""
        if isinstance(output, Record):
            return self.workspace / output.step / output.fingerprint
        return self.workspace / output.name / fingerprint(output)

    def partial(self, step: Step) -> Path:
        return self.folder(step).with_suffix(".partial")

    def resolve(self, source: Output | Path) -> Path:
        """Path that a step receives for one of its inputs."""
        return absolute(source) if isinstance(source, Path) else self.folder(source.step) / source.path

    def record(self, step: Step) -> Record | None:
        return read_record(self.folder(step))

    def records(self) -> list[Record]:
        """All finished outputs in the workspace, oldest first; a record that cannot be read is left out and logged."""
        found = []
        for folder in self.finished_folders():
            try:
                found.append(read_record(folder))
            except DamagedOutput as error:
                log.warning("%s", error)
        return sorted((record for record in found if record), key=lambda record: record.finished)

    def finished_folders(self) -> list[Path]:
        """Where the workspace has a record, by step and fingerprint."""
        folders = (path.parent for path in sorted(self.workspace.glob(f"*/*/{RECORD}")))
        return [folder for folder in folders if not folder.suffix]

    def check_sizes(self, *steps: Step, forced: Sequence[str] = ()) -> None:
        """DamagedOutput naming all finished outputs of which a file is missing or has another size than recorded.

        The remedy rebuilds them, and what is `forced` already.
        """
        damaged = {}
        for step in steps:
            record = self.record(step)
            if record and (problems := damaged_files(self.folder(step), record)):
                damaged[step.label] = problems[0]
        if damaged:
            remedy = f"rebuild with --force {' '.join([*forced, *damaged])}"
            raise DamagedOutput(f"{'; '.join(damaged.values())}: finished outputs must not change; {remedy}")

    def verify(self, output: Step | Record) -> list[str]:
        """Every problem of a finished output, one line each, none if it is not there; reads every byte once."""
        folder = self.folder(output)
        record = read_record(folder)
        if record is None:
            return []
        if problems := damaged_files(folder, record):
            return problems
        problems = [
            f"{folder / name} has another sha256 than recorded: it was changed"
            for name, checksum in record.checksums.items()
            if sha256_file(folder / name) != checksum
        ]
        return problems + (verify_shards(folder) if (folder / MANIFEST).exists() else [])

    def commit(self, step: Step, record: Record) -> None:
        """Make the partial output final: all of it is on disk before its name says that it is done."""
        partial, final = self.partial(step), self.folder(step)
        write_atomic(partial / RECORD, json.dumps(asdict(record), indent=1))
        for path in partial.rglob("*"):
            if path.is_file():
                sync(path)
        replaced = final.with_suffix(".replaced")
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)  # of a run that was killed between these lines
            final.rename(replaced)
        partial.rename(final)
        sync(final.parent)
        shutil.rmtree(replaced, ignore_errors=True)

    @contextmanager
    def claim(self, step: Step) -> Iterator[None]:
        """Hold the right to build this output; waits for another run that holds it, saying once who that is."""
        path = self.workspace / ".locks" / f"{step.name}-{fingerprint(step)}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+") as lock:
            said = False
            while not _try_lock(lock.fileno()):
                if not said:
                    lock.seek(0)
                    log.warning("step=%s is being built by %s: waiting for it", step.label, lock.read().strip())
                    said = True
                time.sleep(0.5)
            lock.truncate(0)
            lock.write(f"pid {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}")
            lock.flush()
            yield


def read_record(folder: Path) -> Record | None:
    """The record of a finished output; None where there is none. DamagedOutput if it cannot be read."""
    try:
        found = json.loads((folder / RECORD).read_text())
        return Record(**{item.name: found[item.name] for item in fields(Record) if item.name in found})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (TypeError, ValueError) as error:
        raise DamagedOutput(f"{folder / RECORD} cannot be read ({error}): delete {folder} and run again") from error


def list_files(folder: Path) -> dict[str, int]:
    """Relative path and bytes of every file below `folder`, sorted, without the record."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / RECORD)
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder` but the record and shards: those are in the folder's manifest."""
    shards = {entry.file for entry in read_manifest(folder).shards} if (folder / MANIFEST).exists() else set()
    return {name: sha256_file(folder / name) for name in list_files(folder) if name not in shards}


def damaged_files(folder: Path, record: Record) -> list[str]:
    """One line for every file that is missing or has another size than its record says."""
    problems = []
    for name, size in record.files.items():
        path = folder / name
        if not path.exists():
            problems.append(f"{path} is missing (recorded with {size} bytes)")
        elif path.stat().st_size != size:
            problems.append(f"{path} has {path.stat().st_size} bytes, recorded with {size}")
    return problems


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
