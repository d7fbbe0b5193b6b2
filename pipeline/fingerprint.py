"""Fingerprints: sha256 over canonical JSON. Equal on every machine, for equal recipes and equal
data.
"""

import hashlib
import json
from functools import cache
from pathlib import Path

from cluster.identity import Json
from cluster.storage import absolute
from curation.pairs.identity import source_digest

LENGTH = (
    12  # hexadecimal digits: 48 bits, a collision among 10,000 outputs has odds of 1 in 5 million
)


def digest(value: Json) -> str:
    """Short sha256 of JSON, however its keys are ordered."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def data_identity(path: Path) -> Json:
    """Identity of user data by content, wherever it lies; read once per process."""
    return ["data", _data_digest(absolute(path))]


@cache
def _data_digest(path: Path) -> str:
    return source_digest(path)
