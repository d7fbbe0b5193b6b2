"""Tracking takes any name, and leaves no run behind that looks as if it were running."""

import math
import socket
from collections.abc import Mapping
from pathlib import Path

import mlflow
import pytest

from pipeline.outcome import Outcome, ReadData
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
    tracking.finish("FINISHED", lambda: Outcome({"evaluate/retrieval_coco (2017)+é/top1": 0.5}))
    step, parent = runs(tracking)
    assert parent.data.metrics == {"evaluate/retrieval_coco _2017__é/top1": 0.5}
    assert step.data.metrics == {"final/retrieval_coco _2017__é/top1": 0.5}
    assert tracking.is_on


def test_runs_are_ended_though_something_was_refused(tracking: Tracking, tmp_path: Path) -> None:
    with tracking.step(STEP, tmp_path) as track:
        track({"a name that is too long" * 100: 0.5})
        assert not tracking.is_on
    tracking.finish("FAILED", Outcome)
    assert [run.info.status for run in runs(tracking)] == ["FINISHED", "FAILED"]


def test_a_run_that_was_abandoned_on_another_node_is_ended_when_its_step_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(socket, "gethostname", lambda: "another-node")
        lost = Tracking(tmp_path, "test", {}, {})
    lost_step = lost._start_step(STEP)
    now = Tracking(tmp_path, "test", {}, {})
    assert {run.info.status for run in runs(now)} == {"RUNNING"}

    with now.step(STEP, tmp_path):
        pass
    now.finish("FINISHED", Outcome)
    ended = {run.info.run_id: run.info.status for run in runs(now)}
    assert [ended.pop(run) for run in (lost_step, lost._parent)] == ["KILLED", "KILLED"]
    assert set(ended.values()) == {"FINISHED"}


def test_the_run_before_of_a_requeued_job_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(socket, "gethostname", lambda: "another-node")
        Tracking(tmp_path, "test", {}, {})
    now = Tracking(tmp_path, "test", {}, {})
    assert sorted(run.info.status for run in runs(now)) == ["KILLED", "RUNNING"]


def test_long_settings_and_missing_numbers_are_shown(tracking: Tracking, tmp_path: Path) -> None:
    step = Step("evaluate", "evaluate", nothing, {"names": "x" * 7000})
    with tracking.step(step, tmp_path) as track:
        track({"loss": float("nan"), "gain": float("inf")})
    tracking.finish("FINISHED", Outcome)
    shown, _ = runs(tracking)
    assert tracking.is_on
    assert math.isnan(shown.data.metrics["final/loss"])
    assert shown.data.params["names"].endswith("... (whole in record.json)")


def test_a_run_shows_data_note_and_origin_where_mlflow_looks_for_them(
    tracking: Tracking, tmp_path: Path
) -> None:
    with tracking.step(STEP, tmp_path):
        pass
    coco = ReadData("retrieval_coco", "0123456789ab", 5000, "/data/coco", "evaluation")
    pool = ReadData("pairs", "ba9876543210", 12, "/data/pairs", "pool")
    read = {"embed": [pool], "evaluate": [coco], "evaluate@uncurated": [coco]}
    tracking.finish("FINISHED", lambda: Outcome(data=read, note="| set |"))

    step, parent = runs(tracking)
    assert tracking.is_on
    assert [each.dataset.name for each in step.inputs.dataset_inputs] == ["retrieval_coco"]
    named = {each.dataset.name: each.dataset for each in parent.inputs.dataset_inputs}
    assert named.keys() == {"pairs", "retrieval_coco"}
    assert named["pairs"].digest == "ba9876543210"
    assert named["pairs"].profile == '{"num_rows": 12}'

    experiment = mlflow.MlflowClient(tracking.uri).get_experiment(tracking.experiment)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert experiment.tags["mlflow.note.content"] == "| set |"
    for run in (step, parent):
        assert run.data.tags["mlflow.user"]
        assert run.data.tags["mlflow.source.name"].startswith("python -m pipeline")
        assert "mlflow.source.git.commit" in run.data.tags


def test_an_outcome_that_cannot_be_read_does_not_fail_the_run(tracking: Tracking) -> None:
    def damaged() -> Outcome:
        raise ValueError("record.json was edited")

    tracking.finish("FINISHED", damaged)
    assert not tracking.is_on
    assert [run.info.status for run in runs(tracking)] == ["FINISHED"]
