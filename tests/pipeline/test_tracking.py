"""Tracking takes any name, and leaves no run behind that looks as if it were running."""

from collections.abc import Mapping
from pathlib import Path

import mlflow
import pytest

from pipeline.step import Step
from pipeline.tracking import Tracking


def nothing(config: object, *, out: Path) -> Mapping[str, float]:
    return {}


STEP = Step("evaluate", "evaluate", nothing, {"size": 3})


@pytest.fixture
def tracking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tracking:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Tracking(tmp_path, "test", {}, {})


def runs(tracking: Tracking) -> list[mlflow.entities.Run]:
    """The parent run last."""
    client = mlflow.MlflowClient(tracking.uri)
    return client.search_runs([client.get_experiment_by_name("test").experiment_id])


def test_metrics_of_sets_with_unusual_names_are_shown(tracking: Tracking, tmp_path: Path) -> None:
    with tracking.step(STEP, tmp_path) as track:
        track({"retrieval_coco (2017)+é/top1": 0.5})
    tracking.finish("FINISHED", {"evaluate/retrieval_coco (2017)+é/top1": 0.5}, {})
    step, parent = runs(tracking)
    assert parent.data.metrics == {"evaluate/retrieval_coco _2017__é/top1": 0.5}
    assert step.data.metrics == {"final/retrieval_coco _2017__é/top1": 0.5}
    assert tracking.is_on


def test_runs_are_ended_though_tracking_was_switched_off(
    tracking: Tracking, tmp_path: Path
) -> None:
    with tracking.step(STEP, tmp_path) as track:
        track({"a name that is too long" * 100: 0.5})
    assert not tracking.is_on
    tracking.finish("FAILED", {}, {})
    assert [run.info.status for run in runs(tracking)] == ["FINISHED", "FAILED"]
