"""Ray's servers: this process ends when one of them is gone, and their reports are one line each.

Ray itself says nothing for a minute when a server is lost, and then ends the process from C++.
"""

import logging
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial

import psutil
import ray
from ray._private import worker as ray_worker

from cluster.endings import KEPT, code_of_lost_session, end_now

WATCH_S = 0.5  # between two looks at the servers
SILENCE_S = 30.0  # after which a server of another cluster counts as lost; Ray waits a minute
OF_A_WORKER = "A worker died or was killed"  # whoever started the worker says more

logger = logging.getLogger(__name__)


def _servers() -> list[psutil.Process]:
    """The servers of Ray that this process has started and that cannot be replaced."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if _name(child) in ("gcs_server", "raylet")]


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def end_servers() -> None:
    """Kill what an attempt to start Ray has left."""
    for server in _servers():
        with suppress(psutil.NoSuchProcess):
            server.kill()


def own_servers() -> dict[str, Callable[[], bool]]:
    """The servers of a session of this process, and whether each runs."""
    return {_name(server): partial(_is_alive, server) for server in _servers()}


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def this_process_ends_with(
    servers: Mapping[str, Callable[[], bool]], patience_s: float = 0.0
) -> Iterator[None]:
    """End this process, with one line, when one of Ray's servers is gone for `patience_s`: Ray
    itself waits a minute, without a word.
    """
    seen_s = dict.fromkeys(servers, time.monotonic())
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(WATCH_S):
            for name, is_running in servers.items():
                now_s = time.monotonic()
                if is_running():
                    seen_s[name] = now_s
                elif now_s - seen_s[name] >= patience_s and not is_over.is_set():
                    _end_without(name)

    thread = threading.Thread(target=watch, name="watch-ray", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _end_without(server: str) -> None:
    """No Python code of the main thread may run again before Ray's C++ has given up: the process
    ends here.
    """
    end_now(
        f"[red]error:[/red] Ray's {server} is gone, which ends the session; {KEPT}, and look "
        "for missing memory if this happens again",
        code_of_lost_session(),
    )


@contextmanager
def agents_end_with_this_process() -> Iterator[None]:
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


def listening_servers() -> dict[str, Callable[[], bool]]:
    """The two servers of a cluster that this driver cannot do without, and whether each runs."""
    context = ray.get_runtime_context()
    own = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    addresses = {
        "GCS": context.gcs_address,
        "raylet": f"{own['NodeManagerAddress']}:{own['NodeManagerPort']}",
    }
    return {
        f"{name} at {address}": partial(answers, address, 0.0)
        for name, address in addresses.items()
    }


def answers(address: str, patience_s: float) -> bool:
    """Whether somebody listens at [scheme://]host:port, within some seconds."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        return True  # Ray's own words say what is wrong with it

    deadline = time.monotonic() + patience_s
    while not _listens(host, int(port)):
        if time.monotonic() >= deadline:
            return False
        time.sleep(WATCH_S)

    return True


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True


def shorten_reports() -> None:
    """What Ray's servers report, such as the loss of a node, becomes one line of the log.

    Ray prints each report to standard output, with dozens of lines of the state of its servers.
    """
    original = ray_worker.print_to_stdstream
    if original.__module__ == __name__:
        return

    told = set[str]()

    def print_to_stdstream(data: dict, ignore_prefix: bool) -> None:
        if data.get("pid") != "raylet" or is_verbose():
            original(data, ignore_prefix)
            return
        report = first_line(data["lines"])
        if report not in told and not report.startswith(OF_A_WORKER):
            told.add(report)
            logger.warning("ray reports: %s", report)

    ray_worker.print_to_stdstream = print_to_stdstream


def first_line(lines: Sequence[str]) -> str:
    """The first line of a report, without the explanations that follow in it."""
    text = next((line for part in lines for line in part.splitlines() if line.strip()), "")
    for explanation in (" Possible reasons include", " This can happen when"):
        text = text.partition(explanation)[0]
    return text.strip()[:300]


def is_verbose() -> bool:
    """Whether the output of workers goes to this terminal; errors come as exceptions in any
    case.
    """
    return logging.getLogger().isEnabledFor(logging.DEBUG)
