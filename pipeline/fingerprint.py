"""Identity of a step: sha256 over canonical JSON of its name, version, config and inputs' identities.

Literals bear identity. Machine facts do not: values of type `Resources`, and fields whose metadata say so. Anything
whose text could differ between two runs of the same recipe (a path, a set, a NaN, an object) raises.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cluster.resources import MACHINE_FACT, Resources
from cluster.storage import absolute
from curation.pairs.sources import source_digest
from pipeline.step import VERSIONS, Output, Step

LENGTH = 12  # hexadecimal digits: 48 bits, a collision among 10,000 outputs has odds of 1 in 5 million

Json = Any  # what the json module reads and writes


def fingerprint(step: Step) -> str:
    """Identity of what the step would put out; equal on every machine."""
    identity = {
        "step": step.name,
        "version": VERSIONS.get(step.name, 1),
        "config": canonical(step.config),
        "inputs": {name: input_identity(source) for name, source in sorted(step.inputs.items())},
    }
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def input_identity(source: Output | Path) -> Json:
    """[fingerprint, path inside] of a step's output; the content digest of user data."""
    if isinstance(source, Output):
        return [fingerprint(source.step), source.path]
    return ["data", _data_digest(absolute(source))]


@cache
def _data_digest(path: Path) -> str:
    return source_digest(path)


def canonical(value: object, where: str = "config") -> Json:
    """`value` as JSON that is equal wherever the recipe is equal; names `where` when it raises.

    TypeError for anything unstable, ValueError for a number that is not finite.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}: a fingerprint needs finite numbers; use None for 'not set'")
        return value
    if is_dataclass(value) and not isinstance(value, type):
        identity = {
            item.name: canonical(getattr(value, item.name), f"{where}.{item.name}")
            for item in fields(value)
            if item.metadata != MACHINE_FACT and not isinstance(getattr(value, item.name), Resources)
        }
        return dict(identity)
    if isinstance(value, tuple | list):
        return [canonical(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: canonical(item, f"{where}.{key}") for key, item in sorted(value.items())}
    raise TypeError(
        f"{where} holds a {type(value).__name__} ({value!r:.60}): a fingerprint needs literals (numbers, text, None, "
        "tuples, mappings, frozen dataclasses); pass paths as inputs, machine facts as Resources"
    )
