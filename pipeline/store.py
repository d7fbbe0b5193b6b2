"""Outputs on disk: `<workspace>/<step>/<fingerprint>/`, finished if it holds record.json.

A step builds its output in a `.partial` sibling, which survives an interruption. At the end the
record is written into it, and the folder is renamed. A file lock per output keeps two runs on one
workspace from building the same output at once.
"""

import hashlib
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from cluster.files import sha256_file, sync, write_atomic
from cluster.storage import absolute
from curation.shards.manifest import MANIFEST, read_manifest
from curation.shards.manifest import verify as verify_shards
from pipeline.record import RECORD, DamagedOutputError, Record, read_record, write_record
from pipeline.step import Output, Step

LOCKS = ".locks"
PASSING = {
    "choices.jsonl",
    "error.txt",
    "failed.txt",
    "metrics.jsonl",
    "step.txt",
    "begun",
    "grow",
    "stop",
    "ray",
    "stalled",
}  # files and folders of a .partial folder that change although nothing more is finished
CHECKED_SHARE = 0.02  # checking an output before it is read may take this share of making it
CHECKED_BYTES_PER_S = 1e9  # sha256 on one core
CHECKED_LEAST_BYTES = 16e6  # always checked: takes milliseconds

logger = logging.getLogger(__name__)


class Store:
    """The outputs of one workspace."""

    def __init__(self, workspace: Path, run: str = "python -m pipeline run RECIPE") -> None:
        """`run`: the command that builds outputs here, for messages. ValueError where a file has the
        workspace's name.
        """
        self.workspace = workspace.resolve()
        self._run = run
        if self.workspace.is_file():
            raise ValueError(
                f"{self.workspace} is a file: the workspace needs a folder of this name; move the file "
                "away, or choose another folder with --workspace"
            )

    def folder(self, output: Step | Record) -> Path:
        """Final folder of a step's output, whether or not it exists."""
        if isinstance(output, Record):
            return self.workspace / output.step / output.fingerprint
        return self.workspace / output.name / output.fingerprint

    def partial(self, step: Step) -> Path:
        """The folder in which a step builds its output."""
        return self.folder(step).with_suffix(".partial")

    def make_places(self, steps: Sequence[Step]) -> None:
        """Make the folders of these steps, before anything runs.

        ValueError names a file that is in the place of a folder.
        """
        for name in (LOCKS, *dict.fromkeys(step.name for step in steps)):
            self.make_folder(self.workspace / name)

    def make_folder(self, folder: Path) -> None:
        """Make a folder of the workspace, and the folders above it.

        ValueError names a file that is in the place of a folder.
        """
        for path in (*reversed(folder.parents), folder):
            if path.is_relative_to(self.workspace) and path.exists() and not path.is_dir():
                raise ValueError(
                    f"{path} is a file: the workspace needs a folder of this name; move the file "
                    "away, or choose another folder with --workspace"
                )
        folder.mkdir(parents=True, exist_ok=True)

    def resolve(self, source: Output | Path) -> Path:
        """The path that a step receives for one of its inputs."""
        return (
            absolute(source) if isinstance(source, Path) else self.folder(source.step) / source.path
        )

    def record(self, step: Step) -> Record | None:
        """The record of a step's output; None if it is not finished."""
        return read_record(self.folder(step))

    def records(self) -> list[Record]:
        """The records of all finished outputs in the workspace, oldest first.

        A record that cannot be read is logged and left out.
        """
        readable = []
        for folder in self.finished_folders():
            try:
                readable.append(read_record(folder))
            except DamagedOutputError as error:
                logger.warning("%s", error)
        return sorted((record for record in readable if record), key=lambda record: record.finished)

    def finished_folders(self) -> list[Path]:
        """The folders of all finished outputs, sorted by step and fingerprint."""
        # A folder with a suffix, .partial or .replaced, is not final even if it has a record.
        folders = (path.parent for path in sorted(self.workspace.glob(f"*/*/{RECORD}")))
        return [folder for folder in folders if not folder.suffix]

    def finished_work(self, steps: Sequence[Step]) -> str:
        """A digest that changes when one of these steps is done, or has finished a part of its work:
        a shard, an iteration, a checkpoint.
        """
        digest = hashlib.sha256()
        for step in steps:
            digest.update(f"{step.label} {self.record(step) is not None}\n".encode())
            partial = self.partial(step)
            for path in sorted(partial.rglob("*")):
                place = path.relative_to(partial)
                if path.is_file() and not PASSING.intersection(place.parts):
                    digest.update(f"{place} {path.stat().st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def check_sizes(self, *steps: Step, forced: Sequence[str] = ()) -> None:
        """DamagedOutputError if a file of a finished output is missing or has another size.

        It names all such outputs, and as the remedy the command that rebuilds them, besides the
        steps that are `forced` already.
        """
        damaged = {}
        for step in steps:
            record = self.record(step)
            if record and (problems := damaged_files(self.folder(step), record)):
                damaged[step.label] = problems[0]
        self._refuse(damaged, forced)

    def check_content(self, step: Step) -> None:
        """DamagedOutputError if a file of a finished output has other bytes than recorded.

        Small files are checked first, and as many as fit in 2 % of the time that the output took to
        make. `verify` checks all.
        """
        folder = self.folder(step)
        record = self.record(step)
        if record is None:
            return

        problems = damaged_files(folder, record)
        checksums = {**record.checksums, **_shard_checksums(folder)}
        left = max(CHECKED_LEAST_BYTES, CHECKED_SHARE * record.seconds * CHECKED_BYTES_PER_S)

        for name in sorted(set(checksums) & set(record.files), key=lambda name: record.files[name]):
            left -= record.files[name]
            if problems or left < 0:
                break
            problems = changed_files(folder, {name: checksums[name]})

        if problems:
            self._refuse({step.label: problems[0]})

    def _refuse(self, damaged: Mapping[str, str], forced: Sequence[str] = ()) -> None:
        """DamagedOutputError if there are damaged outputs; `damaged` has a problem by step label."""
        if damaged:
            remedy = f"{self._run} --force {' '.join([*forced, *damaged])}"
            raise DamagedOutputError(
                f"{'; '.join(damaged.values())}: finished outputs must not change; rebuild with "
                f"`{remedy}`"
            )

    def verify(self, output: Step | Record) -> list[str]:
        """Every problem of a finished output, one line each; none if there is no output.

        It reads every byte once.
        """
        folder = self.folder(output)
        record = read_record(folder)
        if record is None:
            return []
        if problems := damaged_files(folder, record):
            return problems

        problems = changed_files(folder, record.checksums)
        shards = _shard_checksums(folder)
        problems += [
            f"{folder / name} has no sha256 in the record: it was added, or the record was edited"
            for name in list_files(folder)
            if name not in record.checksums and name not in shards
        ]

        if not record.seal:
            problems.append(
                f"{folder / RECORD} has no seal: it was edited, or written by an earlier version"
            )

        return problems + (verify_shards(folder) if (folder / MANIFEST).exists() else [])

    def commit(self, step: Step, record: Record) -> None:
        """Make the partial output final, after all of it is on disk."""
        partial = self.partial(step)
        final = self.folder(step)
        write_record(partial, record)
        for path in partial.rglob("*"):
            if path.is_file():
                sync(path)

        # A folder that is not empty cannot be replaced by a rename: the old output steps aside
        # first, and is deleted only when the new one has its name.
        replaced = final.with_suffix(".replaced")
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)  # left by a run that was killed right here
            final.rename(replaced)

        partial.rename(final)
        sync(final.parent)
        shutil.rmtree(replaced, ignore_errors=True)

    @contextmanager
    def claim(self, step: Step) -> Iterator[None]:
        """Hold the right to build this output while the body runs.

        If another run holds it, log once which one that is, and wait.
        """
        path = self.workspace / LOCKS / f"{step.name}-{step.fingerprint}"
        self.make_folder(path.parent)
        holder = path.with_suffix(".holder")
        lock = FileLock(path)

        try:
            lock.acquire(blocking=False)
        except Timeout:
            who = holder.read_text().strip() if holder.exists() else "another run"
            logger.warning("step %s is being built by %s: waiting for it to end", step.label, who)
            lock.acquire()

        try:
            write_atomic(
                holder,
                f"pid {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}",
            )
            yield
        finally:
            lock.release()


