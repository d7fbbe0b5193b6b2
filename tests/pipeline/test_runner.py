"""The runner: what is done is skipped, what failed continues, independent steps do not wait for
each other.
"""

import io
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import mlflow
import pytest
from rich.console import Console

from cluster.files import append_jsonl
from pipeline.record import DamagedOutputError
from pipeline.runner import pending, run_steps
from pipeline.step import Output, Step, StepError
from pipeline.store import Store
from pipeline.tracking import Tracking

pytestmark = pytest.mark.ray


@dataclass(frozen=True)
class Config:
    value: float = 1.0
    fail_before: int = 0
    """The step raises until this many of its pieces are there."""


def add(config: Config, must_have: int = 0, *, out: Path, **inputs: Path) -> Mapping[str, float]:
    """Sum of the inputs and the config's value, in pieces that survive a failure."""
    pieces = out / "pieces"
    with pieces.open("a") as file:
        file.write("x")
    if len(pieces.read_text()) < max(config.fail_before, must_have):
        raise RuntimeError("not yet")
    total = config.value + sum(float((folder / "sum").read_text()) for folder in inputs.values())
    (out / "sum").write_text(str(total))
    for step in range(3):
        append_jsonl(out / "metrics.jsonl", {"step": step, "loss": 3.0 - step})
    return {"sum": total, "loss": 1.0}


meeting = threading.Barrier(2, timeout=60)


def meet(config: Config, *, out: Path, **inputs: Path) -> Mapping[str, float]:
    """Ends when two of these run at once."""
    meeting.wait()
    return tell_thread(config, out=out)


def tell_thread(config: Config, *, out: Path, **inputs: Path) -> Mapping[str, float]:
    return {"is_main": float(threading.current_thread() is threading.main_thread())}


def leave_torn(config: Config, *, out: Path) -> Mapping[str, float]:
    """As a worker does that is lost while it writes and whose item another one takes over."""
    (out / ".whole.0a1b2c3d.tmp").write_bytes(b"wh")
    (out / "whole").write_bytes(b"whole")
    return {}


def fail(config: Config, *, out: Path, **inputs: Path) -> Mapping[str, float]:
    error = KeyError("step")
    error.add_note("raised by nobody")
    raise error


ONE = Step("one", "one", add, Config(1.0))
TWO = Step("two", "two", add, Config(2.0), {"a": Output(ONE)})
ARM = Step("two", "two@arm", add, Config(5.0), {"a": Output(ONE)})
ALL = Step("all", "all", add, Config(0.0), {"a": Output(TWO), "b": Output(ARM)})


