"""WebDataset tars, including those of img2dataset.

Consecutive members whose basename is the same up to its first dot are one sample. A tar is one
part. A very long tar has several: each has the samples whose first byte lies in its range. A
damaged tar stops the run, because nobody can say how many rows it has lost.
"""

import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from curation.pairs.beside import TEXT_SUFFIXES, caption_kind
from curation.pairs.config import SourceConfig
from curation.pairs.images import IMAGE_SUFFIXES
from curation.pairs.ranges import ByteRange
from curation.pairs.sample import Pair, Part, Problem
from curation.pairs.tars import Member, tar_members

MEGABYTE = 1_000_000
PEEKED_MEMBERS = 64  # of a tar, read to decide what it is
KINDS = ("image", "txt", "json")


def is_webdataset(names: Sequence[str]) -> bool:
    """Whether any image among these members has a caption file with the same key."""
    kinds_of = _kinds_by_key(names)
    return any("image" in kinds and len(kinds) > 1 for kinds in kinds_of.values())


def lies_apart(names: Sequence[str]) -> bool:
    """Whether the image and the caption of any key are not next to each other in this order."""
    # A key that comes back with kinds of files that it did not have before is a sample in pieces.
    # With the same kinds again it is a repeated key, not a piece.
    before: dict[str, set[str]] = {}
    for key, run in groupby(map(split_name, names), key=lambda split: split[0]):
        kinds = {_kind(extension) for _, extension in run}.intersection(KINDS)
        if kinds and key in before and before[key].isdisjoint(kinds):
            return True
        before[key] = before.get(key, set()) | kinds
    return False


def _kinds_by_key(names: Sequence[str]) -> dict[str, set[str]]:
    kinds_of: dict[str, set[str]] = {}
    for name in names:
        key, extension = split_name(name)
        kinds_of.setdefault(key, set()).add(_kind(extension))
    return {key: kinds.intersection(KINDS) for key, kinds in kinds_of.items()}


def tar_parts(name: str, file: ByteRange, key_prefix: str, config: SourceConfig) -> Iterator[Part]:
    """One part, or several of about `part_mb` megabytes for a long tar."""
    num_parts = max(1, round(file.size / (config.part_mb * MEGABYTE)))
    for index in range(num_parts):
        start = file.size * index // num_parts
        stop = file.size * (index + 1) // num_parts
        label = name if num_parts == 1 else f"{name}:{start}-{stop}"
        yield Part(label, "tar", (), file.path, start, stop, key_prefix, num_bytes=stop - start)


class TarWalk:
    """A walk through the samples of one tar, which can continue from part to part.

    Each header tells only where the next one is. Without a walk, every part would read the headers
    of all parts before it again.
    """

    def __init__(self, path: Path) -> None:
        self.passed = -1
        """First byte of the last sample."""
        self.seen: dict[str, set[str]] = {}
        """By key, the kinds of files that the tar had so far."""
        self.samples = _samples(path)

        # A part ends at the first sample behind it. That sample waits here for the next part.
        self.ahead = next(self.samples, None)

    def until(self, stop: int) -> Iterator[tuple[int, str, dict[str, ByteRange], set[str]]]:
        """(first byte, name, file by extension, kinds before) of samples that begin before `stop`.

        The kinds before are those of earlier samples of the same name.
        """
        while self.ahead and self.ahead[0] < stop:
            first, name, files = self.ahead
            self.passed = first
            before = self.seen.get(name, set())
            yield first, name, files, before
            self.seen[name] = before | {_kind(extension) for extension in files}
            self.ahead = next(self.samples, None)


def _samples(path: Path) -> Iterator[tuple[int, str, dict[str, ByteRange]]]:
    """(first byte, name, file by extension) of each run of members with one name."""
    first = 0
    name = ""
    files = dict[str, ByteRange]()

    for member in tar_members(path):
        member_name, extension = split_name(member.name)
        # A repeated extension starts a second sample of the same name.
        if member_name != name or extension in files:
            if files:
                yield first, name, files
            first = member.position
            name = member_name
            files = {}
        files[extension] = member.file

    if files:
        yield first, name, files


