"""Lists of captions to pairs: names are looked up in the tree, and captions of an image are joined.

Several lists are read together. An image that two lists name is one pair with the captions of both.
Bad records become pairs with a problem, so that they are counted as rejects.
"""

import os
import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from cluster.storage import is_remote, kind_of, size_of
from curation.pairs.config import SourceConfig
from curation.pairs.ranges import ByteRange
from curation.pairs.records import CaptionList, Entry
from curation.pairs.sample import Pair, Problem
from curation.pairs.text import as_text, clean_captions
from curation.pairs.tree import Tree

FILES_SHOWN = 3
NAME_SHOWN = 100  # characters
_DUPLICATE = Problem("duplicate key", "an earlier record has this key")


@dataclass
class ListedPairs:
    """The pairs of all lists of a source, and what the account says about them."""

    pairs: dict[str, list[Pair]] = field(default_factory=dict)
    """By list, in the order of its records; the rejected records follow the pairs."""
    used: set[str] = field(default_factory=set)
    """Files of the tree that are images of a pair, usable or not."""
    other_split: set[str] = field(default_factory=set)
    """Images that a list assigns to another split."""
    splits: set[str] = field(default_factory=set)
    """Splits that the records name."""
    outside: list[str] = field(default_factory=list)
    """Names of images that lie outside the source."""
    num_of_other: int = 0
    """Records without a split whose image another list assigns to another split. They are not read.
    Example: COCO's own lists beside Karpathy's, who divided the same images in another way.
    """
    num_joined: int = 0
    """Records whose image belongs to a pair of an earlier list."""


class _Match(NamedTuple):
    """What the name of an image in a list means: files of the tree, or one file outside of it."""

    files: list[str]
    outside: ByteRange | None = None
    is_exact: bool = False
    """Whether the name is the file's whole path, from the root or from the list's folder."""
    is_longer: bool = False
    """Whether the name has folders that the file does not have."""

    def __bool__(self) -> bool:
        return bool(self.files) or self.outside is not None


class _Lookup:
    """Finds the images of a tree by the names in one list."""

    def __init__(self, tree: Tree, list_name: str) -> None:
        self.tree = tree
        self.root = "" if tree.is_file else f"{os.path.abspath(tree.root)}/"
        self.near = posixpath.dirname(list_name)
        self.words = set(re.split(r"[_.\- ]", posixpath.basename(list_name).lower()))

    def match(self, name: str) -> _Match:
        """The files that a name can mean: one if it is clear, several if it is ambiguous."""
        inside = name.removeprefix(self.root)
        normal = posixpath.normpath(posixpath.join(self.near, inside))
        if inside.startswith("/") or normal.startswith("../") or is_remote(name):
            outside = self._outside(name)
            if outside is not None:
                return _Match([], outside)

        # captions_train2017.json means the images of a folder train2017/, if several folders have
        # images of the same name.
        files = self.tree.find(inside, self.near)
        hinted = [file for file in files if self.words.intersection(file.lower().split("/")[:-1])]
        files = hinted if len(files) > 1 and len(hinted) == 1 else files

        # A list that lies beside other data means the images below its own folder.
        below = [file for file in files if file.startswith(f"{self.near}/")] if self.near else []
        files = below if len(files) > 1 and below else files
        is_exact = bool(files) and files[0] in (normal, posixpath.normpath(inside))
        is_longer = (
            bool(files) and not is_exact and normal.strip("/").count("/") > files[0].count("/")
        )

        return _Match(files, None, is_exact, is_longer)

    def _outside(self, name: str) -> ByteRange | None:
        """The file that a list names by an absolute path, or by a path out of the source."""
        if self.tree.is_file and not name.startswith("/"):
            return None

        path = (
            Path(name)
            if is_remote(name)
            else Path(os.path.normpath(self.tree.root / self.near / name))
        )

        try:
            return ByteRange(str(path), 0, size_of(path)) if kind_of(path) == "file" else None
        except (OSError, ValueError):  # a name that no file can have
            return None


def listed_pairs(tree: Tree, lists: Sequence[CaptionList], config: SourceConfig) -> ListedPairs:
    """The pairs of all lists that belong to the wanted split.

    A key is the image's name as listed. If there are lists in several folders, the list's folder
    comes before it. Lists whose records have splits are read first, because they decide the split
    of images that other lists name without one.
    """
    folders = {posixpath.dirname(one.name) for one in lists}
    joining = _Joining(tree, config, len(folders) > 1)
    for one in sorted(lists, key=lambda one: not any(entry.split for entry in one.entries)):
        joining.add(one)
    joining.reject_stand_ins()
    return joining.listed


