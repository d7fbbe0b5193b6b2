"""One name of each class of several: how many points are lost if classes go by other names.

People do not ask in the words of a list of classes. Where a set lists several names of a class, the
first and the last one of each are scored alone, and the difference is a metric of its own.
"""

from collections.abc import Sequence

from evaluate.sets.kinds import ClassNames

SYNONYM_DROP = "synonym_drop"


def has_synonyms(names: ClassNames, background: int | None = None) -> bool:
    """Whether a class other than the background has several names."""
    return any(len(each) > 1 for label, each in enumerate(names) if label != background)


def first_and_last(owners: Sequence[int]) -> tuple[list[int], list[int]]:
    """Where the first and where the last name of each class is; `owners` has the class of each name,
    in the order of the classes.

    >>> first_and_last([0, 1, 1, 1, 2])     # the second class has three names
    ([0, 1, 4], [0, 3, 4])
    """
    # A dictionary keeps the last value of a key: read backwards, it is the first one.
    last = {label: place for place, label in enumerate(owners)}
    first = {label: place for place, label in reversed(list(enumerate(owners)))}
    return sorted(first.values()), sorted(last.values())