def tar_pairs(part: Part, walks: dict[str, TarWalk] | None = None) -> Iterator[Pair]:
    """The pairs of the samples that begin in the part; repeated keys have a problem.

    `walks` has, by path, the walk of the part that was read last, and is updated. Raises ValueError
    when the tar is damaged.
    """
    # A walk only goes forward: one that has passed the start of the part cannot be used.
    walks = {} if walks is None else walks
    walk = walks.pop(part.path, None)
    if walk is None or walk.passed >= part.start:
        walk = TarWalk(Path(part.path))

    for first, name, files, before in walk.until(part.stop):
        if first >= part.start:
            yield from _pairs(part.key_prefix + name, files, before)

    # One walk at a time, because a walk has an open file.
    walks.clear()
    walks[part.path] = walk


def unsorted_pairs(members: Iterable[Member], key_prefix: str) -> list[Pair]:
    """The pairs of a tar whose samples lie in pieces: its members in order, joined by key."""
    samples: dict[str, dict[str, ByteRange]] = {}
    repeated: list[tuple[str, str, ByteRange]] = []
    for member in members:
        name, extension = split_name(member.name)
        sample = samples.setdefault(name, {})
        if extension in sample:
            repeated.append((name, extension, member.file))
        else:
            sample[extension] = member.file

    pairs = [
        pair
        for name, sample in samples.items()
        for pair in _pairs(key_prefix + name, sample, set())
    ]
    again = [
        _pairs(key_prefix + name, {extension: file}, set(KINDS))
        for name, extension, file in repeated
    ]

    return [*pairs, *(pair for some in again for pair in some)]


def _pairs(key: str, files: dict[str, ByteRange], before: set[str]) -> list[Pair]:
    kinds = {_kind(extension): file for extension, file in files.items()}
    num_samples = _num_samples(files)
    if num_samples > 1:
        detail = (
            f"{num_samples} images, .txt or .json have this key, the file name up to its first "
            "dot: one of each is required; pack them again under names without other dots"
        )
        return [Pair(key, None, problem=Problem("unreadable record", detail))] * num_samples

    problem: Problem | None = None
    if before and before.isdisjoint(kinds):
        detail = (
            f"its files ({', '.join(sorted(before))} and {', '.join(sorted(kinds))}) do not lie "
            "next to each other: pack the tar again with tar --sort=name"
        )
        problem = Problem("unreadable record", detail)
    elif before:
        problem = Problem("duplicate key", "the key occurs twice in this tar")
    elif "image" not in kinds:
        problem = Problem("missing file", f"no image among {sorted(files)}")
    elif not {"txt", "json"} & kinds.keys():
        problem = Problem("empty caption", f"no caption among {sorted(files)}")

    beside = tuple((kind, kinds[kind]) for kind in ("json", "txt") if kind in kinds)
    return [Pair(key, kinds.get("image"), (), beside, problem)]


def split_name(member: str) -> tuple[str, str]:
    """(key, extension in lower case) of a member: "a/1.seg.png" has "a/1" and "seg.png".

    WebDataset cuts the basename at its first dot.
    """
    folder, slash, base = member.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def _kind(extension: str) -> str:
    """The kind of a file by the end of its extension: "image", "txt", "json", or that end."""
    suffix = posixpath.splitext(f"x.{extension}")[1]
    if suffix in IMAGE_SUFFIXES:
        return "image"
    return "txt" if suffix in TEXT_SUFFIXES else caption_kind(suffix)


def _num_samples(extensions: Iterable[str]) -> int:
    """How many pairs have one key: as many as there are files of the most frequent kind.

    Names with several dots give different images the same key.
    """
    counts = Counter(_kind(extension) for extension in extensions)
    return max(counts[kind] for kind in KINDS)
