"""A folder or an uncompressed .tar, read as names to bytes.

Evaluation sets come as one or the other with the same layout inside, so everything above this module sees only names.
A tar is indexed once and then read by offset: any order costs the same.
"""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


class BenchmarkError(ValueError):
    """An evaluation set that is not what its layout promises."""


class Archive:
    """The files under one folder or tar, sorted by name; hidden files are left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offsets: dict[str, tuple[int, int]] = {}
        if path.is_dir():
            self.names = tuple(_visible(str(file.relative_to(path).as_posix()) for file in _walk(path)))
        elif path.is_file():
            self._offsets = _tar_index(path)
            self.names = tuple(_visible(self._offsets))
        else:
            raise BenchmarkError(f"no evaluation set at {path}: a folder or a .tar file is required; check the path")
        self._known = frozenset(self.names)

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def read(self, name: str) -> bytes:
        """The bytes of one file."""
        if name not in self._known:
            raise BenchmarkError(f"{self.path} has no file {name}: it is named there; add it or remove the mention")
        if not self._offsets:
            return (self.path / name).read_bytes()
        offset, size = self._offsets[name]
        with self.path.open("rb") as file:
            return os.pread(file.fileno(), size, offset)

    def images(self, folder: str = "") -> list[str]:
        """Names of the image files under `folder`, by suffix."""
        return [
            name
            for name in self.names
            if name.startswith(folder) and PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES
        ]

    def find(self, file_name: str) -> str | None:
        """The shortest name that ends in `file_name`, so that one enclosing folder does not matter."""
        found = [name for name in self.names if PurePosixPath(name).name == file_name]
        return min(found, key=lambda name: (name.count("/"), name), default=None)


def _walk(path: Path) -> Iterator[Path]:
    return (file for file in path.rglob("*") if file.is_file())


def _visible(names: Iterator[str] | dict[str, tuple[int, int]]) -> list[str]:
    return sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))


def _tar_index(path: Path) -> dict[str, tuple[int, int]]:
    try:
        with tarfile.open(path, "r:") as tar:
            members = [member for member in tar if member.isfile()]
    except tarfile.TarError as error:
        raise BenchmarkError(f"cannot read {path} ({error}): an uncompressed .tar is required; unpack it") from error
    return {member.name.removeprefix("./"): (member.offset_data, member.size) for member in members}
