"""Ray sessions: workers import the rooms from anywhere, and a killed driver leaves nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import ray

from cluster import session as sessions
from cluster.endings import SessionError
from cluster.servers import first_line
from cluster.session import (
    LONGEST_FOLDER,
    OBJECT_STORE_LEAST,
    PACKAGES,
    ROOT,
    folder_for_sockets,
    free_port,
    object_store_bytes,
    session,
)

pytestmark = pytest.mark.ray

OF_A_SESSION = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "PYTHONPATH")
DRIVER = """
import sys
sys.path.insert(0, {root!r})
import ray
from cluster.session import session

@ray.remote(num_cpus=1)
def origin(name):
    import importlib
    return importlib.import_module(name).__file__

with session({address!r}):
    print(*ray.get([origin.remote(name) for name in ("cluster", "curation", "train", "evaluate", "pipeline")]))
    print("ready", flush=True)
    {then}
"""


def driver(then: str, address: str | None = None) -> list[str]:
    return [sys.executable, "-c", DRIVER.format(root=str(ROOT), address=address, then=then)]


def alone() -> dict[str, str]:
    """An environment without the Ray session of this process."""
    return {name: value for name, value in os.environ.items() if name not in OF_A_SESSION}


@pytest.mark.usefixtures("ray_session")
def test_session_inside_a_session_does_nothing_and_works_in_threads() -> None:
    def inside(_: int) -> str:
        with session(num_cpus=1):
            return ray.get_runtime_context().get_node_id()

    with ThreadPoolExecutor(2) as threads:
        assert len(set(threads.map(inside, range(4)))) == 1
    assert ray.is_initialized()
    assert ray.cluster_resources()["CPU"] == 3


def test_workers_of_a_local_session_import_the_rooms_from_any_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        driver("pass"), capture_output=True, text=True, cwd=tmp_path, env=alone(), check=True
    )
    names = ("cluster", "curation", "train", "evaluate", "pipeline")
    assert done.stdout.splitlines()[0].split() == [
        str(ROOT / name / "__init__.py") for name in names
    ]
    assert done.stderr == ""


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A temporary folder whose name is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.slow
def test_a_killed_driver_leaves_no_process_and_the_next_session_removes_its_folder(
    short_folder: Path,
) -> None:
    environment = alone() | {"TMPDIR": str(short_folder)}
    killed = subprocess.Popen(
        driver("import time; time.sleep(600)"), stdout=subprocess.PIPE, text=True, env=environment
    )
    assert killed.stdout is not None
    while "ready" not in killed.stdout.readline():
        assert killed.poll() is None
    family = psutil.Process(killed.pid).children(recursive=True)
    assert any("raylet" in process.name() for process in family)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    _, alive = psutil.wait_procs(family, timeout=15)
    assert alive == []
    assert len(list(short_folder.iterdir())) == 1
    subprocess.run(driver("pass"), env=environment, check=True, capture_output=True)
    assert list(short_folder.iterdir()) == []


@pytest.mark.slow
def test_a_lost_node_loses_no_item_and_the_code_travels_to_the_cluster(short_folder: Path) -> None:
    """Of a checkout in which a workspace lies, too, and in a Ray job that has a working_dir of its
    own.
    """
    program = Path(__file__).with_name("losing_a_node.py")
    checkout = short_folder / "checkout"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    code = sorted(str(path.relative_to(checkout)) for path in checkout.rglob("*") if path.is_file())
    for other in ("runs/train/checkpoint.pth", ".git/HEAD", "cluster/__pycache__/session.pyc"):
        (checkout / other).parent.mkdir(parents=True)
        (checkout / other).write_bytes(b"large")
    environment = alone() | {"PYTHONPATH": str(checkout), "RAY_TMPDIR": str(short_folder)}
    job = {"runtime_env": {"working_dir": "gcs://_ray_pkg_0123456789abcdef.zip"}}
    environment["RAY_JOB_CONFIG_JSON_ENV_VAR"] = json.dumps(job)
    subprocess.run(
        [sys.executable, str(program), str(short_folder)],
        env=environment,
        check=True,
        capture_output=True,
    )
    result = json.loads((short_folder / "result.json").read_text())
    assert [item for item, _ in result["answers"]] == list(range(12))
    assert {node for _, (node, _) in result["answers"]} <= set(result["nodes"])
    assert dict(result["answers"])[0][0] != result["victim"]
    assert all(
        [name for name in files if not name.endswith(".pyc")] == code
        for _, (_, files) in result["answers"]
    )


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("server", ["gcs_server", "raylet", "DashboardAgent"])
def test_a_run_on_a_cluster_says_so_when_a_server_of_it_dies(
    server: str, short_folder: Path
) -> None:
    port = free_port()
    environment = alone() | {"RAY_AUTH_MODE": "disabled"}
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    options = {
        "port": port,
        "node-ip-address": "127.0.0.1",
        "temp-dir": short_folder,
        "num-cpus": 1,
        "object-store-memory": OBJECT_STORE_LEAST,
        "include-dashboard": "false",
    }
    start += [f"--{name}={value}" for name, value in options.items()]
    head = subprocess.Popen(start, stdout=subprocess.DEVNULL, env=environment)
    try:
        with subprocess.Popen(
            driver("import time; time.sleep(600)", f"127.0.0.1:{port}"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        ) as run:
            assert run.stdout is not None
            assert run.stderr is not None
            while "ready" not in run.stdout.readline():
                assert run.poll() is None
            victim = next(
                process
                for process in psutil.Process(head.pid).children(recursive=True)
                if server in " ".join(process.cmdline()[:2])
            )
            victim.kill()
            assert run.wait() == 1
            told = run.stderr.read()
        assert "is gone, which ends the session" in told
        assert "*** SIG" not in told
    finally:
        for process in psutil.Process(head.pid).children(recursive=True):
            process.kill()
        head.kill()
        head.wait()


def test_an_address_where_nobody_listens_is_named_before_ray_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions, "ANSWER_S", 0.1)
    monkeypatch.setattr(sessions.ray, "is_initialized", lambda: False)
    with (
        pytest.raises(SessionError, match=r"no Ray cluster answers at 127\.0\.0\.1:1 "),
        session("127.0.0.1:1"),
    ):
        pass


def test_a_report_of_rays_servers_is_one_line() -> None:
    report = "Raylet is terminated. Termination is unexpected. Possible reasons include: (1) OOM"
    assert (
        first_line([f"{report}\n  [state-dump] 1\n  [state-dump] 2"])
        == "Raylet is terminated. Termination is unexpected."
    )


@pytest.mark.parametrize("depth", [4, LONGEST_FOLDER - 6, LONGEST_FOLDER - 5, 200])
def test_the_folder_of_a_ray_is_short_enough_for_its_sockets(
    depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = "/" + "x" * (depth - 1)
    monkeypatch.setattr(tempfile, "tempdir", root)
    folder = folder_for_sockets("ray-1")
    assert folder == Path(root if depth + 6 <= LONGEST_FOLDER else "/tmp", "ray-1")
    sockets = f"{folder}/session_2026-11-23_05-44-44_123456_4194304/sockets/plasma_store.1"
    assert len(sockets) <= 107


def test_the_object_store_has_its_share_of_what_a_node_may_use() -> None:
    assert object_store_bytes(2**20) == OBJECT_STORE_LEAST
    assert OBJECT_STORE_LEAST <= object_store_bytes(2**60) <= 8 * 2**30
