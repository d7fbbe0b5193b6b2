"""Fixtures shared by all rooms: one Ray session for the whole run."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

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


@pytest.fixture(scope="session")
def object_store() -> Iterator[Callable[[Path, str], Path]]:
    """An S3 of this process: copies a file or folder to a name in it, and gives the address."""
    import pyarrow.fs as pafs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (settings | {"AWS_DEFAULT_REGION": "us-east-1"}).items():
            patch.setenv(name, value)
        store = pafs.S3FileSystem(endpoint_override=endpoint, allow_bucket_creation=True)
        store.create_dir("bucket")

        def upload(local: Path, name: str) -> Path:
            pafs.copy_files(str(local), f"bucket/{name}", destination_filesystem=store)
            return Path(f"s3://bucket/{name}")

        yield upload
    server.stop()


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte; skips where one cannot be mounted."""
    folder = tmp_path / "full_disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
