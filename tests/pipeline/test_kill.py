"""kill -9 of the driver at several moments: the next run completes, and its outputs equal an undisturbed run's."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.files import sha256_file
from cluster.session import ROOT

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
OF_OURS = re.compile(r"[\d-]+T[\d:]+ INFO (cluster|curation|train|evaluate|pipeline)\.|recipe debug|^ *\d/8  |$")


def start(workspace: Path, log: Path | None = None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pipeline", "run", "debug", "--workspace", str(workspace)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    with open(log or os.devnull, "wb") as errors:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=errors)


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
    return [result["metrics"] for result in results]


def test_killed_run_equals_an_undisturbed_one(tmp_path: Path) -> None:
    calm, disturbed = tmp_path / "calm", tmp_path / "disturbed"
    assert start(calm, tmp_path / "log").wait() == 0
    assert not [line for line in (tmp_path / "log").read_text().splitlines() if not OF_OURS.match(line)]
    killed = [kill_when(disturbed, pattern) for pattern in MOMENTS]
    assert killed.count(True) >= 3  # the fastest of these moments may pass unseen
    assert start(disturbed).wait() == 0
    assert digests(disturbed) == digests(calm)
    assert scores(disturbed) == scores(calm)
    assert not list(disturbed.glob("*/*.partial"))
