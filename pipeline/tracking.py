"""MLflow: one parent run per pipeline run, one nested run per step that ran; live metrics, system
metrics, data sets, artifacts.

Tracking never stops the work. When the server fails, it warns and is off for a while; then it tries
again, with a longer pause each time. Metrics of a step lie in its metrics.jsonl and are sent then;
a run that could not be opened stays off.
"""

import hashlib
import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import psutil
from filelock import FileLock

from cluster.endings import StoppedError
from cluster.files import read_jsonl
from cluster.identity import Json, identity
from cluster.usage import own_job_usage
from pipeline.experiments import experiment_of, origin, prepare_mlflow, tracking_uri
from pipeline.outcome import Outcome, ReadData
from pipeline.step import Step

if TYPE_CHECKING:
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

T = TypeVar("T")

POLL_S = 2.0
FIRST_PAUSE_S = 60.0  # without the server, before it is asked again
LONGEST_PAUSE_S = 3600.0
PARAM_CHARS = 500
NO_METRIC_NAME = re.compile(r"[^\w/. -]")
NOTE = "mlflow.note.content"


class Tracking:
    """The parent run of one pipeline run; all methods are safe to call from the runner's
    threads.
    """

    def __init__(
        self, workspace: Path, recipe: str, config: object, tags: Mapping[str, str]
    ) -> None:
        prepare_mlflow()
        self.uri = tracking_uri(workspace)
        self.is_on = True
        self.experiment = ""
        """Identity of the recipe's experiment; empty while tracking is off."""
        self._owner = _owner(workspace)
        self._origin = origin()
        # Of the runs that are not ended yet: what each is to end with.
        self._statuses: dict[str, str] = {}
        self._runs: dict[str, str] = {}
        """Nested runs by the label of their step."""
        self._lock = threading.RLock()
        self._is_open = False
        self._pause_s = FIRST_PAUSE_S
        self._asked_again_at_s = 0.0
        """When a server that failed is asked again, by the clock of `time.monotonic`."""
        with _one_at_a_time(workspace):
            self._guard(lambda: self._open(workspace, recipe, config, tags))

    def _open(self, workspace: Path, recipe: str, config: object, tags: Mapping[str, str]) -> None:
        # Imported here, because it takes two seconds, for which other words need not wait.
        from mlflow import MlflowClient

        self._client = MlflowClient(self.uri)
        self.experiment = experiment_of(self._client, workspace, recipe)
        self._end_abandoned()
        name = time.strftime(f"{recipe} %F %T")
        self._parent = self._client.create_run(
            self.experiment, run_name=name, tags={**tags, **self._owner, **self._origin}
        ).info.run_id
        self._statuses[self._parent] = "FAILED"
        self._log_params(self._parent, config)
        self._is_open = True

    def _end_abandoned(self) -> None:
        """Runs of processes that were killed are shown as killed, not as running for ever: those of
        this machine, and those of earlier tries of this SLURM job on other nodes.
        """
        for run in self._running():
            tags = run.data.tags
            is_here = tags.get("host") == self._owner["host"]
            is_earlier_try = bool(tags.get("job")) and tags.get("job") == self._owner["job"]
            if is_earlier_try or (is_here and not psutil.pid_exists(int(tags["pid"]))):
                self._client.set_terminated(run.info.run_id, "KILLED")

    def _running(self, *conditions: str) -> "list[Run]":
        """Runs of the experiment that look as if they were running."""
        query = " and ".join(["attributes.status = 'RUNNING'", *conditions])
        return list(self._client.search_runs([self.experiment], query))

    def _end_earlier(self, fingerprint: str) -> None:
        """End what an earlier process, on whatever node, has left of a step that is claimed now: it
        cannot run any more, and neither can the pipeline around it.
        """
        workspace = f"tags.workspace = '{self._owner['workspace']}'"
        for run in self._running(f"tags.fingerprint = '{fingerprint}'", workspace):
            for abandoned in (run.info.run_id, run.data.tags["mlflow.parentRunId"]):
                if abandoned != self._parent:
                    self._client.set_terminated(abandoned, "KILLED")

    @contextmanager
    def step(self, step: Step, out: Path) -> Iterator[Callable[[Mapping[str, float]], None]]:
        """A nested run that follows `out/metrics.jsonl`; the yielded function records the summary,
        as final/*.
        """
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._end_pause()  # what is not opened now has no run at all
        run = self._guard(lambda: self._start_step(step))
        if run is None:
            yield lambda summary: None
            return

        monitor = SystemMetricsMonitor(run, tracking_uri=self.uri)
        self._guard(monitor.start)
        stop = threading.Event()
        follower = threading.Thread(
            target=self._follow, args=(run, out / "metrics.jsonl", stop), daemon=True
        )
        follower.start()

        try:
            yield lambda summary: self._log_summary(run, summary)
            self._statuses[run] = "FINISHED"
        except BaseException as error:
            self._statuses[run] = status_after(error)
            raise
        finally:
            stop.set()
            follower.join()
            self._guard(monitor.finish)
            self._guard(lambda: self._log_job(run))
            self._guard(lambda: self._end(run))

    def _log_summary(self, run: str, summary: Mapping[str, float]) -> None:
        self._end_pause()
        self._log_metrics(run, [(f"final/{name}", value, 0) for name, value in summary.items()])

    def _start_step(self, step: Step) -> str:
        """The identity of a nested run."""
        self._end_earlier(step.fingerprint)
        tags = {
            "mlflow.parentRunId": self._parent,
            "fingerprint": step.fingerprint,
            "step": step.name,
        }
        run = self._client.create_run(
            self.experiment, run_name=step.label, tags={**tags, **self._owner, **self._origin}
        ).info.run_id
        self._statuses[run] = "FAILED"
        self._runs[step.label] = run
        self._log_params(run, step.config)

        return run

    def _log_job(self, run: str) -> None:
        """What the SLURM job around a step has asked for and used until now, all its steps together;
        nothing outside of SLURM.
        """
        usage = own_job_usage()
        if usage is None:
            return

        facts = {f"slurm_{name}": value for name, value in asdict(usage).items()}
        words = {name: value for name, value in facts.items() if isinstance(value, str)}
        for name, value in words.items():
            self._client.set_tag(run, name, value)
        numbers = [(name, facts[name], 0) for name in facts if name not in words]
        self._log_metrics(run, numbers)

    def finish(self, status: str, outcome: Callable[[], Outcome]) -> None:
        """Give the runs what the pipeline has come to, and end every run, also where tracking is
        off by now.
        """
        if self._statuses:
            self._end_pause()
            self._guard(lambda: self._log_outcome(outcome()))
            self._statuses[self._parent] = status
            self._guard(self._end_all, also_off=True)

    def _log_outcome(self, outcome: Outcome) -> None:
        """Scores, data and files of the parent run; data of each nested run; the note of the
        experiment.
        """
        self._log_metrics(
            self._parent, [(name, value, 0) for name, value in outcome.metrics.items()]
        )
        self._client.set_tag(self._parent, NOTE, outcome.note)
        self._client.set_experiment_tag(self.experiment, NOTE, outcome.note)

        # The same set is scored once per model, and a run lists it once.
        every = {(data.name, data.digest): data for read in outcome.data.values() for data in read}
        self._log_data(self._parent, list(every.values()))
        for label, run in self._runs.items():
            self._log_data(run, outcome.data.get(label, ()))

        for folder, path in outcome.artifacts.items():
            self._client.log_artifact(self._parent, str(path), folder.replace("@", "."))

    def _log_data(self, run: str, data: Sequence[ReadData]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Dataset(
                    name=each.name,
                    digest=each.digest,
                    source_type="local",
                    source=json.dumps({"uri": each.source}),
                    profile=json.dumps({"num_rows": each.rows}),
                ),
                [InputTag("mlflow.data.context", each.context)],
            )
            for each in data
        ]
        if inputs:
            self._client.log_inputs(run, inputs)

    def _end_all(self) -> None:
        for run in list(self._statuses):
            self._end(run)

    def _end(self, run: str) -> None:
        self._client.set_terminated(run, self._statuses[run])
        del self._statuses[run]

    def _log_params(self, run: str, config: object) -> None:
        from mlflow.entities import Param

        params = [
            Param(name, _shortened(str(value))) for name, value in flatten(identity(config)).items()
        ]
        for start in range(0, len(params), 100):
            self._client.log_batch(run, params=params[start : start + 100])

    def _log_metrics(self, run: str, values: list[tuple[str, float, int]]) -> bool:
        """Send metrics (name, value, step); whether all of them arrived."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [
            Metric(NO_METRIC_NAME.sub("_", name), float(value), now, step)
            for name, value, step in values
        ]

        def send(start: int) -> bool:
            self._client.log_batch(run, metrics=metrics[start : start + 1000])
            return True

        # Metrics that arrive twice count once, so that a part may be sent again.
        return all(self._guard(partial(send, start)) for start in range(0, len(metrics), 1000))

    def _follow(self, run: str, path: Path, stop: threading.Event) -> None:
        """Send each new line of the step's metrics once, also when a restarted worker has shortened
        the file.
        """
        last_step = -1
        while True:
            ending = stop.wait(POLL_S)
            if ending:
                self._end_pause()
            rows = [row for row in read_jsonl(path) if row["step"] > last_step]
            if rows:
                names = (
                    (row, name) for row in rows for name in row if name not in ("step", "time")
                )
                values = [(name, row[name], row["step"]) for row, name in names]
                if self._log_metrics(run, values):
                    last_step = rows[-1]["step"]
            if ending:
                return

    def _guard(self, action: Callable[[], T], also_off: bool = False) -> T | None:
        """The action's result; None where the tracking server fails, and during the pause after
        that.
        """
        is_pause = not self._is_open or time.monotonic() < self._asked_again_at_s
        if not self.is_on and is_pause and not also_off:
            return None

        try:
            with self._lock:
                result = action()
        except Exception as error:
            # The boundary: whatever the tracking server does must not stop the work.
            self._begin_pause(error)
            return None

        if not self.is_on and not also_off:
            self.is_on = True
            logger.warning("tracking=on uri=%s: the server answers again", self.uri)
        return result

    def _begin_pause(self, error: Exception) -> None:
        """Leave the server alone for a while, longer each time."""
        if self.is_on:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            logger.warning(
                "tracking=off uri=%s reason=%s: the run goes on without, and asks again later; start "
                "the server again, or move an mlflow.db that cannot be read away",
                self.uri,
                reason,
            )

        self.is_on = False
        self._asked_again_at_s = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def _end_pause(self) -> None:
        """Ask a server that failed at the next occasion: it would be the last one."""
        self._asked_again_at_s = 0.0


def _shortened(value: str) -> str:
    """MLflow's servers refuse longer values."""
    note = "... (whole in record.json)"
    return value if len(value) <= PARAM_CHARS else value[: PARAM_CHARS - len(note)] + note


def _one_at_a_time(workspace: Path) -> FileLock:
    """MLflow creates its tables on first use, and two runs that begin together would both try."""
    path = workspace / ".locks" / "mlflow"
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)


def _owner(workspace: Path) -> dict[str, str]:
    """The process that a run belongs to; `job` is empty outside of SLURM."""
    return {
        "host": socket.gethostname(),
        "pid": str(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID", ""),
        "workspace": hashlib.sha256(str(workspace.resolve()).encode()).hexdigest()[:16],
    }


def status_after(error: BaseException) -> str:
    """MLflow's word for a run that ended with an error, or because somebody asked it to end."""
    was_asked = isinstance(error, StoppedError | KeyboardInterrupt)
    return "KILLED" if was_asked or isinstance(error.__cause__, StoppedError) else "FAILED"


def flatten(value: Json, prefix: str = "") -> dict[str, Json]:
    """Nested mappings as one, with dotted names."""
    if not isinstance(value, dict):
        return {prefix: value}
    nested = (flatten(item, f"{prefix}.{name}" if prefix else name) for name, item in value.items())
    return {name: item for mapping in nested for name, item in mapping.items()}
