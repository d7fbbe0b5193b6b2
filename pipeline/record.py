"""record.json: how an output was made, sealed against edits.

The seal is the sha256 of all other fields, so that an edited score or setting is detected, like a
changed byte of a file.
"""

import hashlib
import json
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from cluster.files import write_atomic
from cluster.identity import Json

RECORD = "record.json"


class DamagedOutputError(ValueError):
    """A finished output differs from its record."""


@dataclass(frozen=True)
class Record:
    """One finished output."""

    step: str
    label: str
    fingerprint: str
    config: Json
    inputs: dict[str, Json]
    summary: dict[str, float]
    commit: str
    dirty: bool
    environment: dict[str, str]
    command: str
    host: str
    started: str
    finished: str
    seconds: float
    files: dict[str, int]
    """Bytes of every file of the output."""
    checksums: dict[str, str]
    """SHA-256 of every file except shards, whose checksums are in their manifest."""
    choices: dict[str, str] = field(default_factory=dict)
    """What `auto` stood for, and why, on each machine that worked on the output."""
    seal: str = ""
    """SHA-256 of all other fields; empty in the records of earlier versions."""

    def sealed(self) -> "Record":
        """The record with its seal."""
        return replace(self, seal=self.content())

    def content(self) -> str:
        """SHA-256 of all fields except the seal."""
        values = asdict(replace(self, seal=""))
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def write_record(folder: Path, record: Record) -> None:
    """Write a record into the folder of its output, sealed."""
    write_atomic(folder / RECORD, json.dumps(asdict(record.sealed()), indent=1))


def read_record(folder: Path) -> Record | None:
    """The record of an output; None if it is not finished.

    DamagedOutputError if the record cannot be read, or was edited.
    """
    path = folder / RECORD
    try:
        values = json.loads(path.read_text())
        record = _from_json(values)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (TypeError, ValueError, OSError) as error:
        raise DamagedOutputError(
            f"{path} cannot be read ({error}): delete {folder} and run again"
        ) from error

    if record.seal and record.seal != record.content():
        raise DamagedOutputError(
            f"{path} was edited after it was written: delete {folder} and run again"
        )

    return record


def _from_json(values: Json) -> Record:
    """The record of JSON values. ValueError or TypeError names a field that is wrong or missing."""
    if not isinstance(values, dict):
        raise ValueError(f"it holds a {type(values).__name__}, not an object")

    kinds = typing.get_type_hints(Record)
    for name, kind in kinds.items():
        if name in values and not _fits(values[name], kind):
            raise ValueError(
                f"{name} is {json.dumps(values[name])[:60]}: it must be of type {kind}"
            )
    # Fields that this version does not know are dropped.
    return Record(**{name: value for name, value in values.items() if name in kinds})


def _fits(value: Json, kind: object) -> bool:
    """Whether a value from JSON has the annotated type: a plain one, or dict[str, plain]."""
    # bool is a subclass of int, but true is no number here.
    if kind is typing.Any:
        return True
    if typing.get_origin(kind) is dict:
        of_values = typing.get_args(kind)[1]
        return isinstance(value, Mapping) and all(_fits(item, of_values) for item in value.values())
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, typing.cast(type, kind)) and (
        kind is bool or not isinstance(value, bool)
    )
