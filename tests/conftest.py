"""Fixtures shared by all rooms: one Ray session for the whole run."""

import os
from collections.abc import Iterator

import pytest

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray session with three logical CPUs."""
    from cluster.session import session

    with session(num_cpus=3):
        yield
