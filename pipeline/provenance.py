"""The record of a finished step: its code, versions, machine, inputs and results."""

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
    """The record of a step that has just finished here, with its output in `out`.

    `seconds` is the time of this run alone, `started` its start.
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
    """Commit of the running code, and whether it has uncommitted changes.

    Outside a git checkout, and where git is not installed: ("", False).
    """

    # In the folder of the code, wherever the command was started; a failure gives an empty text.
    def git(*words: str) -> str:
        try:
            done = subprocess.run(
                ["git", *words], cwd=ROOT, capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            return ""
        return done.stdout.strip()

    return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))


def environment() -> dict[str, str]:
    """Versions and platform on which a figure may depend."""
    packages = {name: version(name) for name in VERSIONS_OF}
    return {"python": platform.python_version(), "platform": platform.platform(), **packages}
