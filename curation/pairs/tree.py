"""Files by relative name, in a folder or inside one uncompressed tar, each as a byte range that any process can read.

Annotated data sets (Karpathy, COCO, folder with captions) are read through a tree, so that a folder and a tar of it are
the same thing: nothing is unpacked.
"""

import io
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pyarrow as pa

from cluster.storage import files_below, is_remote, kind_of, open_arrow, open_file, read_range

PADDING_BYTES = 1 << 20


class ByteRange(NamedTuple):
    """Where the bytes of one file are: a whole file, or a member of a tar."""

    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        """All bytes; shorter than `size` when the file has been cut."""
        return read_range(self.path, self.offset, self.size)


@dataclass(frozen=True)
class Tree:
    """Files by `as_text` of their POSIX name relative to the root, sorted."""

    root: Path
    is_file: bool
    files: dict[str, ByteRange]
    by_basename: dict[str, list[str]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        by_basename: dict[str, list[str]] = {}
        for name in self.files:
            by_basename.setdefault(PurePosixPath(name).name, []).append(name)
        object.__setattr__(self, "by_basename", by_basename)

    @property
    def name(self) -> str:
        """The root's own name."""
        return as_text(self.root.name)

    def find(self, name: str, near: str = "") -> ByteRange | None:
        """A file by its name in an annotation file that lies in folder `near`.

        Looked for beside the annotations, as given, then anywhere: the one file whose path ends in the whole name, or
        whose whole path ends the name.
        """
        for candidate in (posixpath.normpath(posixpath.join(near, name)), name):
            if candidate in self.files:
                return self.files[candidate]
        parts = PurePosixPath(name).parts
        same_name = self.by_basename.get(parts[-1], []) if parts else []
        fitting = [found for found in same_name if _is_tail(PurePosixPath(found).parts, parts)]
        return self.files[fitting[0]] if len(fitting) == 1 else None

    def outermost(self, *basenames: str) -> str | None:
        """The file of one of these names that is nearest the root."""
        names = [name for basename in basenames for name in self.by_basename.get(basename, [])]
        return min(names, key=lambda name: name.count("/"), default=None)

    def with_suffix(self, *suffixes: str) -> list[str]:
        """Names that end in one of the suffixes, in any case."""
        return [name for name in self.files if name.lower().endswith(suffixes)]


def _is_tail(left: tuple[str, ...], right: tuple[str, ...]) -> bool:
    """Whether the longer path ends in the whole of the shorter one."""
    common = min(len(left), len(right))
    return left[-common:] == right[-common:]


def as_text(name: str) -> str:
    """A file's name as UTF-8 can hold it: bytes of another encoding are spelled out, as in caf\\udce9.jpg."""
    return name.encode("utf-8", "backslashreplace").decode()


def open_tree(path: Path) -> Tree:
    """The tree of a folder or of an uncompressed tar; ValueError when there is neither."""
    kind = kind_of(path)
    if not kind:
        raise ValueError(f"{path} does not exist: a folder or an uncompressed .tar is needed; correct the path")
    if kind == "file":
        return Tree(path, True, dict(sorted(tar_members(path))))
    files = {as_text(name): ByteRange(where, 0, size) for name, where, size in sorted(files_below(path))}
    return Tree(path, False, files)


def tar_members(path: Path) -> Iterator[tuple[str, ByteRange]]:
    """Every regular, visible file of a tar, in its order; ValueError when it is compressed, cut or no tar."""
    try:
        with open_file(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if member.isfile() and not any(part.startswith(".") for part in name.split("/")):
                    yield as_text(name), ByteRange(str(path), member.offset_data, member.size)
                archive.members = []  # type: ignore[attr-defined]  # the index would grow with the archive
            _check_end(file, archive.offset)
    except tarfile.TarError as error:
        raise _damaged(path, error) from error


def check_tar_end(path: Path) -> None:
    """ValueError when a tar has been cut: a whole one ends in zeros. One small read, without its headers."""
    with open_arrow(path) if is_remote(path) else path.open("rb") as file:
        try:
            _check_end(file, max(0, file.seek(0, io.SEEK_END) - tarfile.BLOCKSIZE))
        except tarfile.TarError as error:
            raise _damaged(path, error) from error


def _check_end(file: io.BufferedReader | pa.NativeFile, offset: int) -> None:
    """What follows the last member is zeros alone, a block at least; tarfile itself is silent about anything else."""
    file.seek(offset)
    tail = file.read(tarfile.BLOCKSIZE)
    if tail.strip(b"\0") or len(tail) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"neither a header nor the end mark at byte {offset}")
    while padding := file.read(PADDING_BYTES):
        if padding.strip(b"\0"):
            raise tarfile.ReadError(
                f"more follows its end mark at byte {offset}, as where tars were joined by cat: unpack it with "
                "tar --ignore-zeros and pack it again"
            )


def _damaged(path: Path, error: tarfile.TarError) -> ValueError:
    return ValueError(
        f"{path} cannot be read as a tar ({error}): it must be whole and uncompressed, since files are read in place; "
        "unpack compressed archives, fetch cut ones again"
    )
