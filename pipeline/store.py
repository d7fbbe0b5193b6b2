"""Where outputs live: `<workspace>/<step>/<fingerprint>/`, done when it holds record.json, and not
before.

A step builds in a `.partial` sibling that survives an interruption; the record is written into it
and the folder is renamed. A file lock per output keeps two runs on one workspace from building the
same thing at once.
"""

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
CHECKED_SHARE = (
    0.02  # of the time that an output took to make: what checking it before it is read may cost
)
CHECKED_BYTES_PER_S = 1e9  # sha256 of one core
CHECKED_LEAST_BYTES = 16e6  # milliseconds

logger = logging.getLogger(__name__)


class Store:
    """The outputs of one workspace."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace.resolve()

    def folder(self, output: Step | Record) -> Path:
        """Final place of what a step puts out, or has put out, there or not."""
        if isinstance(output, Record):
            return self.workspace / output.step / output.fingerprint
        return self.workspace / output.name / output.fingerprint

    def partial(self, step: Step) -> Path:
        """Where a step builds its output."""
        return self.folder(step).with_suffix(".partial")

    def make_places(self, steps: Sequence[Step]) -> None:
        """Make the folders of these steps before hours are spent. ValueError names a file that lies
        in place of one.
        """
        for name in (LOCKS, *dict.fromkeys(step.name for step in steps)):
            self.make_folder(self.workspace / name)

    def make_folder(self, folder: Path) -> None:
        """Make a folder of the workspace. ValueError names the file that lies where a folder is
        needed.
        """
        for path in (*reversed(folder.parents), folder):
            if path.is_relative_to(self.workspace) and path.exists() and not path.is_dir():
                raise ValueError(
                    f"{path} is a file: the workspace needs a folder of this name; move the file "
                    "away, or choose another folder with --workspace"
                )
        folder.mkdir(parents=True, exist_ok=True)

    def resolve(self, source: Output | Path) -> Path:
        """Path that a step receives for one of its inputs."""
        return (
            absolute(source) if isinstance(source, Path) else self.folder(source.step) / source.path
        )

    def record(self, step: Step) -> Record | None:
        """The record of a step's output; None where it is not finished."""
        return read_record(self.folder(step))

    def records(self) -> list[Record]:
        """All finished outputs in the workspace, oldest first; a record that cannot be read is left
        out and logged.
        """
        readable = []
        for folder in self.finished_folders():
            try:
                readable.append(read_record(folder))
            except DamagedOutputError as error:
                logger.warning("%s", error)
        return sorted((record for record in readable if record), key=lambda record: record.finished)

    def finished_folders(self) -> list[Path]:
        """Where the workspace has a record, by step and fingerprint."""
        folders = (path.parent for path in sorted(self.workspace.glob(f"*/*/{RECORD}")))
        return [folder for folder in folders if not folder.suffix]

    def check_sizes(self, *steps: Step, forced: Sequence[str] = ()) -> None:
        """DamagedOutputError naming all finished outputs of which a file is missing or has another
        size than recorded.

        The remedy rebuilds them, and what is `forced` already.
        """
        damaged = {}
        for step in steps:
            record = self.record(step)
            if record and (problems := damaged_files(self.folder(step), record)):
                damaged[step.label] = problems[0]
        _refuse(damaged, forced)

    def check_content(self, step: Step) -> None:
        """DamagedOutputError when a file of a finished output has other bytes than recorded.

        Small files come first, as many as two hundredths of the time that the output took to make
        allow.
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
            _refuse({step.label: problems[0]})

    def verify(self, output: Step | Record) -> list[str]:
        """Every problem of a finished output, one line each, none if it is not there; reads every
        byte once.
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
        """Make the partial output final: all of it is on disk before its name says that it is
        done.
        """
        partial = self.partial(step)
        final = self.folder(step)
        write_record(partial, record)
        for path in partial.rglob("*"):
            if path.is_file():
                sync(path)

        replaced = final.with_suffix(".replaced")
        if final.exists():
            shutil.rmtree(
                replaced, ignore_errors=True
            )  # of a run that was killed between these lines
            final.rename(replaced)

        partial.rename(final)
        sync(final.parent)
        shutil.rmtree(replaced, ignore_errors=True)

    @contextmanager
    def claim(self, step: Step) -> Iterator[None]:
        """Hold the right to build this output; waits for another run that holds it, saying once who
        that is.
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


def _refuse(damaged: Mapping[str, str], forced: Sequence[str] = ()) -> None:
    """DamagedOutputError for damaged outputs, by the labels of their steps."""
    if damaged:
        remedy = f"rebuild with --force {' '.join([*forced, *damaged])}"
        raise DamagedOutputError(
            f"{'; '.join(damaged.values())}: finished outputs must not change; {remedy}"
        )


def list_files(folder: Path) -> dict[str, int]:
    """Relative path and bytes of every file below `folder`, sorted, without the record."""
    files = (
        path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / RECORD
    )
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder` but the record and shards: those are in the folder's
    manifest.
    """
    shards = _shard_checksums(folder)
    return {name: sha256_file(folder / name) for name in list_files(folder) if name not in shards}


def _shard_checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of the shards that a folder's manifest lists; none where it cannot be read."""
    try:
        return {entry.file: entry.sha256 for entry in read_manifest(folder).shards}
    except (ValueError, OSError):
        return {}


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


def changed_files(folder: Path, recorded: Mapping[str, str]) -> list[str]:
    """One line for every file whose bytes have another SHA-256 than recorded."""
    return [
        f"{folder / name} has another sha256 than recorded: it was changed"
        for name, checksum in recorded.items()
        if sha256_file(folder / name) != checksum
    ]
