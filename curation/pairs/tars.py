"""Members of an uncompressed tar as byte ranges; links and sparse members are resolved."""

import io
import posixpath
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from cluster.storage import is_remote, open_arrow, open_file
from curation.pairs.ranges import ByteRange
from curation.pairs.text import as_text

PADDING_BYTES = 1 << 20
MOST_LINKS = 40  # of a chain, which is Linux's limit


class Member(NamedTuple):
    """One visible file of a tar."""

    name: str
    file: ByteRange
    """Where its bytes are; for a link, those of its target."""
    position: int
    """Where its own header begins: members are in the order of their positions."""


def tar_members(path: Path) -> Iterator[Member]:
    """Every visible file of a tar, in the order of the tar.

    A link has the bytes of the member that it leads to; a link that leads out of the tar is left
    out. Raises ValueError when the tar is compressed, truncated or no tar.
    """
    links: _Links | None = None
    for member in _headers(path):
        name = _visible_name(member.name)
        if not name:
            continue
        if member.isfile():
            yield Member(as_text(name), _range(path, member), member.offset)
        elif member.islnk() or member.issym():
            # A link may lead to a later member, so the first link makes an index of the whole tar.
            links = links or _Links(path)
            if target := links.resolve(name):
                yield Member(as_text(name), target, member.offset)


def _visible_name(name: str) -> str:
    """The name without ./ and double slashes; empty for hidden files (.DS_Store, ._1.jpg)."""
    name = posixpath.normpath(name).lstrip("/")
    is_hidden = any(part.startswith(".") and part != ".." for part in name.split("/"))
    return "" if is_hidden else name


def _range(path: Path, member: tarfile.TarInfo) -> ByteRange:
    sparse: list[tuple[int, int]] | None = member.sparse  # type: ignore[assignment]  # typeshed says otherwise
    pieces = None if sparse is None else tuple(sparse)
    return ByteRange(str(path), member.offset_data, member.size, pieces)


def _headers(path: Path) -> Iterator[tarfile.TarInfo]:
    try:
        with open_file(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                yield member
                archive.members = []  # type: ignore[attr-defined]  # the index would grow with the archive
            _check_end(file, archive.offset)
    except tarfile.TarError as error:
        raise _damaged(path, error) from error


class _Links:
    """All files and links of one tar, by name."""

    def __init__(self, path: Path) -> None:
        self.files: dict[str, ByteRange] = {}
        self.targets: dict[str, str] = {}
        for member in _headers(path):
            name = posixpath.normpath(member.name).lstrip("/")
            if member.isfile():
                self.files[name] = _range(path, member)
            # A hard link names its target from the root of the tar, a symbolic one from its folder.
            elif member.islnk():
                self.targets[name] = posixpath.normpath(member.linkname).lstrip("/")
            elif member.issym():
                self.targets[name] = posixpath.normpath(
                    posixpath.join(posixpath.dirname(name), member.linkname)
                )

    def resolve(self, name: str) -> ByteRange | None:
        """The file at the end of a chain of links; None if it leads nowhere or in a circle."""
        for _ in range(MOST_LINKS):
            if name in self.files:
                return self.files[name]
            if name not in self.targets:
                return None
            name = self.targets[name]
        return None


def peek(path: Path, num_members: int) -> list[str]:
    """Names of the first visible members, read in small pieces; empty if the tar is damaged."""
    names: list[str] = []
    with open_arrow(path) if is_remote(path) else path.open("rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    name = _visible_name(member.name)
                    if name and not member.isdir():
                        names.append(as_text(name))
                    if len(names) == num_members:
                        break
        except tarfile.TarError:
            return []  # reading it names what is wrong
    return names


def check_tar_end(path: Path) -> None:
    """Raise ValueError when a tar is truncated. One small read: a whole tar ends with zeros."""
    with open_arrow(path) if is_remote(path) else path.open("rb") as file:
        try:
            _check_end(file, max(0, file.seek(0, io.SEEK_END) - tarfile.BLOCKSIZE))
        except tarfile.TarError as error:
            raise _damaged(path, error) from error


def _check_end(file: io.BufferedReader | pa.NativeFile, offset: int) -> None:
    """Raise ReadError unless a block of zeros, and only zeros, follow from `offset` to the end.

    tarfile itself stops silently at whatever is not a header.
    """
    file.seek(offset)
    tail = file.read(tarfile.BLOCKSIZE)
    if tail.strip(b"\0") or len(tail) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"neither a header nor the end mark at byte {offset}")

    while padding := file.read(PADDING_BYTES):
        if padding.strip(b"\0"):
            raise tarfile.ReadError(
                f"more follows its end mark at byte {offset}, as where tars were joined by cat: "
                "unpack it with tar --ignore-zeros and pack it again"
            )


def _damaged(path: Path, error: tarfile.TarError) -> ValueError:
    return ValueError(
        f"{path} cannot be read as a tar ({error}): it must be whole and uncompressed, since "
        "files are read in place; unpack compressed archives, download cut ones again"
    )
