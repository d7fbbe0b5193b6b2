"""The user's data, read from shared disks or from an object store (s3://, gs://, abfs://).

A URI is kept as a Path, which writes it with one slash (s3:/bucket/key), so that steps need to know
paths only. Objects are read in blocks, and a process keeps the last few, because samples of a tar
follow each other. Credentials are found in the same way as by each store's own tools;
`AWS_ENDPOINT_URL` names an S3 service other than Amazon's.
"""

import errno
import io
import os
import stat
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import quote, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

SCHEMES = ("s3", "gs", "abfs")
BLOCK_BYTES = 8_000_000
KEPT_BLOCKS = 8  # 64 MB per process
LOST_AND_FOUND = "lost+found"  # at the root of an ext4 disk; only root may read it
KINDS: dict[pafs.FileType, Literal["file", "folder", ""]] = {
    pafs.FileType.File: "file",
    pafs.FileType.Directory: "folder",
}


def is_remote(path: Path | str) -> bool:
    """Whether a path is the URI of an object store."""
    return str(path).partition(":/")[0] in SCHEMES


def absolute(path: Path) -> Path:
    """The path made absolute without following links, because a link's own suffix counts."""
    return path if is_remote(path) else Path(os.path.abspath(path))


def kind_of(path: Path) -> Literal["file", "folder", ""]:
    """Whether a path is a file or a folder; "" if it does not exist. OSError if access fails."""
    if is_remote(path):
        store, inner = _store(str(path))
        return KINDS.get(store.get_file_info(inner).type, "")
    return "file" if path.is_file() else "folder" if path.is_dir() else ""


def size_of(path: Path) -> int:
    """Bytes of a file."""
    if is_remote(path):
        store, inner = _store(str(path))
        return store.get_file_info(inner).size
    return path.stat().st_size


def files_below(folder: Path) -> Iterator[tuple[str, str, int]]:
    """(name relative to the folder, path, bytes) of every file that is not hidden, in any order."""
    found = _objects_below(folder) if is_remote(folder) else _files_below(folder)
    return (file for file in found if not any(part.startswith(".") for part in file[0].split("/")))


def _objects_below(folder: Path) -> Iterator[tuple[str, str, int]]:
    store, inner = _store(str(folder))
    for found in store.get_file_info(pafs.FileSelector(inner, recursive=True)):
        if found.type == pafs.FileType.File:
            name = PurePosixPath(found.path).relative_to(inner).as_posix()
            yield name, str(folder / name), found.size


def _files_below(folder: Path) -> Iterator[tuple[str, str, int]]:
    """Files of a disk. Links are followed, except links to a folder that contains them."""
    # Each waiting folder has the identities of all folders above it: a link to one of them would
    # be a cycle.
    waiting = [(str(folder), {_identity(folder.stat())})]
    while waiting:
        path, above = waiting.pop()
        for entry, found in _entries(path):
            if stat.S_ISREG(found.st_mode):
                yield Path(entry.path).relative_to(folder).as_posix(), entry.path, found.st_size
            elif stat.S_ISDIR(found.st_mode) and _identity(found) not in above:
                waiting.append((entry.path, above | {_identity(found)}))


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _entries(folder: str) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
    """The visible entries of a folder; a link has the stat of its target.

    ValueError if the user may not read the folder.
    """
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                is_shown = not entry.name.startswith(".") and entry.name != LOST_AND_FOUND
                if is_shown and (found := _found(entry)):
                    yield entry, found
    except PermissionError as error:
        raise ValueError(
            f"{error.filename} may not be read by this user: all folders of the data must be "
            "readable; change its permissions, or name a folder that does not contain it"
        ) from error


def _found(entry: os.DirEntry[str]) -> os.stat_result | None:
    """The stat of an entry's target; None for a link to nowhere, or to itself."""
    try:
        return entry.stat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
        return None


def read_range(path: str, offset: int, size: int) -> bytes:
    """`size` bytes of a file from an offset, fewer at its end. FileNotFoundError without a file."""
    if not is_remote(path):
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)

    # All blocks that the range touches, joined, and the range cut out of them.
    first = offset // BLOCK_BYTES
    last = max(offset, offset + size - 1) // BLOCK_BYTES
    blocks = b"".join(_block(path, index) for index in range(first, last + 1))
    start = offset - first * BLOCK_BYTES

    return blocks[start : start + size]


@lru_cache(maxsize=KEPT_BLOCKS)
def _block(path: str, index: int) -> bytes:
    """Block number `index` of an object; the last one is shorter, and those after it are empty."""
    with open_arrow(path) as file:
        return file.read_at(
            min(BLOCK_BYTES, max(0, file.size() - index * BLOCK_BYTES)), index * BLOCK_BYTES
        )


def open_file(path: Path) -> io.BufferedReader:
    """A file to read and seek in."""
    return io.BufferedReader(_Object(path)) if is_remote(path) else path.open("rb")


class _Object(io.RawIOBase):
    """An object of a store as a Python file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.size = size_of(path)
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = (
            offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        )
        return self.position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = read_range(
            self.path, self.position, min(len(buffer), max(0, self.size - self.position))
        )
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


def open_arrow(path: Path | str) -> pa.NativeFile:
    """A file for pyarrow's readers. FileNotFoundError if it does not exist."""
    if is_remote(path):
        store, inner = _store(str(path))
        return store.open_input_file(inner)
    return pa.OSFile(str(path))


def _store(path: str) -> tuple[pafs.FileSystem, str]:
    """The store that holds a path, and the path in it."""
    scheme, _, inner = path.partition(":/")
    inner = inner.strip("/")
    return _connection(scheme, inner.partition("/")[0]), inner


@lru_cache
def _connection(scheme: str, bucket: str) -> pafs.FileSystem:
    """One connection per bucket and process."""
    options = ""

    # pyarrow takes another S3 service, and its region, as parts of the URI.
    endpoint = urlsplit(os.environ.get("AWS_ENDPOINT_URL", ""))
    if scheme == "s3" and endpoint.netloc:
        region = os.environ.get("AWS_REGION", os.environ.get("AWS_DEFAULT_REGION", "us-east-1"))
        options = f"?endpoint_override={endpoint.netloc}&scheme={endpoint.scheme}&region={region}"
    store, _ = pafs.FileSystem.from_uri(f"{scheme}://{quote(bucket)}{options}")
    return store
