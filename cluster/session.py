"""One Ray session: a new local one, or a connection to a cluster that runs already.

The only `ray.init` of the project, and the only place that says where workers find the five
packages. A local session dies with its driver, however that dies; the folder that a killed driver
leaves in /tmp is removed by the next session.
"""

import fcntl
import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import ray
from ray._private.authentication import authentication_token_setup

from cluster.endings import FAILED, SessionError
from cluster.logs import console
from cluster.progress import progress
from cluster.resources import OBJECT_STORE_SHARE
from cluster.threads import choose_blas_kernels

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("cluster", "curation", "train", "evaluate", "pipeline")
# A checkout may hold workspaces of any name and size: all but the packages stays. In gitignore's
# words, "/." is ROOT.
NOT_SHIPPED = ["/*", "!/.", *(f"!/{name}" for name in PACKAGES), "__pycache__"]
LONGEST_FOLDER = 41  # bytes; Ray's sockets lie 64 deeper, one may end in ".1", and a socket's path is limited to 107
OBJECT_STORE_MOST = 8 * 1024**3
OBJECT_STORE_LEAST = 80 * 1024**2  # what Ray accepts
LOCK = "lock"
START_ATTEMPTS = 3
WATCH_S = 0.5  # between two looks at the servers

logger = logging.getLogger(__name__)


@contextmanager
def session(address: str | None = None, num_cpus: int | None = None) -> Iterator[None]:
    """A Ray session for the body: at `address`, else at $RAY_ADDRESS, else a new local one with
    `num_cpus`.

    Inside an existing session it does nothing, so that steps and tests may open one wherever they
    need it.
    """
    if ray.is_initialized():
        yield
        return

    address = address or os.environ.get("RAY_ADDRESS") or "local"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "120")
    choose_blas_kernels()
    if address == "local":
        _use_private_token()

    with _local(num_cpus) if address == "local" else _connected(address):
        yield


def _use_private_token() -> None:
    """A token of this process; left alone, Ray writes one that every user can read into the home
    folder.
    """
    if "RAY_AUTH_MODE" not in os.environ and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        logging.getLogger(authentication_token_setup.__name__).setLevel(
            logging.ERROR
        )  # says that tokens are on


@contextmanager
def _connected(address: str) -> Iterator[None]:
    os.environ.setdefault(
        "RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES", ""
    )  # NOT_SHIPPED says it all
    os.environ.setdefault(
        "RAY_OVERRIDE_JOB_RUNTIME_ENV", "1"
    )  # in a Ray job, whose own working_dir Ray would refuse
    runtime_env = {"working_dir": str(ROOT), "excludes": NOT_SHIPPED}
    ray.init(
        address=address,
        runtime_env=runtime_env,
        log_to_driver=_is_verbose(),
        logging_level=logging.WARNING,
    )
    logger.info("ray=connected address=%s cpus=%g", address, ray.cluster_resources().get("CPU", 0))

    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _local(num_cpus: int | None) -> Iterator[None]:
    with _private_folder() as folder, _importable_in_workers():
        with progress(None, "Ray session"):
            _start(num_cpus, folder)
        logger.debug("ray=local folder=%s cpus=%g", folder, ray.cluster_resources().get("CPU", 0))

        try:
            with _agents_end_with_this_process(), _this_process_ends_with_ray():
                yield
        finally:
            ray.shutdown()


def _start(num_cpus: int | None, folder: Path) -> None:
    """Start Ray's servers. On a busy machine they miss Ray's own deadline of 30 s: then they are
    started again.
    """
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                log_to_driver=_is_verbose(),
                logging_level=logging.WARNING,
                object_store_memory=object_store_bytes(psutil.virtual_memory().total),
                _temp_dir=str(folder),
            )
            return
        except ValueError:  # of an argument: the same again would end alike
            raise
        except (
            Exception
        ) as error:  # Ray's start raises errors of many kinds, bare Exception among them
            reason = " ".join(str(error).split())[:300]
            ray.shutdown()
            _end_servers()
            if attempt == START_ATTEMPTS:
                raise SessionError(
                    f"Ray did not start in {START_ATTEMPTS} attempts ({type(error).__name__}: "
                    f"{reason}): its servers must answer within 30 seconds; run the same command "
                    "again when this machine is less busy"
                ) from error
            logger.warning(
                "Ray did not start (attempt %d of %d): %s", attempt, START_ATTEMPTS, reason
            )


