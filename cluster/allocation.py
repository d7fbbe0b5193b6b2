"""Inside a SLURM allocation: Ray on all of its nodes, one driver, and an orderly end.

The batch process starts the head on its own node and one job step per further node, waits until Ray
counts them all, runs the driver and keeps its exit code. Only the batch process receives SLURM's
warning signal; it passes it on.
"""

import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import ray
import submitit
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.gcs_pb2 import GcsNodeInfo  # type: ignore[attr-defined]
from submitit.helpers import DelayedSubmission

from cluster.endings import REQUEUE
from cluster.logs import setup_logging
from cluster.session import folder_for_sockets, free_port, object_store_bytes

START_TIMEOUT_S = 300.0
DRIVER_GRACE_S = 45.0  # of SLURM's 60
STEP_GRACE_S = 15.0

logger = logging.getLogger(__name__)


@dataclass
class RayJob:
    """The batch process as submitit runs it."""

    command: tuple[str, ...]
    container: tuple[str, ...] = ()
    """Words before Python on further nodes, where everything runs in a container."""
    driver: subprocess.Popen | None = field(default=None, repr=False)

    def __call__(self) -> None:
        """Run the driver on the allocation's Ray and exit as it does; requeue the job when it asks
        for that.
        """
        setup_logging()
        with _ray_nodes(self.container) as address:
            self.driver = subprocess.Popen(self.command, env=os.environ | {"RAY_ADDRESS": address})
            os.waitid(
                os.P_PID, self.driver.pid, os.WEXITED | os.WNOWAIT
            )  # leaves `wait` to the signal's handler
            code = self.driver.wait()

        logger.info("driver_exit=%d", code)
        if code == REQUEUE:
            subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)

        sys.exit(code if code >= 0 else 128 - code)

    def checkpoint(self) -> DelayedSubmission:
        """Called when SLURM warns of the end: let the driver save, then be submitted again unless
        it has finished.
        """
        if self.driver is not None:
            self.driver.send_signal(signal.SIGUSR2)
            try:
                code = self.driver.wait(DRIVER_GRACE_S)
            except subprocess.TimeoutExpired:
                self.driver.kill()
                code = self.driver.wait()
            logger.info("driver_exit=%d warned=true", code)
            if code == 0:
                sys.exit(0)
        return DelayedSubmission(RayJob(self.command, self.container))


@contextmanager
def _ray_nodes(container: tuple[str, ...]) -> Iterator[str]:
    """Ray on every node of the allocation; yields the head's address once all are counted."""
    nodelist = os.environ["SLURM_JOB_NODELIST"]
    listed = subprocess.run(
        ["scontrol", "show", "hostnames", nodelist], check=True, capture_output=True, text=True
    )
    hosts = listed.stdout.split()
    cpus = _per_node(os.environ["SLURM_JOB_CPUS_PER_NODE"])
    address = f"{_address_of_this_node()}:{free_port()}"
    logs = submitit.JobEnvironment().paths.folder
    steps = {hosts[0]: _start(["head", address], logs / f"ray-{hosts[0]}.log")}

    try:
        _wait_for_nodes(address, 1, steps)
        for host, host_cpus in zip(hosts[1:], cpus[1:], strict=True):
            place = [
                "--overlap",
                "--nodes=1",
                "--ntasks=1",
                f"--nodelist={host}",
                f"--cpus-per-task={host_cpus}",
                "--mem=0",
            ]
            steps[host] = _start(
                ["worker", address], logs / f"ray-{host}.log", prefix=("srun", *place, *container)
            )
        _wait_for_nodes(address, len(hosts), steps)
        logger.info("ray=ready nodes=%d address=%s", len(hosts), address)
        yield address
    finally:
        for step in steps.values():
            step.stdin.close()  # type: ignore[union-attr]
        deadline = time.monotonic() + STEP_GRACE_S
        for step in steps.values():
            try:
                step.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                step.kill()


