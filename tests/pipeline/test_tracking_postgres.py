"""Sixteen processes track at once in a real database, and nothing is lost."""

import json
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import mlflow
import pytest
from mlflow_harness import POLL_S, free_port, local_postgres, missing, mlflow_server

from cluster.files import append_jsonl
from pipeline.outcome import Outcome
from pipeline.step import Step
from pipeline.tracking import Tracking

NUM_PROCESSES = 16
NUM_WORKSPACES = 4
NUM_STEPS = 150
NUM_SHARED = 40
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(missing() != "", reason=f"needs PostgreSQL: {missing()}"),
]


@pytest.fixture(params=["server", "database"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An MLflow server on a database, or the database itself."""
    with local_postgres() as database:
        if request.param == "database":
            yield database
        else:
            with mlflow_server(database, tmp_path, free_port()) as server:
                yield server


def nothing(config: object, *, out: Path) -> Mapping[str, float]:
    return {}


def track(number: int, address: str, shared: str, folder: Path) -> bool:
    """What one process does: a run of its own with a step that writes metrics, and lines of a run
    that all share. Whether its tracking was never switched off.
    """
    os.environ["MLFLOW_TRACKING_URI"] = address  # of this process, which ends with the test
    workspace = folder / f"workspace-{number % NUM_WORKSPACES}"
    workspace.mkdir(exist_ok=True)
    tracking = Tracking(workspace, "many", {"number": number}, {"number": str(number)})
    out = workspace / f"out-{number}"
    out.mkdir()

    with tracking.step(Step("train", f"train@{number}", nothing, {"number": number}), out) as log:
        for step in range(NUM_STEPS):
            with (out / "metrics.jsonl").open("a") as file:
                row = {"step": step, "time": 0.0, "loss": number + step / 1000, "rows": step}
                file.write(json.dumps(row) + "\n")
            if step < NUM_SHARED:
                tracking._log_metrics(shared, [("loss", number + step / 1000, step)])
        log({"loss": number + 0.5})

    files = {"record": out / "metrics.jsonl"}
    score = {"score": float(number)}
    tracking.finish("FINISHED", lambda: Outcome(score, artifacts=files, note=f"note {number}"))
    return tracking.is_on


def test_sixteen_processes_lose_nothing(address: str, tmp_path: Path) -> None:
    client = mlflow.MlflowClient(address)
    shared = client.create_run(client.create_experiment("shared")).info.run_id

    # The experiment does not exist yet: all of them try to make it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.tracking", "mlflow", "test_tracking_postgres"])
    with context.Pool(NUM_PROCESSES, maxtasksperchild=1) as pool:
        jobs = [(number, address, shared, tmp_path) for number in range(NUM_PROCESSES)]
        assert pool.starmap(track, jobs, chunksize=1) == [True] * NUM_PROCESSES

    lines = client.get_metric_history(shared, "loss")
    assert Counter(line.step for line in lines) == Counter(list(range(NUM_SHARED)) * NUM_PROCESSES)
    assert {line.value for line in lines} == {
        number + step / 1000 for number in range(NUM_PROCESSES) for step in range(NUM_SHARED)
    }

    runs = client.search_runs([client.get_experiment_by_name("many").experiment_id])
    assert Counter(run.info.status for run in runs) == {"FINISHED": 2 * NUM_PROCESSES}
    parents = {run.info.run_id: run for run in runs if "mlflow.parentRunId" not in run.data.tags}
    assert len(parents) == NUM_PROCESSES
    for run in runs:
        if run.info.run_id in parents:
            assert run.data.metrics == {"score": float(run.data.tags["number"])}
            (file,) = client.list_artifacts(run.info.run_id, "record")
            assert file.path == "record/metrics.jsonl"
            continue
        number = int(run.data.params["number"])
        assert parents[run.data.tags["mlflow.parentRunId"]].data.tags["number"] == str(number)
        assert run.data.metrics["final/loss"] == number + 0.5
        history = client.get_metric_history(run.info.run_id, "loss")
        assert sorted((line.step, line.value) for line in history) == [
            (step, number + step / 1000) for step in range(NUM_STEPS)
        ]


def test_a_server_that_was_away_for_a_while_gets_what_it_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    metrics = tmp_path / "metrics.jsonl"

    def write(steps: range) -> None:
        rows = [{"step": step, "time": 0.0, "loss": float(step)} for step in steps]
        append_jsonl(metrics, *rows)

    with local_postgres() as database, ExitStack() as running:
        with mlflow_server(database, tmp_path, port):
            tracking = Tracking(tmp_path, "away", {}, {})
            step = Step("train", "train", nothing, {})
            log = running.enter_context(tracking.step(step, tmp_path))
            write(range(100))

        write(range(100, 200))
        while tracking.is_on:
            time.sleep(POLL_S)

        with mlflow_server(database, tmp_path, port) as server:
            write(range(200, 300))
            log({"loss": 299.0})
            running.close()
            tracking.finish("FINISHED", lambda: Outcome({"score": 1.0}))

            client = mlflow.MlflowClient(server)
            child, parent = client.search_runs([tracking.experiment])
            assert {run.info.status for run in (child, parent)} == {"FINISHED"}
            assert child.data.metrics["final/loss"] == 299.0
            assert parent.data.metrics == {"score": 1.0}
            history = client.get_metric_history(child.info.run_id, "loss")
            assert sorted(line.step for line in history) == list(range(300))
