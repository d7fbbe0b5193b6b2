"""Jobs of a Ray cluster as the command line shows them, of a server that speaks Ray's Jobs API."""

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from cluster import ray_jobs
from cluster.endings import USAGE
from pipeline.__main__ import main
from pipeline.graph import build_steps, resolve_backbone
from pipeline.presets import PRESETS
from pipeline.provenance import make_record
from pipeline.ray_submission import RAY_JOB
from pipeline.step import find_step, in_order
from pipeline.store import Store

STEPS = in_order(build_steps(resolve_backbone(PRESETS["debug"])))
TOKEN = "secret"


@dataclass
class Head:
    """What the head knows: its jobs by id, and what it was asked to end."""

    jobs: dict[str, dict] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)
    address: str = ""


class Answers(BaseHTTPRequestHandler):
    """Three of the routes of Ray's Jobs API."""

    def __init__(self, head: Head, *connection: object) -> None:
        self.head = head
        super().__init__(*connection)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        job, _, part = self.path.removeprefix("/api/jobs/").partition("/")
        known = self.head.jobs.get(job)
        self.answer(known if not part else {"logs": f"first\nlast of {job}\n"} if known else None)

    def do_POST(self) -> None:
        self.head.stopped.append(self.path.split("/")[3])
        self.answer({"stopped": True})

    def answer(self, body: dict | None) -> None:
        is_allowed = self.headers["Authorization"] == f"Bearer {TOKEN}"
        self.send_response(401 if not is_allowed else 404 if body is None else 200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode() if is_allowed else b"Unauthorized")

    def log_message(self, *words: object) -> None:
        """Stay quiet."""


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("PATH", "/nowhere")  # no SLURM
    head = Head()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Answers, head))
    head.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield head
    server.shutdown()
    thread.join()
    server.server_close()


def remember(
    workspace: Path,
    address: str,
    job: str,
    time: str = "20260101-000000",
    submitted: str = "2026-01-01T00:00:00+0000",
) -> None:
    """Write what a submission of the whole recipe leaves."""
    folder = workspace / "jobs" / f"{time}-debug"
    folder.mkdir(parents=True)
    kept = {
        "id": job,
        "name": "debug",
        "address": address,
        "steps": {step.label: step.fingerprint for step in STEPS},
        "submitted": submitted,
    }
    (folder / RAY_JOB).write_text(json.dumps(kept))


def train_row(workspace: Path, capsys: pytest.CaptureFixture[str]) -> dict:
    assert main(["status", "debug", "--json", "--workspace", str(workspace)]) == 0
    rows = json.loads(capsys.readouterr().out)["steps"]
    return next(row["job"] for row in rows if row["step"] == "train")


