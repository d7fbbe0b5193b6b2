"""The manifest of a folder of shards: file, rows, bytes and checksum of each shard, in row order.

`manifest.json` is written last: a folder without it is not finished.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.files import sha256_file, write_atomic
from curation.shards.mapped import REMEDY, MappedShard, ShardError
from curation.shards.schema import EmbeddingSpec, spec_from_dict

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class ShardEntry:
    """One shard as the manifest lists it."""

    file: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The contents of a folder of shards, in row order."""

    spec: EmbeddingSpec
    shards: tuple[ShardEntry, ...]

    @property
    def num_rows(self) -> int:
        """The number of rows of all shards."""
        return sum(entry.rows for entry in self.shards)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, atomically. With it, a folder of shards is finished."""
    fields = {
        "spec": asdict(manifest.spec),
        "num_rows": manifest.num_rows,
        "shards": [asdict(entry) for entry in manifest.shards],
    }
    write_atomic(folder / MANIFEST, json.dumps(fields, indent=1, sort_keys=True) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished folder; raises ShardError if there is none or it is damaged."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ShardError(
            f"no {MANIFEST} in {folder}: it is written when the embed step ends; run the embed "
            "step (again)"
        )

    try:
        fields = json.loads(path.read_text())
        shards = tuple(ShardEntry(**entry) for entry in fields["shards"])
        return Manifest(spec_from_dict(fields["spec"]), shards)
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(
            f"{path} is not a manifest ({error}): delete it and run the embed step again"
        ) from error


def verify(folder: Path) -> list[str]:
    """Read every byte of every shard and compare with the manifest: one line per problem."""
    try:
        manifest = read_manifest(folder)
    except ShardError as error:
        return [str(error)]

    problems = []
    for entry in manifest.shards:
        try:
            check_size(folder, entry)
            if sha256_file(folder / entry.file) != entry.sha256:
                raise ShardError(
                    f"{folder / entry.file} has another sha256 than the manifest: it was changed; "
                    f"{REMEDY}"
                )
            # Opening compares the schema and the number of rows.
            MappedShard(folder / entry.file, manifest.spec, entry.rows)
        except ShardError as error:
            problems.append(str(error))

    return problems


def check_size(folder: Path, entry: ShardEntry) -> None:
    """Raise ShardError when the file is missing or does not have the manifest's number of bytes."""
    path = folder / entry.file
    if not path.is_file():
        raise ShardError(
            f"{path} is missing: the manifest lists it with {entry.rows} rows; {REMEDY}"
        )
    if path.stat().st_size != entry.bytes:
        raise ShardError(
            f"{path} has {path.stat().st_size} bytes: the manifest says {entry.bytes}; {REMEDY}"
        )
