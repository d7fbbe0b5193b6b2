"""A run of the debug recipe as a process of its own, for tests that disturb it."""

import os
import subprocess
import sys
from pathlib import Path

import psutil

from cluster.session import ROOT


def start(workspace: Path, log: Path | None = None) -> subprocess.Popen[bytes]:
    """Run debug in a workspace; what it says to standard error goes to `log`."""
    command = [sys.executable, "-m", "pipeline", "run", "debug", "--workspace", str(workspace)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    with open(log or os.devnull, "wb") as errors:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=errors
        )


def tree(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """All processes that a run has started."""
    return psutil.Process(process.pid).children(recursive=True)
