"""WebDataset tars, img2dataset's included: consecutive members with one basename, up to its first dot, are a sample.

A tar is one part; a very long one is read in several, each of the samples whose first byte lies in its range. A damaged
tar ends the run: how many rows it has lost nobody can say.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster.storage import size_of
from curation.pairs.images import IMAGE_SUFFIXES
from curation.pairs.ranges import ByteRange
from curation.pairs.sample import Part, Reject, Sample, SourceConfig
from curation.pairs.splits import of_split
from curation.pairs.tars import check_tar_end, tar_members
from curation.pairs.text import clean_captions
from curation.pairs.tree import Tree

MEGABYTE = 1_000_000
CHECKS_AT_ONCE = 32


def tar_parts(tree: Tree, config: SourceConfig) -> list[Part]:
    """Parts of a folder's tars of the split, or of one tar given alone; ValueError names a tar that has been cut."""
    if tree.is_file:
        return list(_split(tree.name, tree.root, size_of(tree.root), "", config))
    tars = {name: tree.files[name] for name in of_split(tree.with_suffix(".tar"), config.split)}
    with ThreadPoolExecutor(CHECKS_AT_ONCE) as executor:
        list(executor.map(check_tar_end, (Path(tar.path) for tar in tars.values())))
    return [
        part for name, tar in tars.items() for part in _split(name, Path(tar.path), tar.size, f"{name[:-4]}/", config)
    ]


def _split(name: str, path: Path, size: int, key_prefix: str, config: SourceConfig) -> Iterator[Part]:
    num_parts = max(1, round(size / (config.part_mb * MEGABYTE)))
    for index in range(num_parts):
        start, stop = size * index // num_parts, size * (index + 1) // num_parts
        label = name if num_parts == 1 else f"{name}:{start}-{stop}"
        yield Part(label, "tar", path=str(path), start=start, stop=stop, key_prefix=key_prefix)


class TarWalk:
    """Through the samples of one tar, in order; what reads its next part can go on where the last part ended.

    Headers can only be found one after the other: without a walk, each part reads those of all parts before it again.
    """

    def __init__(self, path: Path) -> None:
        self.passed = -1
        self.seen = set[str]()
        self.samples = _samples(path)
        self.ahead = next(self.samples, None)

    def until(self, stop: int) -> Iterator[tuple[int, str, dict[str, ByteRange], bool]]:
        """(first byte, name, file by extension, whether the name came before) of samples that begin before `stop`."""
        while self.ahead and (first := min(found.offset for found in self.ahead[1].values())) < stop:
            self.passed, (name, files) = first, self.ahead
            yield first, name, files, name in self.seen
            self.seen.add(name)
            self.ahead = next(self.samples, None)


def _samples(path: Path) -> Iterator[tuple[str, dict[str, ByteRange]]]:
    """(name, file by extension) of consecutive members of one name."""
    name, files = "", dict[str, ByteRange]()
    for member, found in tar_members(path):
        member_name, extension = split_name(member)
        if member_name != name or extension in files:
            if files:
                yield name, files
            name, files = member_name, {}
        files[extension] = found
    if files:
        yield name, files


def read_tar_part(part: Part, walks: dict[str, TarWalk] | None = None) -> Iterator[Sample | Reject]:
    """The samples of a tar part; the first sample of a key is taken. ValueError when the tar is damaged."""
    for key, files in tar_samples(part, walks):
        yield files if isinstance(files, Reject) else _sample(key, files, part.name)


def tar_samples(
    part: Part, walks: dict[str, TarWalk] | None = None
) -> Iterator[tuple[str, dict[str, ByteRange] | Reject]]:
    """(key, files by kind: "image", "txt", "json") of each sample that begins in the part, or why it is none.

    In `walks` is, by path, where the part read last has ended.
    """
    walks = {} if walks is None else walks
    walk = walks.pop(part.path, None)
    if walk is None or walk.passed >= part.start:
        walk = TarWalk(Path(part.path))
    for first, name, files, is_repeated in walk.until(part.stop):
        if first >= part.start:
            yield from _judged(part, name, files, is_repeated)
    walks.clear()
    walks[part.path] = walk


def _judged(
    part: Part, name: str, files: dict[str, ByteRange], is_repeated: bool
) -> Iterator[tuple[str, dict[str, ByteRange] | Reject]]:
    key, num_samples = part.key_prefix + name, _num_samples(files)
    kinds = {_kind(extension): found for extension, found in files.items()}
    if num_samples > 1:
        detail = (
            f"{num_samples} images, .txt or .json have this key, the file name up to its first dot: one of each is "
            "needed; pack them again under names without other dots"
        )
        yield from [(key, Reject(key, part.name, "unreadable record", detail))] * num_samples
    elif is_repeated:
        yield key, Reject(key, part.name, "duplicate key", "the key occurs twice in this tar")
    elif "image" not in kinds:
        yield key, Reject(key, part.name, "missing file", f"no image among {sorted(files)}")
    else:
        yield key, kinds


def split_name(member: str) -> tuple[str, str]:
    """A member's sample and, in lower case, its extension: the basename is cut at its first dot, as WebDataset does."""
    folder, slash, base = member.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def _kind(extension: str) -> str:
    last = extension.rpartition(".")[2]
    return "image" if f".{last}" in IMAGE_SUFFIXES else last


def _num_samples(files: Iterable[str]) -> int:
    """How many pairs must have been packed under one key: by their most frequent kind of file."""
    counts = Counter(_kind(extension) for extension in files)
    return max(counts[kind] for kind in ("image", "txt", "json"))


def _sample(key: str, files: dict[str, ByteRange], source: str) -> Sample | Reject:
    try:
        captions = _captions(files)
    except ValueError as error:
        return Reject(key, source, "unreadable record", str(error))
    image = files["image"]
    data = image.read()
    if len(data) < image.size:
        return Reject(key, source, "truncated archive", f"{len(data)} of {image.size} bytes")
    if not captions:
        return Reject(key, source, "empty caption", f"no caption among {sorted(files)}")
    return Sample(key, data, captions, source)


def _captions(files: dict[str, ByteRange]) -> tuple[str, ...]:
    """A list in the JSON first, then the text file, then the JSON's single caption."""
    record = json.loads(files["json"].read()) if "json" in files else {}
    record = record if isinstance(record, dict) else {}
    if isinstance(record.get("captions"), list):
        return clean_captions(record["captions"])
    if "txt" in files:
        return clean_captions([files["txt"].read().decode("utf-8-sig", "replace")])
    return clean_captions([record.get("caption") or record.get("text")])
