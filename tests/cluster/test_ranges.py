"""Ranges declared at the field hold for every value."""

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Gt, Interval, Lt

from cluster.ranges import check_ranges


@dataclass(frozen=True)
class Settings:
    workers: Annotated[int, Ge(1)] = 2
    share: Annotated[float, Interval(gt=0, le=1)] = 0.5
    rate: float = 1e-3
    cosine: Annotated[float | Literal["auto"] | None, Lt(1)] = "auto"
    levels: Annotated[tuple[int, ...], Gt(0)] = ()

    def __post_init__(self) -> None:
        check_ranges(self, "settings")


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"workers": 1},
        {"share": 1.0},
        {"cosine": None},
        {"cosine": 0.3},
        {"levels": (1, 2)},
        {"rate": -1.0},
    ],
)
def test_values_inside_pass(values):
    Settings(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"workers": 0},
            r"settings.workers is 0: must be at least 1; correct it, or leave it out for the default, 2",
        ),
        ({"share": 0.0}, r"settings.share is 0.0: must be above 0 and at most 1"),
        ({"share": 1.5}, r"settings.share is 1.5: must be above 0 and at most 1"),
        ({"share": float("nan")}, r"settings.share is nan: must be above 0 and at most 1"),
        ({"rate": float("inf")}, r"settings.rate is inf: must be a finite number"),
        ({"cosine": 1.0}, r"settings.cosine is 1.0: must be below 1"),
        ({"levels": (3, 0)}, r"settings.levels is \(3, 0\): must be above 0"),
    ],
)
def test_values_outside_are_named_with_their_range(values, message):
    with pytest.raises(ValueError, match=message):
        Settings(**values)