def _per_node(compressed: str) -> list[int]:
    """SLURM's counts per node: "2(x3),1" is [2, 2, 2, 1]."""
    counts = []
    for count, repeat in re.findall(r"(\d+)(?:\(x(\d+)\))?", compressed):
        counts += [int(count)] * int(repeat or 1)
    return counts


def _address_of_this_node() -> str:
    """The address under which the other nodes know this one; Ray's own guess where its name leads
    nowhere.
    """
    try:
        address = socket.gethostbyname(os.environ["SLURMD_NODENAME"])
    except OSError:
        address = "127.0.0.1"
    return ray.util.get_node_ip_address() if address.startswith("127.") else address


def _start(arguments: list[str], log: Path, prefix: tuple[str, ...] = ()) -> subprocess.Popen:
    with log.open("a") as output:
        command = [*prefix, sys.executable, "-m", "cluster.allocation", *arguments]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output)


def _wait_for_nodes(address: str, count: int, steps: Mapping[str, subprocess.Popen]) -> None:
    """Return when Ray counts `count` nodes; raise when the Ray of a node ends before or time runs
    out.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while (alive := _alive_nodes(address)) < count:
        ended = [host for host, step in steps.items() if step.poll() is not None]
        if ended or time.monotonic() > deadline:
            raise RuntimeError(
                f"Ray has {alive} of {count} nodes, ended on {ended}: all nodes of the job must "
                f"start; see ray-*.log in {submitit.JobEnvironment().paths.folder}"
            )
        time.sleep(0.5)


def _alive_nodes(address: str) -> int:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return 0
    nodes = GcsClient(address=address).get_all_node_info().values()
    return sum(node.state == GcsNodeInfo.ALIVE for node in nodes)


def run_node(role: str, address: str) -> int:
    """One node's Ray, within what SLURM has given this job of it, until standard input ends or
    SLURM says so.

    A signal to `srun` would kill the step; the end of its input, also when the batch process is
    killed, lets Ray end its own processes.
    """
    folder = folder_for_sockets(
        f"ray-{os.environ['SLURM_JOB_ID']}-{os.environ['SLURMD_NODENAME'][-16:]}"
    )
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier run of a requeued job
    folder.mkdir(mode=0o700)
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--block",
        "--disable-usage-stats",
    ]
    command += [f"--temp-dir={folder}", "--min-worker-port=0", "--max-worker-port=0", *_shares()]
    host, _, port = address.rpartition(":")

    if role == "head":
        command += [
            "--head",
            f"--node-ip-address={host}",
            f"--port={port}",
            "--include-dashboard=false",
        ]
    else:
        command += [f"--address={address}", f"--node-ip-address={_address_of_this_node()}"]

    try:
        node = subprocess.Popen(
            command, env=os.environ | {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
        )
        signal.signal(signal.SIGTERM, lambda *_: node.terminate())
        threading.Thread(target=_terminate_at_end_of_input, args=(node,), daemon=True).start()
        return node.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _terminate_at_end_of_input(node: subprocess.Popen) -> None:
    sys.stdin.read()
    node.terminate()


def _shares() -> list[str]:
    """Ray would otherwise advertise the whole machine."""
    cpus = int(os.environ["SLURM_CPUS_ON_NODE"])
    shares = [f"--num-cpus={cpus}"]
    if "SLURM_GPUS_ON_NODE" in os.environ:
        shares.append(f"--num-gpus={os.environ['SLURM_GPUS_ON_NODE']}")

    megabytes = (
        int(os.environ.get("SLURM_MEM_PER_NODE", 0))
        or int(os.environ.get("SLURM_MEM_PER_CPU", 0)) * cpus
    )

    if megabytes:
        object_store = object_store_bytes(megabytes * 2**20)
        shares += [
            f"--object-store-memory={object_store}",
            f"--memory={megabytes * 2**20 - object_store}",
        ]

    return shares


if __name__ == "__main__":
    sys.exit(run_node(sys.argv[1], sys.argv[2]))