class _Joining:
    """Reads lists one after the other. A later list may add captions to pairs of an earlier one."""

    def __init__(self, tree: Tree, config: SourceConfig, has_folders: bool) -> None:
        self.tree = tree
        self.config = config
        self.has_folders = has_folders
        self.listed = ListedPairs()
        self.pair_of: dict[str, tuple[str, int]] = {}
        """By file, the list and the index of its pair."""
        self.exact: set[str] = set()
        """Files that a list names by their whole path."""
        self.longer: dict[str, dict[str, tuple[str, int]]] = {}
        """By file, the names with folders that the file does not have, and their pairs."""

    def add(self, one: CaptionList) -> None:
        """Read one list; its rejected records follow its pairs."""
        lookup = _Lookup(self.tree, one.name)
        folder = posixpath.dirname(one.name)
        prefix = f"{folder}/" if self.has_folders and folder else ""
        pairs: list[Pair] = []
        rejected: list[Pair] = []
        by_key: dict[str, int] = {}
        self.listed.pairs[one.name] = pairs

        for entry in one.entries:
            is_wanted = self.config.wants_split(entry.split)
            if entry.split:
                self.listed.splits.add(str(entry.split))
            if not entry.image:
                rejected += (
                    [Pair(f"{one.name}:{entry.place}", None, problem=entry.problem)]
                    if is_wanted
                    else []
                )
                continue

            # The second name (an id, or a name without its folder) is for when the first fits none.
            name = as_text(entry.image)
            match = lookup.match(name)
            if not match and entry.bare:
                name = as_text(entry.bare)
                match = lookup.match(name)

            if not is_wanted:
                self.listed.other_split.update(match.files)
                continue
            if not entry.split and self.listed.other_split.intersection(match.files):
                self.listed.num_of_other += 1
                continue

            # One spelling of a name for the key: "./a//1.jpg" and "a\\1.jpg" are "a/1.jpg".
            self.listed.used.update(match.files)
            spelled = (
                name if name in self.tree.files else posixpath.normpath(name.replace("\\", "/"))
            )
            key = prefix + (spelled if entry.key is None else as_text(entry.key))
            captions = clean_captions(entry.captions)

            if key in by_key:
                again = self._repeated(one, entry, pairs[by_key[key]], captions)
                if again.key == key and again.problem != _DUPLICATE:
                    pairs[by_key[key]] = again
                else:
                    rejected.append(again)
                continue

            if self._is_joined(one.name, entry, match, captions):
                continue
            by_key[key] = len(pairs)
            self._note(one.name, len(pairs), spelled, match)
            pairs.append(self._pair(one.name, key, entry, match, captions))

        pairs += rejected

    def _repeated(
        self, one: CaptionList, entry: Entry, pair: Pair, captions: tuple[str, ...]
    ) -> Pair:
        """A second record with the same key: its pair with more captions, or a rejected row."""
        if one.is_annotation:
            return Pair(pair.key, None, problem=_DUPLICATE)
        if not captions and entry.problem is None and pair.captions:
            problem = Problem("empty caption", f"it has no text for {pair.key}")
            return Pair(f"{one.name}:{entry.place}", None, problem=problem)
        return _joined(pair, captions, entry.problem)

    def _is_joined(
        self, list_name: str, entry: Entry, match: _Match, captions: tuple[str, ...]
    ) -> bool:
        """Whether the image belongs to a pair of an earlier list, which then gets the captions."""
        owner = self.pair_of.get(match.files[0]) if len(match.files) == 1 else None
        if owner is None or owner[0] == list_name:
            return False
        earlier = self.listed.pairs[owner[0]]
        earlier[owner[1]] = _joined(earlier[owner[1]], captions, entry.problem)
        self.listed.num_joined += 1
        return True

    def _note(self, list_name: str, index: int, name: str, match: _Match) -> None:
        """Note the file of the new pair, and the kind of name by which the list names it."""
        if match.outside is not None:
            self.listed.outside.append(name)
        if len(match.files) != 1:
            return
        file = match.files[0]
        self.pair_of.setdefault(file, (list_name, index))
        if match.is_longer:
            self.longer.setdefault(file, {})[name] = (list_name, index)
        elif match.is_exact:
            self.exact.add(file)

    def _pair(
        self, list_name: str, key: str, entry: Entry, match: _Match, captions: tuple[str, ...]
    ) -> Pair:
        problem = entry.problem
        image = match.outside
        if len(match.files) == 1:
            image = self.tree.files[match.files[0]]
        elif match.files:
            shown = ", ".join(match.files[:FILES_SHOWN])
            detail = (
                f"{entry.image[:NAME_SHOWN]} fits {len(match.files)} files ({shown}): write "
                f"the folder into {list_name}"
            )
            problem = problem or Problem("ambiguous name", detail)

        if image is None and problem is None:
            problem = Problem(
                "missing file", f"{entry.image[:NAME_SHOWN]}, record {entry.place} of {list_name}"
            )

        return Pair(key, image, captions, problem=problem)

    def reject_stand_ins(self) -> None:
        """Reject pairs that share one file, though their names have different folders.

        If cats/1.jpg and dogs/1.jpg are listed and only 1.jpg exists, it is not both of them.
        """
        for file, names in self.longer.items():
            # A single longer name may be a path from another machine, if nothing else is the file.
            if len(names) == 1 and file not in self.exact:
                continue
            shown = ", ".join(sorted(names)[:FILES_SHOWN])
            detail = f"{shown}: {file} may be one of them, but lies in none of their folders"
            problem = Problem("ambiguous name", detail)
            for list_name, index in names.values():
                pair = self.listed.pairs[list_name][index]
                self.listed.pairs[list_name][index] = pair._replace(image=None, problem=problem)


def _joined(pair: Pair, captions: Iterable[str], problem: Problem | None) -> Pair:
    texts = dict.fromkeys((*(pair.captions or ()), *captions))
    return pair._replace(captions=tuple(texts), problem=pair.problem or problem)
