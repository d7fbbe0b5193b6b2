"""Runs of one recipe are told from those of another by everything but the seed of training."""

import io
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from evaluate.config import EvaluateConfig
from evaluate.results import result_file, write_flat
from evaluate.tables import seeds_table
from pipeline.graph import EVALUATE, TRAIN
from pipeline.provenance import make_record
from pipeline.record import write_record
from pipeline.seeds import results_by_seed
from pipeline.step import Output, Step
from pipeline.store import Store
from train.config import TrainConfig


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def finished(
    store: Store, value: float, train: TrainConfig, evaluate: EvaluateConfig | None = None
) -> Step:
    """An evaluation that scored `value`, of a model trained so; both are in the workspace."""
    model = Step("train", "train", TRAIN, train)
    scored = Step(
        "evaluate",
        "evaluate",
        EVALUATE,
        evaluate or EvaluateConfig(),
        {"model": Output(model, "model")},
    )
    measure = {"value": value, "low": value, "high": value, "n": 1.0}
    result = {"set": "retrieval", "error": "", "metrics": {"text_to_image_r1": measure}}
    result |= {"task": "retrieval", "protocol": {}, "encoder": "", "model": "", "data": ""}

    for step in (model, scored):
        out = store.folder(step)
        out.mkdir(parents=True, exist_ok=True)
        if step is scored:
            result_file(out, "retrieval").parent.mkdir(exist_ok=True)
            write_flat(out, [result])
            result_file(out, "retrieval").write_text(json.dumps(result))
        write_record(out, make_record(step, {}, out, datetime.now(UTC), 1.0, {}))

    return scored


def test_seeds_of_one_recipe_are_found_and_nothing_else(store: Store) -> None:
    recipe = TrainConfig(num_steps=500)
    scored = finished(store, 0.5, replace(recipe, seed=2))
    finished(store, 0.6, replace(recipe, seed=0))
    finished(store, 0.7, replace(recipe, seed=1, num_steps=501))
    finished(store, 0.8, replace(recipe, seed=3), EvaluateConfig(templates="plain"))
    values = {
        seed: result["metrics"]["text_to_image_r1"]["value"]
        for seed, (result,) in results_by_seed(scored, store).items()
    }
    assert values == {0: 0.6, 2: 0.5}


def test_model_from_elsewhere_has_no_seeds(store: Store, tmp_path: Path) -> None:
    (tmp_path / "model").write_text("model")
    step = Step(
        "evaluate", "evaluate@one", EVALUATE, EvaluateConfig(), {"model": tmp_path / "model"}
    )
    assert results_by_seed(step, store) == {}


def test_table_has_mean_and_standard_deviation(store: Store) -> None:
    for seed, value in enumerate((0.5, 0.6, 0.7)):
        scored = finished(store, value, TrainConfig(seed=seed))
    printed = io.StringIO()
    Console(file=printed, width=120).print(seeds_table({"model": results_by_seed(scored, store)}))
    assert "model, seeds 0, 1, 2" in printed.getvalue()
    assert "60.0 ± 10.0" in printed.getvalue()
