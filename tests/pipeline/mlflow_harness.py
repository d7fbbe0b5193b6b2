"""A real PostgreSQL on this machine, and MLflow's server on it, as a group of users has them.

Needs Debian's `postgresql` and the Python driver of the extra `postgres`. The database has a folder
of its own and listens on a socket in it alone; all of it ends with the test.
"""

import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DEBIAN = sorted(Path("/usr/lib/postgresql").glob("*/bin"))  # not on the PATH
PATH = os.pathsep.join([*map(str, reversed(DEBIAN)), os.environ["PATH"]])
USER = "postgres"  # made by Debian's package: a database refuses to run as root
START_TIMEOUT_S = 120.0
POLL_S = 0.2


def missing() -> str:
    """Why no database can be started here; empty where it can."""
    absent = [name for name in ("initdb", "postgres") if shutil.which(name, path=PATH) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    if importlib.util.find_spec("psycopg") is None:
        return "not installed: psycopg"
    is_root = os.geteuid() == 0
    return f"no user {USER}" if is_root and not _has_user() else ""


def _has_user() -> bool:
    return any(entry.pw_name == USER for entry in pwd.getpwall())


@contextmanager
def local_postgres() -> Iterator[str]:
    """The address of an empty database, as SQLAlchemy takes it."""
    initdb = str(shutil.which("initdb", path=PATH))
    postgres = str(shutil.which("postgres", path=PATH))

    # Not below pytest's folder, which only its owner may enter.
    with tempfile.TemporaryDirectory(prefix="pg-") as name:
        folder = Path(name)
        owner: dict[str, Any] = {}
        if os.geteuid() == 0:
            shutil.chown(folder, USER, USER)
            owner = {"user": USER, "group": USER, "extra_groups": ()}

        data = folder / "data"
        subprocess.run(
            [initdb, "--pgdata", data, "--username", USER, "--auth", "trust", "--no-sync"],
            check=True,
            capture_output=True,
            **owner,
        )
        options = ["-D", data, "-k", folder, "-h", "", "-F"]
        server = subprocess.Popen([postgres, *options], stderr=subprocess.DEVNULL, **owner)
        try:
            _wait(server, (folder / ".s.PGSQL.5432").exists)
            yield f"postgresql://{USER}@/postgres?host={folder}"
        finally:
            server.send_signal(2)  # SIGINT: open connections are closed
            server.wait()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def mlflow_server(database: str, folder: Path, port: int) -> Iterator[str]:
    """The address of an MLflow server on a database."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    store = ["--backend-store-uri", database, "--artifacts-destination", str(folder)]
    settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            [*command, *store, "--workers", "1"],
            env=os.environ | settings,
            stdout=log,
            stderr=log,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(server, lambda: _answers(f"{address}/health"))
        yield address
    finally:
        server.terminate()
        server.wait()


def _wait(server: "subprocess.Popen[bytes]", is_ready: Any) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not is_ready():
        if server.poll() is not None or time.monotonic() > deadline:
            raise TimeoutError(f"{server.args} did not start within {START_TIMEOUT_S:.0f} s")
        time.sleep(POLL_S)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False