def _servers() -> list[psutil.Process]:
    """The servers of Ray that this process has started and that cannot be replaced."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if _name(child) in ("gcs_server", "raylet")]


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def _end_servers() -> None:
    for server in _servers():
        with suppress(psutil.NoSuchProcess):
            server.kill()


@contextmanager
def _this_process_ends_with_ray() -> Iterator[None]:
    """End this process, with one line, when a server of its session dies: Ray itself waits a
    minute, without a word.
    """
    servers = {server: _name(server) for server in _servers()}
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(WATCH_S):
            for server, name in servers.items():
                if not _is_alive(server) and not is_over.is_set():
                    _end_with(name)

    thread = threading.Thread(target=watch, name="watch-ray", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _end_with(server: str) -> None:
    """No Python code of the main thread may run again before Ray's C++ has given up: the process
    ends here.
    """
    console().print(
        f"[red]error:[/red] Ray's {server} was killed, which ends the session; what is finished "
        "is kept: run the same command again to continue, and look for missing memory if this "
        "happens again",
        highlight=False,
        soft_wrap=True,
    )
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.kill()

    os._exit(FAILED)


@contextmanager
def _agents_end_with_this_process() -> Iterator[None]:
    """End Ray's agents at once when this process is killed; all else of Ray does so by itself, they
    take a minute.

    The watcher reads a pipe that only this process writes to: its end is the end of this process.
    """
    agents = [
        str(child.pid) for child in psutil.Process().children(recursive=True) if _is_agent(child)
    ]
    command = ["sh", "-c", 'cat > /dev/null; kill -9 "$@"', "watcher", *agents]
    quiet = subprocess.DEVNULL

    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True
    ) as watcher:
        try:
            yield
        finally:
            watcher.kill()


def _is_agent(process: psutil.Process) -> bool:
    try:
        return "agent" in " ".join(process.cmdline()).lower()
    except psutil.NoSuchProcess:
        return False


def _is_verbose() -> bool:
    """Whether the output of workers goes to this terminal; errors come as exceptions in any
    case.
    """
    return logging.getLogger().isEnabledFor(logging.DEBUG)


def object_store_bytes(memory: int) -> int:
    """Bytes for Ray's object store on a node that may use `memory` bytes in all."""
    shared_memory = (
        shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else OBJECT_STORE_MOST
    )
    size = min(OBJECT_STORE_MOST, OBJECT_STORE_SHARE * memory, 0.8 * shared_memory)
    return max(OBJECT_STORE_LEAST, int(size))


@contextmanager
def _importable_in_workers() -> Iterator[None]:
    """PYTHONPATH for the processes that Ray starts: the repository and what else this driver
    imports from outside.
    """
    installed = (sys.prefix, sys.base_prefix)
    own = [
        entry
        for entry in sys.path
        if entry and not entry.startswith(installed) and not entry.endswith(".zip")
    ]
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        dict.fromkeys([str(ROOT), *own, *filter(None, [before])])
    )

    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@contextmanager
def _private_folder() -> Iterator[Path]:
    """A folder for sockets and logs, locked while its driver lives."""
    prefix = f"ray-{os.getuid()}-"
    folder = folder_for_sockets(prefix + secrets.token_hex(4))
    for stale in folder.parent.glob(prefix + "*"):
        _remove_if_abandoned(stale)

    folder.mkdir(mode=0o700)
    with (folder / "locking").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (folder / "locking").rename(folder / LOCK)  # under this name it is never seen unlocked
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_if_abandoned(folder: Path) -> None:
    try:
        with (folder / LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # in use, or not locked yet
        logger.debug("session_folder=%s left=true", folder)


def folder_for_sockets(name: str) -> Path:
    """`name` in the temporary folder, or in /tmp where that lies too deep for the sockets of a Ray
    in it.
    """
    folder = Path(tempfile.gettempdir()) / name
    return folder if len(os.fsencode(folder)) <= LONGEST_FOLDER else Path("/tmp") / name


def free_port() -> int:
    """A TCP port of this node that nobody listens on."""
    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]
