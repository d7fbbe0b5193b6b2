"""Files by relative name, in a folder or in a tar, as byte ranges that any process can read.

Every layout with annotations is read through a tree. A folder and a tar of it therefore behave the
same, and nothing is unpacked.
"""

import posixpath
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from cluster.storage import files_below, kind_of
from curation.pairs.images import IMAGE_SUFFIXES
from curation.pairs.ranges import ByteRange
from curation.pairs.tars import tar_members
from curation.pairs.text import as_text


@dataclass(frozen=True)
class Tree:
    """Files by their POSIX name relative to the root (in the form of `as_text`), sorted."""

    root: Path
    is_file: bool
    files: dict[str, ByteRange]

    @property
    def name(self) -> str:
        """The root's own name."""
        return as_text(self.root.name)

    @cached_property
    def by_basename(self) -> dict[str, list[str]]:
        """Full names by their last part."""
        by_basename: dict[str, list[str]] = {}
        for name in self.files:
            by_basename.setdefault(PurePosixPath(name).name, []).append(name)
        return by_basename

    @cached_property
    def _by_form(self) -> dict[str, list[str]]:
        """Full names by their last part, and images also by its stem, in `_form`."""
        by_form: dict[str, list[str]] = {}
        for name in self.files:
            base = _form(posixpath.basename(name))
            stem, suffix = posixpath.splitext(base)
            by_form.setdefault(base, []).append(name)
            if suffix in IMAGE_SUFFIXES:
                by_form.setdefault(stem, []).append(name)
        return by_form

    def find(self, name: str, *folders: str) -> list[str]:
        """The files that a name in a list can mean: none if it is missing, several if ambiguous.

        The first of these rules that any file fits decides: the name in one of `folders`, in their
        order; the name from the root; the same without regard to case and Unicode form; every file
        whose path ends with the name, or whose whole path is the end of the name. A name without an
        image's suffix may mean an image with that stem.

        >>> tree.find("cats/1.jpg", "lists")    # files: data/cats/1.jpg, data/dogs/1.jpg
        ["data/cats/1.jpg"]
        >>> tree.find("1.jpg", "lists")
        ["data/cats/1.jpg", "data/dogs/1.jpg"]
        """
        spellings = (name, name.replace("\\", "/")) if "\\" in name else (name,)
        wanted = [
            posixpath.normpath(posixpath.join(folder, spelled))
            for spelled in spellings
            for folder in (*folders, "")
        ]
        for candidate in wanted:
            if candidate in self.files:
                return [candidate]

        # All other rules need the same last part, which the index finds at once.
        base = posixpath.basename(wanted[-1])
        alike = self._by_form.get(_form(base), []) if base else []
        for candidate in wanted:
            if same := [file for file in alike if _is_named(file, candidate)]:
                return same

        # A path from another machine may be longer than ours: /home/me/data/cats/1.jpg for
        # cats/1.jpg.
        parts = _parts(wanted[-1].removeprefix("/"))
        fitting = [
            file
            for file in alike
            if _is_tail(_parts(file), parts) or _is_tail(_parts(_stem(file)), parts)
        ]
        unquoted = unquote(name)  # names from addresses: my%20cat.jpg

        return fitting if fitting or unquoted == name else self.find(unquoted, *folders)

    def outermost(self, *basenames: str) -> str | None:
        """The file with one of these last parts that is nearest to the root; None without one."""
        names = [name for basename in basenames for name in self.by_basename.get(basename, [])]
        return min(names, key=lambda name: name.count("/"), default=None)

    def with_suffix(self, *suffixes: str) -> list[str]:
        """Names that end with one of the suffixes, without regard to case."""
        return [name for name in self.files if name.lower().endswith(suffixes)]


def _form(name: str) -> str:
    """The same form for names that differ only in case or in how accents are composed.

    macOS writes accents as characters of their own (NFD).
    """
    return unicodedata.normalize("NFC", name).casefold()


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0]


def _is_named(file: str, name: str) -> bool:
    return _form(name) in (_form(file), _form(_stem(file)))


def _parts(name: str) -> tuple[str, ...]:
    return tuple(_form(name).split("/"))


def _is_tail(left: tuple[str, ...], right: tuple[str, ...]) -> bool:
    """Whether the longer path ends with the whole shorter one."""
    common = min(len(left), len(right))
    return left[-common:] == right[-common:]


def open_tree(path: Path) -> Tree:
    """The tree of a folder or of an uncompressed tar; raises ValueError if there is neither."""
    kind = kind_of(path)
    if not kind:
        raise ValueError(
            f"{path} does not exist: a folder or an uncompressed .tar is required; correct the path"
        )
    if kind == "file":
        return Tree(
            path, True, dict(sorted((member.name, member.file) for member in tar_members(path)))
        )

    files = {
        as_text(name): ByteRange(where, 0, size) for name, where, size in sorted(files_below(path))
    }
    return Tree(path, False, files)
