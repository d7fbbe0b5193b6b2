"""WebDataset tars, img2dataset's included: consecutive members with one basename are a sample.

A tar is one part; a very long one is read in several, each of the samples whose first byte lies in its range.
"""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from cluster.storage import size_of
from curation.pairs import IMAGE_SUFFIXES, Part, Reject, Sample, SourceConfig, clean_captions
from curation.tree import ByteRange, Tree, tar_members

MEGABYTE = 1_000_000


def tar_parts(tree: Tree, config: SourceConfig) -> list[Part]:
    """Parts of every tar of a folder, or of one tar given alone."""
    if tree.is_file:
        return list(_split(tree.root.name, tree.root, size_of(tree.root), "", config))
    return [
        part
        for name in tree.with_suffix(".tar")
        for part in _split(name, Path(tree.files[name].path), tree.files[name].size, f"{name[:-4]}/", config)
    ]


def _split(name: str, path: Path, size: int, key_prefix: str, config: SourceConfig) -> Iterator[Part]:
    num_parts = max(1, round(size / (config.part_mb * MEGABYTE)))
    for index in range(num_parts):
        start, stop = size * index // num_parts, size * (index + 1) // num_parts
        label = name if num_parts == 1 else f"{name}:{start}-{stop}"
        yield Part(label, "tar", path=str(path), start=start, stop=stop, key_prefix=key_prefix)


def read_tar_part(part: Part) -> Iterator[Sample | Reject]:
    """The samples of a tar part; the first sample of a key is taken, a cut tar ends in a reject."""
    seen: set[str] = set()
    try:
        for key, files in tar_groups(Path(part.path), part.stop):
            is_repeated = key in seen
            seen.add(key)
            if min(found.offset for found in files.values()) < part.start:
                continue
            if is_repeated:
                yield Reject(part.key_prefix + key, part.name, "duplicate key", "the key occurs twice in this tar")
            else:
                yield _sample(part.key_prefix + key, files, part.name)
    except ValueError as error:
        yield Reject(part.key_prefix, part.name, "truncated archive", str(error))


def tar_groups(path: Path, stop: int) -> Iterator[tuple[str, dict[str, ByteRange]]]:
    """(key, file by extension) of each sample that begins before byte `stop`."""
    key, files = "", dict[str, ByteRange]()
    for name, found in tar_members(path):
        folder, _, base = name.rpartition("/")
        stem, _, extension = base.partition(".")
        member_key = f"{folder}/{stem}" if folder else stem
        if not stem:
            continue
        if member_key != key or extension in files:
            if files:
                yield key, files
            key, files = member_key, {}
            if found.offset >= stop:
                return
        files[extension.lower()] = found
    if files:
        yield key, files


def _sample(key: str, files: dict[str, ByteRange], source: str) -> Sample | Reject:
    image = next((found for name, found in files.items() if f".{name}".endswith(IMAGE_SUFFIXES)), None)
    if image is None:
        return Reject(key, source, "missing file", f"no image among {sorted(files)}")
    try:
        captions = _captions({PurePosixPath(f"x.{name}").suffix: found for name, found in files.items()})
    except ValueError as error:
        return Reject(key, source, "unreadable record", str(error))
    data = image.read()
    if len(data) < image.size:
        return Reject(key, source, "truncated archive", f"{len(data)} of {image.size} bytes")
    if not captions:
        return Reject(key, source, "empty caption", f"no caption among {sorted(files)}")
    return Sample(key, data, captions, source)


def _captions(files: dict[str, ByteRange]) -> tuple[str, ...]:
    """A list in the JSON first, then the text file, then the JSON's single caption."""
    record = json.loads(files[".json"].read()) if ".json" in files else {}
    record = record if isinstance(record, dict) else {}
    if isinstance(record.get("captions"), list):
        return clean_captions(record["captions"])
    if ".txt" in files:
        return clean_captions([files[".txt"].read().decode("utf-8", "replace")])
    return clean_captions([record.get("caption") or record.get("text")])
