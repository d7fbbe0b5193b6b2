"""What users bring, read where it lies: on disks that all nodes see, or in an object store (s3://,
gs://, abfs://).

A URI is held as a Path, which writes it with one slash (s3:/bucket/key), so that steps know paths
alone. Objects are read in blocks, of which a process keeps the last few: samples of a tar follow
each other. Credentials are found as each store's own tools find them; `AWS_ENDPOINT_URL` names an
S3 other than Amazon's.
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
KEPT_BLOCKS = 8
LOST_AND_FOUND = "lost+found"  # at the root of a disk, for root alone
KINDS: dict[pafs.FileType, Literal["file", "folder", ""]] = {
    pafs.FileType.File: "file",
    pafs.FileType.Directory: "folder",
}


def is_remote(path: Path | str) -> bool:
    """Whether a path is the URI of an object store."""
    return str(path).partition(":/")[0] in SCHEMES


def absolute(path: Path) -> Path:
    """The same place from any working directory, under the name it was given: a link keeps its own
    suffix.
    """
    return path if is_remote(path) else Path(os.path.abspath(path))


def kind_of(path: Path) -> Literal["file", "folder", ""]:
    """What is there; "" for nothing. OSError when the store refuses to say."""
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
    """(name relative to the folder, path, bytes) of every file, hidden ones left out."""
    found = _objects_below(folder) if is_remote(folder) else _files_below(folder)
    return (file for file in found if not any(part.startswith(".") for part in file[0].split("/")))


def _objects_below(folder: Path) -> Iterator[tuple[str, str, int]]:
    store, inner = _store(str(folder))
    for found in store.get_file_info(pafs.FileSelector(inner, recursive=True)):
        if found.type == pafs.FileType.File:
            name = PurePosixPath(found.path).relative_to(inner).as_posix()
            yield name, str(folder / name), found.size


def _files_below(folder: Path) -> Iterator[tuple[str, str, int]]:
    """Links are followed, but for those back to a folder that they lie in."""
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
    """What a folder shows, a link as what it leads to; ValueError when this user may not read
    it.
    """
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                is_shown = not entry.name.startswith(".") and entry.name != LOST_AND_FOUND
                if is_shown and (found := _found(entry)):
                    yield entry, found
    except PermissionError as error:
        raise ValueError(
            f"{error.filename} may not be read by this user: all folders of the data must be; "
            "change its rights, or give a folder that does not hold it"
        ) from error


def _found(entry: os.DirEntry[str]) -> os.stat_result | None:
    """None for a link to nowhere, or to itself."""
    try:
        return entry.stat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
        return None


def read_range(path: str, offset: int, size: int) -> bytes:
    """Bytes of a file from an offset; fewer where it ends. FileNotFoundError when it is not
    there.
    """
    if not is_remote(path):
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)

    first = offset // BLOCK_BYTES
    last = max(offset, offset + size - 1) // BLOCK_BYTES
    blocks = b"".join(_block(path, index) for index in range(first, last + 1))
    start = offset - first * BLOCK_BYTES

    return blocks[start : start + size]


@lru_cache(maxsize=KEPT_BLOCKS)
def _block(path: str, index: int) -> bytes:
    with open_arrow(path) as file:
        return file.read_at(
            min(BLOCK_BYTES, max(0, file.size() - index * BLOCK_BYTES)), index * BLOCK_BYTES
        )


def open_file(path: Path) -> io.BufferedReader:
    """A file to read and seek in."""
    return io.BufferedReader(_Object(path)) if is_remote(path) else path.open("rb")


class _Object(io.RawIOBase):
    """An object of a store as a file of Python's."""

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
    """A file for readers of pyarrow. FileNotFoundError when it is not there."""
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
    """One connection a bucket and process."""
    options = ""
    endpoint = urlsplit(os.environ.get("AWS_ENDPOINT_URL", ""))
    if scheme == "s3" and endpoint.netloc:
        region = os.environ.get("AWS_REGION", os.environ.get("AWS_DEFAULT_REGION", "us-east-1"))
        options = f"?endpoint_override={endpoint.netloc}&scheme={endpoint.scheme}&region={region}"
    store, _ = pafs.FileSystem.from_uri(f"{scheme}://{quote(bucket)}{options}")
    return store
