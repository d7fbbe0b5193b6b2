"""A running SLURM for the tests of a module."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_harness import local_slurm, missing


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A running SLURM, and the folder for its jobs; skips, with the reason, where none can run."""
    if reason := missing():
        pytest.skip(f"no local SLURM: {reason}")
    names = [name for name in os.environ if name.startswith(("SLURM", "RAY_", "SUBMITIT"))]
    with (
        local_slurm(tmp_path_factory.mktemp("slurm")) as environment,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name in names:
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        yield tmp_path_factory.mktemp("jobs")
