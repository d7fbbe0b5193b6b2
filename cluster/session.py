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
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import ray
from ray._private import auto_init_hook
from ray._private.authentication import authentication_token_setup

from cluster.endings import SessionError, StoppedError
from cluster.progress import progress
from cluster.resources import OBJECT_STORE_SHARE
from cluster.servers import (
    SILENCE_S,
    agents_end_with_this_process,
    answers,
    end_servers,
    is_verbose,
    listening_servers,
    own_servers,
    shorten_reports,
    this_process_ends_with,
)
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
BACK_OFF_S = 5.0  # before the second attempt, three times as long before the next
ANSWER_S = 10.0  # in which a cluster that is said to run must answer

# Left alone, Ray starts another session for a thread that still asks it something when this one has
# ended, as a step does that was interrupted.
auto_init_hook.enable_auto_connect = False

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
    shorten_reports()
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
        # It says at each start that tokens are on.
        logging.getLogger(authentication_token_setup.__name__).setLevel(logging.ERROR)


@contextmanager
def _connected(address: str) -> Iterator[None]:
    # NOT_SHIPPED says it all.
    os.environ.setdefault("RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES", "")
    # In a Ray job, Ray would refuse the job's own working_dir.
    os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
    _connect(address)
    logger.info("ray=connected address=%s cpus=%g", address, ray.cluster_resources().get("CPU", 0))

    try:
        with this_process_ends_with(listening_servers(), SILENCE_S):
            yield
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    """Join a cluster. SessionError, after seconds instead of Ray's 16 minutes, when none answers."""
    if address != "auto" and not answers(address, ANSWER_S):
        raise SessionError(
            f"no Ray cluster answers at {address} (tried for {ANSWER_S:.0f} s): RAY_ADDRESS "
            "must name the host and port of a head that runs; start one with `ray start --head`, "
            "correct the address, or unset RAY_ADDRESS for a session on this machine"
        )

    try:
        ray.init(
            address=address,
            runtime_env={"working_dir": str(ROOT), "excludes": NOT_SHIPPED},
            log_to_driver=is_verbose(),
            logging_level=logging.WARNING,
        )
    except SystemExit as error:
        raise StoppedError("asked to stop by SIGTERM") from error
    except Exception as error:  # Ray raises errors of many kinds, bare Exception among them
        raise SessionError(
            f"the Ray cluster at {address} could not be joined ({_described(error)}): it must run "
            "the version of Ray that is installed here, and know this process's token; look at "
            "its head with `ray status`"
        ) from error


def _described(error: BaseException) -> str:
    """An error of Ray in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


@contextmanager
def _local(num_cpus: int | None) -> Iterator[None]:
    with private_folder() as folder, _importable_in_workers():
        with progress(None, "Ray session"):
            _start(num_cpus, folder)
        logger.debug("ray=local folder=%s cpus=%g", folder, ray.cluster_resources().get("CPU", 0))

        try:
            with agents_end_with_this_process(), this_process_ends_with(own_servers()):
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
                log_to_driver=is_verbose(),
                logging_level=logging.WARNING,
                object_store_memory=object_store_bytes(psutil.virtual_memory().total),
                _temp_dir=str(folder),
            )
            return
        except ValueError:  # of an argument: the same again would end alike
            raise
        except SystemExit as error:  # what Ray makes of SIGTERM while it starts
            raise StoppedError("asked to stop by SIGTERM") from error
        except Exception as error:  # Ray raises errors of many kinds, bare Exception among them
            reason = _described(error)
            ray.shutdown()
            end_servers()
            if attempt == START_ATTEMPTS:
                raise SessionError(
                    f"Ray did not start in {START_ATTEMPTS} attempts ({reason}): its servers must "
                    "answer within 30 seconds; run the same command again when this machine is "
                    "less busy"
                ) from error
            pause_s = BACK_OFF_S * 3 ** (attempt - 1)
            logger.warning(
                "Ray did not start (attempt %d of %d), again in %g s: %s",
                attempt,
                START_ATTEMPTS,
                pause_s,
                reason,
            )
            time.sleep(pause_s)


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
def private_folder(label: str = "") -> Iterator[Path]:
    """A folder for the sockets and logs of one Ray, locked while the process that started it lives.

    Those that killed processes of this user have left on this node are removed.
    """
    prefix = f"ray-{os.getuid()}-"
    folder = folder_for_sockets(prefix + label + secrets.token_hex(4))
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
