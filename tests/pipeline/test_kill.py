"""Kills at several moments: the next run completes, and its outputs equal an undisturbed run's.

`pytest -s -m slow tests/pipeline/test_kill.py` prints the table of the random kills.
"""

import json
import random
import re
import signal
import time
from pathlib import Path

import psutil
import pytest
from disturbances import start, tree

from cluster.files import sha256_file
from pipeline.record import Record
from pipeline.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1200)]

MOMENTS = (
    "embed/*.partial/shard-00000.json",
    "curate/*.partial/image/*",
    "train/*.partial/checkpoints/*/complete*",
    "evaluate/*.partial/results/*.json",
)
OUTPUTS = (
    "pool/*/train/*.tar",
    "embed/*/shard-*.arrow",
    "curate/*/selection.arrow",
    "curate/*/decisions.arrow",
    "train/*/model/model.safetensors",
)
OF_OURS = re.compile(
    r"[\d-]+T[\d:]+ INFO (cluster|curation|train|evaluate|pipeline)\.|recipe debug|^ *\d/8  |$"
)


def kill_when(workspace: Path, pattern: str) -> bool:
    """Whether a file came up, and the run was killed then; False when the run ended before."""
    process = start(workspace)
    while process.poll() is None:
        if any(workspace.glob(pattern)):
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.01)
    return False


def digests(workspace: Path) -> dict[str, str]:
    files = (path for pattern in OUTPUTS for path in sorted(workspace.glob(pattern)))
    return {str(path.relative_to(workspace)): sha256_file(path) for path in files}


def scores(workspace: Path) -> list[dict]:
    results = json.loads(next(workspace.glob("evaluate/*/results.json")).read_text())
    shown = ("set", "metric", "value", "low", "high", "n", "error")
    return [{name: result[name] for name in shown} for result in results]


def test_killed_run_equals_an_undisturbed_one(tmp_path: Path) -> None:
    calm = tmp_path / "calm"
    disturbed = tmp_path / "disturbed"
    assert start(calm, tmp_path / "log").wait() == 0
    assert not [
        line for line in (tmp_path / "log").read_text().splitlines() if not OF_OURS.match(line)
    ]
    killed = [kill_when(disturbed, pattern) for pattern in MOMENTS]
    assert killed.count(True) >= 3  # the fastest of these moments may pass unseen
    assert start(disturbed).wait() == 0
    assert digests(disturbed) == digests(calm)
    assert scores(disturbed) == scores(calm)
    assert not list(disturbed.glob("*/*.partial"))


VICTIMS = ("driver", "worker", "agent", "raylet", "gcs_server")
KILLS = 20


def kill_within(workspace: Path, victim: str, step: Record, after_s: float) -> int:
    """Run, kill one process some seconds after a step has begun, and give the exit code."""
    process = start(workspace)
    begun = Store(workspace).folder(step).with_suffix(".partial")
    while process.poll() is None and not begun.exists():
        time.sleep(0.05)

    end_s = time.monotonic() + after_s
    while process.poll() is None and time.monotonic() < end_s:
        time.sleep(0.05)

    if process.poll() is None:
        target = next(
            (child for child in tree(process) if is_victim(child, victim)),
            psutil.Process(process.pid),
        )
        target.kill()
    return process.wait(timeout=600)


def is_victim(process: psutil.Process, victim: str) -> bool:
    try:
        title = " ".join(process.cmdline())
        if process.name() == victim:
            return True
    except psutil.NoSuchProcess:
        return False

    is_agent = "Agent" in title
    return "ray::" in title and victim == ("agent" if is_agent else "worker")


@pytest.mark.timeout(3600)
def test_random_kills_of_any_process_change_no_bit(tmp_path: Path) -> None:
    """The moment is random in the time of all steps together. Where a workspace is past that moment,
    it is finished and compared, and a new one begins.
    """
    calm = tmp_path / "calm"
    assert start(calm).wait() == 0
    steps = Store(calm).records()

    chance = random.Random(0)
    print(f"\n{'killed':<12} {'in step':<22} {'after':>7}  code")
    disturbed = tmp_path / "disturbed-0"
    for number in range(KILLS):
        (step,) = chance.choices(steps, [step.seconds for step in steps])
        after_s = chance.uniform(0, step.seconds)
        victim = VICTIMS[number % len(VICTIMS)]
        if step.label in {record.label for record in Store(disturbed).records()}:
            assert start(disturbed).wait() == 0
            assert digests(disturbed) == digests(calm)
            assert scores(disturbed) == scores(calm)
            disturbed = tmp_path / f"disturbed-{number}"

        code = kill_within(disturbed, victim, step, after_s)
        print(f"{victim:<12} {step.label:<22} {after_s:>5.1f} s  {code}", flush=True)

    assert start(disturbed).wait() == 0
    assert digests(disturbed) == digests(calm)
    assert scores(disturbed) == scores(calm)
