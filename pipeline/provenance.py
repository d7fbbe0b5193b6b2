"""How an output came to be: the record of a step, with the code, the versions and the machine that
made it.
"""

import platform
import socket
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from cluster.identity import identity
from pipeline.record import Record
from pipeline.step import Step
from pipeline.store import checksums, list_files

ROOT = Path(__file__).resolve().parent.parent
VERSIONS_OF = ("torch", "ray", "pyarrow", "numpy", "mlflow", "sentencepiece")


def make_record(
    step: Step,
    summary: Mapping[str, float],
    out: Path,
    started: datetime,
    seconds: float,
    choices: Mapping[str, str],
) -> Record:
    """The record of a step that has just ended with its output in `out`, on this machine, with this
    code.
    """
    commit, dirty = git_state()
    return Record(
        step=step.name,
        label=step.label,
        fingerprint=step.fingerprint,
        config=identity(step.config),
        inputs=step.input_identities(),
        summary=dict(summary),
        commit=commit,
        dirty=dirty,
        environment=environment(),
        command=" ".join(sys.argv),
        host=socket.gethostname(),
        started=started.isoformat(timespec="seconds"),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 3),
        files=list_files(out),
        choices=dict(choices),
        checksums=checksums(out),
    )


def git_state() -> tuple[str, bool]:
    """Commit of the code that runs, and whether it has uncommitted changes; ("", False) outside a
    checkout.
    """

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))


def environment() -> dict[str, str]:
    """Versions and machine that a figure may depend on."""
    packages = {name: version(name) for name in VERSIONS_OF}
    return {"python": platform.python_version(), "platform": platform.platform(), **packages}
