"""The rows of `status`: which outputs are of the recipe as it is, and which of other settings."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from pipeline.oversight import status_rows
from pipeline.provenance import make_record
from pipeline.step import Output, Step
from pipeline.store import Store


def nothing(config: object, *, out: Path, **inputs: Path) -> Mapping[str, float]:
    return {}


def trained(seed: int) -> Step:
    return Step("train", "train", nothing, {"seed": seed})


def index_of(train: Step, label: str, **further: Path) -> Step:
    return Step("index", label, nothing, {}, {"model": Output(train, "model"), **further})


def finish(store: Store, *steps: Step) -> None:
    for step in steps:
        out = store.partial(step)
        out.mkdir(parents=True)
        store.commit(step, make_record(step, {}, out, datetime.now(UTC), 1.0, {}))


def test_a_search_index_is_of_the_recipe_whose_model_it_was_made_with(tmp_path: Path) -> None:
    store = Store(tmp_path / "w")
    (tmp_path / "images").mkdir()
    ours = trained(0)
    others = trained(1)
    finish(store, ours, others, index_of(ours, "index"), index_of(others, "index"))
    finish(store, index_of(ours, "index_folder", images=tmp_path / "images"))

    rows = status_rows([ours], store)
    assert [(row["step"], row["current"]) for row in rows[:2]] == [
        ("train", True),
        ("train", False),
    ]
    current = {
        store.folder(index_of(model, "index")).name: model is ours for model in (ours, others)
    }
    assert {row["fingerprint"]: row["current"] for row in rows if row["step"] == "index"} == current
    assert [row["current"] for row in rows if row["step"] == "index_folder"] == [True]
