"""Order of steps."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.step import Output, Step, ancestors, in_order


def nothing(config: object, *, out: Path, **inputs: Path) -> Mapping[str, float]:
    return {}


A = Step("a", "a", nothing, {})
B = Step("b", "b", nothing, {}, {"x": Output(A)})
C = Step("c", "c", nothing, {}, {"x": Output(B), "y": Output(A), "z": Path("data")})


def test_order_places_inputs_first_and_each_step_once() -> None:
    assert [step.label for step in in_order([C, B])] == ["a", "b", "c"]


def test_ancestors_are_all_that_is_needed() -> None:
    assert {step.label for step in ancestors(C)} == {"a", "b"}


def test_two_steps_of_one_label_are_refused() -> None:
    with pytest.raises(ValueError, match="'b'"):
        in_order([C, replace(B, config={"other": 1})])
