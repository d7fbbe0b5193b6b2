"""Ranges of settings, declared at the field and checked by one function.

A field declares its range in its type, `share: Annotated[float, Interval(gt=0, le=1)] = 0.5`, with
the marks of the package annotated-types (Ge, Gt, Le, Lt, Interval). `__post_init__` calls
`check_ranges(self, "curate")`, which checks every field of a dataclass. Values that are no numbers,
such as None and "auto", pass.
"""

import dataclasses
import math
import typing

from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt


def check_ranges(config: object, where: str) -> None:
    """ValueError for the first number of a config that is not finite or not in its field's range.

    Of a tuple, each number must be in the range.
    """
    for name, (marks, default) in _ranges(type(config)).items():
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            is_number = isinstance(number, int | float) and not isinstance(number, bool)
            if is_number and not _is_inside(number, marks):
                raise ValueError(
                    f"{where}.{name} is {value}: must be {_sentence(marks)}; correct it, or leave "
                    f"it out for the default, {default}"
                )


def _ranges(owner: type) -> dict[str, tuple[tuple[object, ...], object]]:
    """The marks and the default of every field with a range.

    A plain float has no marks, but must be finite.
    """
    hints = typing.get_type_hints(owner, include_extras=True)
    ranges = {}
    for item in dataclasses.fields(owner):
        kind = hints[item.name]
        if typing.get_origin(kind) is typing.Annotated:
            ranges[item.name] = tuple(_flat(kind.__metadata__)), item.default
        elif kind is float:
            ranges[item.name] = (), item.default

    return ranges


def _flat(marks: typing.Iterable[object]) -> typing.Iterator[object]:
    """The marks, with Interval(gt=0, le=1) as Gt(0) and Le(1)."""
    for mark in marks:
        yield from mark if isinstance(mark, GroupedMetadata) else (mark,)


def _is_inside(number: int | float, marks: typing.Iterable[object]) -> bool:
    if not math.isfinite(number):
        return False

    for mark in marks:
        match mark:
            case Ge(ge=least):
                is_inside = number >= least  # type: ignore[operator]
            case Gt(gt=bound):
                is_inside = number > bound  # type: ignore[operator]
            case Le(le=most):
                is_inside = number <= most  # type: ignore[operator]
            case Lt(lt=bound):
                is_inside = number < bound  # type: ignore[operator]
            case _:
                raise TypeError(
                    f"{mark!r} is no range: Ge, Gt, Le, Lt or Interval of annotated_types "
                    "are needed"
                )
        if not is_inside:
            return False

    return True


def _sentence(marks: typing.Iterable[object]) -> str:
    """The range in words."""
    words = []
    for mark in marks:
        match mark:
            case Ge(ge=least):
                words.append(f"at least {least}")
            case Gt(gt=bound):
                words.append(f"above {bound}")
            case Le(le=most):
                words.append(f"at most {most}")
            case Lt(lt=bound):
                words.append(f"below {bound}")
    return " and ".join(words) or "a finite number"
