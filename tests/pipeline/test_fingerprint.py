"""Identity: what bears it, what does not, and what is refused."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from cluster.identity import MACHINE_FACT, identity
from cluster.resources import Resources
from curation.config import EmbedConfig
from pipeline.step import VERSIONS, Output, Step


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    where: str = field(default="", metadata=MACHINE_FACT)


@dataclass(frozen=True)
class Config:
    size: int = 3
    names: tuple[str, ...] = ("a", "b")
    inner: Inner = Inner()
    resources: Resources = Resources()


def nothing(config: Config, *, out: Path, **inputs: Path) -> Mapping[str, float]:
    return {}


FIRST = Step("first", "first", nothing, Config())
SECOND = Step("second", "second", nothing, Config(), {"rows": Output(FIRST)})


def test_fingerprint_is_frozen() -> None:
    """Golden: a changed value here would orphan every user's finished outputs."""
    assert FIRST.fingerprint == "4fd9c9afdbdb"


@pytest.mark.parametrize(
    "config",
    [
        replace(FIRST.config, resources=Resources(workers=7, cpus=2.0)),
        replace(FIRST.config, inner=Inner(where="/elsewhere")),
    ],
)
def test_machine_facts_bear_no_identity(config: Config) -> None:
    assert replace(FIRST, config=config).fingerprint == FIRST.fingerprint


def test_a_larger_error_budget_is_the_same_embedding() -> None:
    """So that a run which was stopped for its rejects goes on with the shards that are there."""
    strict, lenient = (
        Step("embed", "embed", nothing, EmbedConfig(error_budget=share)) for share in (0.01, 0.5)
    )
    assert strict.fingerprint == lenient.fingerprint


@pytest.mark.parametrize(
    "other",
    [
        replace(FIRST, config=replace(FIRST.config, size=4)),
        replace(FIRST, config=replace(FIRST.config, names=("b", "a"))),
        replace(FIRST, config=replace(FIRST.config, inner=Inner(rate=0.25))),
        replace(FIRST, name="other"),
    ],
)
def test_literals_bear_identity_downstream_too(other: Step) -> None:
    assert other.fingerprint != FIRST.fingerprint
    assert replace(SECOND, inputs={"rows": Output(other)}).fingerprint != SECOND.fingerprint


def test_a_new_version_of_the_code_bears_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    before = FIRST.fingerprint
    monkeypatch.setitem(VERSIONS, FIRST.name, 2)
    assert replace(FIRST).fingerprint != before


def test_label_bears_no_identity() -> None:
    assert replace(FIRST, label="first@arm").fingerprint == FIRST.fingerprint


def test_data_identity_is_content_not_place(tmp_path: Path) -> None:
    for name, text in (("a", "one"), ("b", "one"), ("c", "two!")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "captions.txt").write_text(text)
    a, b, c = (replace(SECOND, inputs={"rows": tmp_path / name}).fingerprint for name in "abc")
    assert a == b
    assert a != c


@pytest.mark.parametrize("value", [Path("x"), {1, 2}, float("nan"), object(), {1: "a"}, nothing])
def test_unstable_values_are_refused_by_name(value: object) -> None:
    with pytest.raises((TypeError, ValueError), match=r"config\.deep\[0\]"):
        identity({"deep": [value]})
