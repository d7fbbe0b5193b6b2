"""However a run ends, it says so in one line, with the right exit code, and leaves no process
behind.
"""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from disturbances import start, tree

from cluster.endings import KEPT

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]

EMBEDDING = "embed/*.partial/shard-*.json"
BESIDE = "images/*.partial/shard-*.json"  # in a thread, while other images are embedded
STARTING = "train/*.partial/failed.txt"
TRAINING = "train/*.partial/metrics.jsonl"


def send(number: signal.Signals) -> Callable[[subprocess.Popen[bytes]], None]:
    return lambda process: process.send_signal(number)


def interrupt_often(process: subprocess.Popen[bytes]) -> None:
    """Until it ends: the first Ctrl-C is handled, and any further one hastens the end."""
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)


def kill_server(name: str) -> Callable[[subprocess.Popen[bytes]], None]:
    def kill(process: subprocess.Popen[bytes]) -> None:
        next(child for child in tree(process) if child.name() == name).kill()

    return kill


@pytest.mark.parametrize(
    ("moment", "disturb", "code", "said"),
    [
        (EMBEDDING, send(signal.SIGINT), 130, f"interrupted: {KEPT}"),
        (TRAINING, send(signal.SIGINT), 130, f"interrupted: {KEPT}"),
        (TRAINING, interrupt_often, 130, "interrupted"),
        (STARTING, send(signal.SIGTERM), 85, "stopped: step train: asked to stop by "),
        (
            EMBEDDING,
            send(signal.SIGTERM),
            85,
            ": asked to stop by SIGTERM; what is finished is kept",
        ),
        (TRAINING, send(signal.SIGTERM), 85, "stopped: step train: asked to stop by a signal"),
        (BESIDE, send(signal.SIGINT), 130, f"interrupted: {KEPT}"),
        (BESIDE, send(signal.SIGTERM), 85, "stopped: asked to stop by SIGTERM; what is finished"),
        (BESIDE, kill_server("raylet"), 1, "error: Ray's raylet is gone"),
        (EMBEDDING, kill_server("raylet"), 1, "error: Ray's raylet is gone"),
        (TRAINING, kill_server("gcs_server"), 1, "error: Ray's gcs_server is gone"),
    ],
    ids=[
        "ctrl-c-embed",
        "ctrl-c-train",
        "ctrl-c-often",
        "term-start",
        "term-embed",
        "term-train",
        "ctrl-c-beside",
        "term-beside",
        "raylet-beside",
        "raylet",
        "gcs",
    ],
)
def test_a_run_says_how_it_ended(
    tmp_path: Path,
    moment: str,
    disturb: Callable[[subprocess.Popen[bytes]], None],
    code: int,
    said: str,
) -> None:
    log = tmp_path / "log"
    process = start(tmp_path / "w", log)
    while process.poll() is None and not list((tmp_path / "w").glob(moment)):
        time.sleep(0.01)
    family = tree(process)
    disturb(process)

    assert process.wait(timeout=120) == code
    text = log.read_text()
    assert said in text
    assert "Traceback" not in text
    assert "Started a local Ray" not in text
    assert "*** SIG" not in text
    _, left = psutil.wait_procs(family, timeout=20)
    assert left == []
