"""Fingerprints: sha256 over canonical JSON, equal on every machine for equal recipes and data."""

import hashlib
import json
from functools import cache
from pathlib import Path

from cluster.identity import Json
from cluster.storage import absolute
from curation.pairs.identity import source_digest

# Hexadecimal digits, so 48 bits: the odds of a collision among 10,000 outputs are 1 in 5 million.
LENGTH = 12


def digest(value: Json) -> str:
    """Short sha256 of JSON; the order of keys does not matter."""
    # Sorted keys, no spaces, ASCII only: one text per value, whatever wrote it.
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def data_identity(path: Path) -> Json:
    """Identity of user data by content, wherever it is stored; read once per process."""
    return ["data", _data_digest(absolute(path))]


@cache
def _data_digest(path: Path) -> str:
    return source_digest(path)