def list_files(folder: Path) -> dict[str, int]:
    """Relative path and bytes of every file below `folder`, sorted, without the record."""
    files = (
        path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / RECORD
    )
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder`, without the record and without shards.

    The checksums of shards are in the folder's manifest.
    """
    shards = _shard_checksums(folder)
    return {name: sha256_file(folder / name) for name in list_files(folder) if name not in shards}


def _shard_checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of the shards in a folder's manifest; none if it has no manifest."""
    try:
        return {entry.file: entry.sha256 for entry in read_manifest(folder).shards}
    except (ValueError, OSError):
        return {}


def damaged_files(folder: Path, record: Record) -> list[str]:
    """One line for every file that is missing or has another size than recorded."""
    problems = []
    for name, size in record.files.items():
        path = folder / name
        if not path.exists():
            problems.append(f"{path} is missing (recorded with {size} bytes)")
        elif path.stat().st_size != size:
            problems.append(f"{path} has {path.stat().st_size} bytes, recorded with {size}")
    return problems


def changed_files(folder: Path, recorded: Mapping[str, str]) -> list[str]:
    """One line for every file whose bytes have another SHA-256 than recorded."""
    return [
        f"{folder / name} has another sha256 than recorded: it was changed"
        for name, checksum in recorded.items()
        if sha256_file(folder / name) != checksum
    ]
