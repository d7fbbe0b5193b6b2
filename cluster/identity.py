"""What of a config bears identity: the literals that say what is computed, and nothing that says
how or where.

Machine facts bear none: values of type `Resources`, and fields whose metadata say so. Anything
whose text could differ between two runs of the same recipe (a path, a set, a NaN, an object)
raises.
"""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from cluster.resources import Resources

MACHINE_FACT = {"machine_fact": True}
"""Metadata of a config's field that says how or where, not what, is computed."""

Json = Any  # what the json module reads and writes


def identity(value: object, where: str = "config") -> Json:
    """`value` as JSON that is equal wherever the recipe is equal; names `where` when it raises.

    TypeError for anything unstable, ValueError for a number that is not finite.
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

    if isinstance(value, tuple | list):
        return [identity(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: identity(item, f"{where}.{key}") for key, item in sorted(value.items())}

    raise TypeError(
        f"{where} holds a {type(value).__name__} ({value!r:.60}): a fingerprint needs literals "
        "(numbers, text, None, tuples, mappings, frozen dataclasses); pass paths as inputs, "
        "machine facts as Resources"
    )