@pytest.fixture
def run(tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Store]:
    """Run steps in a workspace whose tracking server is unreachable."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    store = Store(tmp_path)

    def run(*steps: Step, **options: object) -> Store:
        def open_tracking() -> Tracking:
            return Tracking(tmp_path, "test", {}, {})

        run_steps(steps, store, Console(file=io.StringIO()), open_tracking, **options)  # type: ignore[arg-type]
        return store

    return run


def test_steps_run_once_and_feed_each_other(run: Callable[..., Store]) -> None:
    store = run(ALL)
    record = store.record(ALL)
    assert record is not None
    assert record.summary == {"sum": 9.0, "loss": 1.0}
    before = {path: path.stat().st_mtime_ns for path in store.workspace.rglob("sum")}
    run(ALL)
    assert {path: path.stat().st_mtime_ns for path in store.workspace.rglob("sum")} == before


def test_changed_step_is_made_beside_the_old_one(run: Callable[..., Store]) -> None:
    run(ALL)
    changed = replace(ARM, config=Config(7.0))
    store = run(replace(ALL, inputs={"a": Output(TWO), "b": Output(changed)}))
    assert [record.label for record in store.records()].count("two@arm") == 2
    assert [record.label for record in store.records()].count("one") == 1


def test_failed_step_continues_from_what_it_had(run: Callable[..., Store]) -> None:
    flaky = replace(TWO, config=Config(2.0, fail_before=2))
    with pytest.raises(StepError, match="two failed: RuntimeError: not yet"):
        run(flaky)
    store = run(flaky)
    assert (store.folder(flaky) / "pieces").read_text() == "xx"
    assert not (store.folder(flaky) / "error.txt").exists()


def test_files_that_a_killed_run_left_half_written_are_not_in_the_output(
    run: Callable[..., Store],
) -> None:
    flaky = replace(TWO, config=Config(2.0, fail_before=2))
    with pytest.raises(StepError) as failure:
        run(flaky)
    out = Path(re.search(r"kept in (\S+):", str(failure.value))[1])
    (out / "deep").mkdir()
    for torn in (out / ".sum.0a1b2c3d.tmp", out / "deep" / ".metrics.jsonl.0a1b2c3d.tmp"):
        torn.write_bytes(b"torn")
    assert [*run(flaky).folder(flaky).rglob(".*.tmp")] == []


def test_files_that_lost_workers_left_half_written_are_not_in_the_output(
    run: Callable[..., Store],
) -> None:
    store = run(Step("torn", "torn", leave_torn, Config()))
    (record,) = store.records()
    assert record.files == {"whole": 5}


def test_forced_step_that_failed_continues_when_forced_again(run: Callable[..., Store]) -> None:
    store = run(TWO)
    flaky = replace(TWO, run=partial(add, must_have=3))
    for _ in range(2):
        with pytest.raises(StepError, match="run the same command again"):
            run(flaky, force=["two"])
        assert (store.folder(TWO) / "sum").read_text() == "3.0"
    run(flaky, force=["two"])
    assert (store.folder(TWO) / "pieces").read_text() == "xxx"


@pytest.mark.parametrize("runs_beside", [True, False])
def test_failure_names_the_error_and_the_file_with_its_traceback(
    run: Callable[..., Store], runs_beside: bool
) -> None:
    with pytest.raises(
        StepError, match=r"step bad failed: KeyError: 'step'\nraised by nobody\n"
    ) as caught:
        run(Step("bad", "bad", fail, Config(), runs_beside=runs_beside), ONE)
    file = Path(str(caught.value).split()[-1])
    assert file.name == "error.txt"
    assert "in fail" in file.read_text()
    assert isinstance(caught.value.__cause__, KeyError)


def test_steps_run_alone_in_the_main_thread_or_beside_each_other(run: Callable[..., Store]) -> None:
    pair = [
        Step("meet", f"meet@{name}", meet, Config(value), runs_beside=True)
        for name, value in (("a", 1.0), ("b", 2.0))
    ]
    alone = Step("alone", "alone", tell_thread, Config(), {"a": Output(pair[0])})
    store = run(alone, *pair)
    found = [store.record(step) for step in (*pair, alone)]
    assert [record.summary["is_main"] for record in found if record] == [0.0, 0.0, 1.0]


def test_steps_start_in_their_order(run: Callable[..., Store]) -> None:
    """One that must run alone comes before those that follow it, although they could run beside."""
    beside = [
        Step("late", f"late@{name}", tell_thread, Config(value), runs_beside=True)
        for name, value in (("a", 1.0), ("b", 2.0))
    ]
    alone = Step("alone", "alone", tell_thread, Config())
    store = run(alone, *beside)
    started = {step.label: store.record(step).started for step in (alone, *beside)}
    assert min(started, key=started.__getitem__) == "alone"


def test_force_builds_anew_and_only_limits(run: Callable[..., Store]) -> None:
    store = run(ALL, only=["two"])
    assert store.record(TWO) is not None
    assert store.record(ALL) is None
    run(ALL, only=["two"], force=["two"])
    assert (store.folder(TWO) / "pieces").read_text() == "x"
    assert [step.label for step in pending([ALL], store)] == ["two@arm", "all"]


def test_what_follows_from_a_forced_step_is_made_anew_too(run: Callable[..., Store]) -> None:
    store = run(ALL)
    assert [step.label for step in pending([ALL], store, force=["two"])] == ["two", "all"]
    assert [step.label for step in pending([ALL], store, force=["one"], only=["two"])] == [
        "one",
        "two",
    ]
    (store.folder(TWO) / "sum").write_text("9.0")
    (store.folder(ALL) / "sum").write_text("0.0")
    run(ALL, force=["two"])
    assert (store.folder(ALL) / "sum").read_text() == "9.0"


def test_damaged_input_stops_the_run_with_the_remedy(run: Callable[..., Store]) -> None:
    store = run(TWO)
    (store.folder(ONE) / "sum").write_text("")
    with pytest.raises(DamagedOutputError, match=r"--force one`$"):
        run(ALL)


def test_all_damaged_outputs_that_are_needed_are_named_at_once(run: Callable[..., Store]) -> None:
    store = run(ALL)
    for step in (TWO, ARM):
        (store.folder(step) / "sum").write_text("")
    other = Step("other", "other", add, Config(7.0))
    run(ALL, other, only=["other"])
    with pytest.raises(DamagedOutputError, match=r"two/.*; .*two/.*--force two two@arm`$"):
        run(ALL)
    with pytest.raises(DamagedOutputError, match=r"--force two two@arm`$"):
        run(ALL, force=["two"])
    run(ALL, force=["two", "two@arm"])
    assert (store.folder(TWO) / "sum").read_text() == "3.0"


def test_steps_that_share_a_damaged_input_both_wait_for_its_check(
    run: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = run(ONE)
    shared = store.folder(ONE) / "sum"
    shared.write_text(shared.read_text()[::-1])  # as many bytes as before
    check = Store.check_content

    def check_slowly(store: Store, step: Step) -> None:
        time.sleep(1.0)  # the other step has started by then
        check(store, step)

    monkeypatch.setattr(Store, "check_content", check_slowly)
    both = [replace(step, runs_beside=True) for step in (TWO, ARM)]
    with pytest.raises(StepError, match=r"rebuild with `.* --force one`"):
        run(*both)
    assert not list(store.folder(TWO).parent.glob("*/pieces"))


def test_tracking_holds_one_parent_and_a_nested_run_per_step(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracking: list[Tracking] = []

    def open_tracking() -> Tracking:
        tracking.append(Tracking(tmp_path, "test", Config(), {"recipe": "test"}))
        return tracking[0]

    run_steps([TWO], Store(tmp_path), Console(file=io.StringIO()), open_tracking)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("test")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    parent = next(run for name, run in runs.items() if name not in ("one", "two"))
    assert parent.info.status == runs["two"].info.status == "FINISHED"
    assert runs["one"].data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert runs["two"].data.metrics["final/sum"] == 3.0
    assert [
        point.value for point in client.get_metric_history(runs["one"].info.run_id, "loss")
    ] == [3.0, 2.0, 1.0]
    assert tracking[0].is_on
