"""Files that are complete or absent: atomic writes, checksums, JSON lines.

A file appears under its name only when all of it is on disk. A process that is killed half-way
leaves at most a hidden `.name.*.tmp` beside it, which no reader opens and the next run of the step
removes.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder that takes the place of `path` when the body succeeds.

    The file is synced before the rename and the folder after it. When the body fails, `path` is as
    it was.
    """
    temporary = temporary_beside(path)
    try:
        yield temporary
        put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_beside(path: Path) -> Path:
    """A hidden path in the same folder that nobody else uses; `remove_torn` removes such files."""
    # In the same folder, because a rename is atomic only within one file system.
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def put_in_place(temporary: Path, path: Path) -> None:
    """Give a complete file its name, so that a power cut leaves the old file or the new one."""
    # The bytes must be on disk before the name is, and then the folder that holds the name.
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def remove_torn(folder: Path) -> None:
    """Remove the half-written files of killed processes, in a folder and below.

    No process may be writing there.
    """
    for torn in folder.rglob(".*.tmp"):
        torn.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Return when a file, or the names in a folder, are on disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write `data` (text as UTF-8); after a crash, `path` holds all of it or its old content."""
    with replacing(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def append_jsonl(path: Path, *rows: Mapping[str, object]) -> None:
    """Append one JSON line per row; only one process may write at a time.

    A last line without its newline, left by a killed process, is cut off first.
    """
    with path.open("a+b") as file:
        file.truncate(_end_of_last_line(path))
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def _end_of_last_line(path: Path, block_bytes: int = 1 << 16) -> int:
    """Offset after the last newline; 0 without one."""
    with path.open("rb") as file:
        # From the end in blocks, because the file of a long run is large.
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - block_bytes)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0


def read_jsonl(path: Path) -> list[dict]:
    """The rows of a JSON-lines file, none without a file; an incomplete last line is ignored."""
    if not path.exists():
        return []
    complete = path.read_bytes()[: _end_of_last_line(path)]
    return [json.loads(line) for line in complete.decode().split("\n") if line.strip()]