def table(workspace: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert main(["status", "debug", "--workspace", str(workspace), *flags]) == 0
    return capsys.readouterr().out


FAILURE = (
    "Job entrypoint command failed with exit code 1, last available logs:\n"
    "noise\nerror: step train failed: no room\n"
)
NO_ENVIRONMENT = (
    "Job entrypoint command failed with exit code 1, last available logs (truncated to 20,000 "
    "chars):\nTraceback (most recent call last):\n"
    "  File \"pipeline/__main__.py\", line 18\nModuleNotFoundError: No module named 'rich'\n"
)


@pytest.mark.parametrize(
    ("status", "message", "is_active", "remedy"),
    [
        ("PENDING", "Job has not started yet.", True, ""),
        ("RUNNING", "Job is currently running.", True, ""),
        ("SUCCEEDED", "Job finished successfully.", False, ""),
        ("FAILED", FAILURE, False, "step train failed: no room"),
        ("FAILED", NO_ENVIRONMENT, False, f"No module named 'rich'; {ray_jobs.AGAIN}"),
        ("FAILED", "Job supervisor died.", False, f"Job supervisor died.; {ray_jobs.AGAIN}"),
        ("STOPPED", "Job was intentionally stopped.", False, f"stopped; {ray_jobs.AGAIN}"),
    ],
)
def test_status_shows_the_state_of_a_ray_job(
    head: Head,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    status: str,
    message: str,
    is_active: bool,
    remedy: str,
) -> None:
    times = {"start_time": 1_000_000, "end_time": 1_090_000}
    head.jobs["raysubmit_1"] = {"status": status, "message": message, **times}
    remember(tmp_path, head.address, "raysubmit_1")
    job = train_row(tmp_path, capsys)
    seen = (job["id"], job["state"], job["is_active"], job["elapsed_s"])
    assert seen == ("raysubmit_1", status, is_active, 90)
    assert job["remedy"].endswith(remedy)
    assert bool(job["remedy"]) == bool(remedy)
    printed = table(tmp_path, capsys)
    assert ("waits in its job" if status == "RUNNING" else status.lower()) in printed
    assert printed.count(remedy) == 1 or not remedy


def test_only_the_last_submission_counts_and_a_new_head_does_not_know_it(
    head: Head, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head.jobs["raysubmit_1"] = {"status": "RUNNING"}
    remember(tmp_path, head.address, "raysubmit_1")
    remember(tmp_path, head.address, "raysubmit_2", "20260102-000000")
    job = train_row(tmp_path, capsys)
    assert (job["id"], job["state"], job["is_active"]) == ("raysubmit_2", "UNKNOWN", False)
    assert "does not know the job" in job["remedy"]


def test_a_wrong_token_is_told_from_a_lost_job(
    head: Head, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "other")
    head.jobs["raysubmit_1"] = {"status": "RUNNING"}
    remember(tmp_path, head.address, "raysubmit_1")
    assert "HTTP Error 401" in train_row(tmp_path, capsys)["remedy"]


def test_a_silent_head_is_said_in_one_line_and_asked_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_jobs, "ANSWER_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        remember(tmp_path, address, "raysubmit_1")
        printed = table(tmp_path, capsys, "--watch")  # ends: nothing is known to run
        states = ray_jobs.job_states([(address, "a"), (address, "b")])
        code = main(["cancel", "debug", "--workspace", str(tmp_path)])

    assert printed.count("does not answer") == 1
    assert "head unreachable" in printed
    assert {state.state for state in states.values()} == {ray_jobs.UNREACHABLE}
    assert code == USAGE  # nobody knows whether the job was ended
    assert address in capsys.readouterr().err


def test_logs_and_cancel_reach_the_job(
    head: Head, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head.jobs["raysubmit_1"] = {"status": "RUNNING"}
    remember(tmp_path, head.address, "raysubmit_1")
    where = ["--workspace", str(tmp_path)]
    assert main(["logs", "debug", "train", *where]) == 0
    assert capsys.readouterr().out == "first\nlast of raysubmit_1\n"

    assert main(["cancel", "debug", *where]) == 0
    assert head.stopped == ["raysubmit_1"]
    head.jobs["raysubmit_1"]["status"] = "STOPPED"
    assert main(["logs", "debug", "train", "--follow", *where]) == 0  # ends with the job
    assert main(["cancel", "debug", *where]) == 0
    assert head.stopped == ["raysubmit_1"]


def test_what_a_ray_job_is_making_is_not_submitted_again(
    head: Head, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head.jobs["raysubmit_1"] = {"status": "PENDING"}
    remember(tmp_path, head.address, "raysubmit_1")
    where = ["--workspace", str(tmp_path), "--cluster", head.address]
    assert main(["submit", "debug", *where]) == USAGE
    assert "is in Ray job raysubmit_1, which is PENDING" in capsys.readouterr().err


def test_a_dry_run_for_ray_prints_the_command_and_leaves_nothing(
    head: Head, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--workspace", str(tmp_path / "a b"), "--cluster", head.address]
    assert main(["submit", "debug", "--dry-run", "--only", "embed", *where]) == 0
    title, command = capsys.readouterr().out.splitlines()
    assert title.endswith(": pool, embed")
    assert command.endswith(f"--workspace '{tmp_path}/a b' --only embed")
    assert not (tmp_path / "a b" / "jobs").exists()


def test_a_job_that_makes_a_finished_output_again_is_seen_and_can_be_ended(
    head: Head, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after `submit --force`: the older record is no reason to forget the job."""
    store = Store(tmp_path)
    train = find_step(STEPS, "train")
    out = store.partial(train)
    out.mkdir(parents=True)
    store.commit(train, make_record(train, {}, out, datetime.now(UTC), 1.0, {}))

    head.jobs["raysubmit_1"] = {"status": "RUNNING"}
    remember(tmp_path, head.address, "raysubmit_1", submitted="2999-01-01T00:00:00+0000")
    assert train_row(tmp_path, capsys)["is_active"]
    assert main(["cancel", "debug", "--workspace", str(tmp_path)]) == 0
    assert head.stopped == ["raysubmit_1"]
