"""The identity of a config: the literals that say what is computed, not how or where.

Machine facts are left out: values of type `Resources`, and fields whose metadata say so. A value
whose text could differ between two runs of the same recipe (a path, a set, a NaN, an object)
raises an error.
"""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from cluster.resources import Resources

MACHINE_FACT = {"machine_fact": True}
"""Metadata of a config field that says how or where something is computed, but not what."""

Json = Any  # what the json module reads and writes


def identity(value: object, where: str = "config") -> Json:
    """`value` as JSON that is equal wherever the recipe is equal.

    TypeError for a type without a stable text, ValueError for a number that is not finite; both
    messages name `where`.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(
                f"{where} is {value}: a fingerprint needs finite numbers; use None for 'not set'"
            )
        return value

    if is_dataclass(value) and not isinstance(value, type):
        # Names of classes are left out: renaming a class changes no fingerprint.
        settings = {
            item.name: getattr(value, item.name)
            for item in fields(value)
            if item.metadata != MACHINE_FACT
        }
        return {
            name: identity(setting, f"{where}.{name}")
            for name, setting in settings.items()
            if not isinstance(setting, Resources)
        }

    # JSON has one kind of sequence, and a mapping whose order must not matter.
    if isinstance(value, tuple | list):
        return [identity(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: identity(item, f"{where}.{key}") for key, item in sorted(value.items())}

    raise TypeError(
        f"{where} holds a {type(value).__name__} ({value!r:.60}): a fingerprint needs literals "
        "(numbers, text, None, tuples, mappings, frozen dataclasses); pass paths as inputs, "
        "machine facts as Resources"
    )
