"""Inside a SLURM allocation: Ray on all of its nodes, one driver, and an orderly end.

The batch process starts the head on its own node and one job step per further node, waits until Ray
counts them all, runs the driver and keeps its exit code. Only the batch process receives SLURM's
warning signal; it passes it on.
"""

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import ray
import submitit
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.gcs_pb2 import GcsNodeInfo  # type: ignore[attr-defined]
from submitit.helpers import DelayedSubmission

from cluster.endings import (
    FAILED,
    JOB_FOLDER,
    REQUEUE,
    STOPPING,
    FruitlessError,
    SessionError,
    StoppedError,
    kill_children,
)
from cluster.logs import setup_logging
from cluster.session import (
    BACK_OFF_S,
    START_ATTEMPTS,
    free_port,
    object_store_bytes,
    private_folder,
)
from cluster.tries import note_failed_start

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
        signal.signal(signal.SIGTERM, self._pass_on)
        sys.exit(self._run())

    def _run(self) -> int:
        """The exit code of the job, which is requeued where it should be."""
        folder = submitit.JobEnvironment().paths.folder
        try:
            code = self._code(folder)
        except FruitlessError as error:
            logger.error("%s", error)
            code = FAILED

        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # of the requeue, as nothing is left to end
        if code == REQUEUE and _goes_on():
            subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)

        return code

    def _code(self, folder: Path) -> int:
        """The driver's exit code; REQUEUE where it could not run, FruitlessError where that has
        happened before.
        """
        try:
            with _ray_nodes(folder, self.container) as address:
                return self._drive(address, folder)
        except StoppedError as error:
            logger.warning("stopped: %s", error)
        except StartError as error:
            logger.error("%s", error)
            note_failed_start(folder, error.node)

        return REQUEUE

    def _drive(self, address: str, folder: Path) -> int:
        """The driver's exit code, as shells count it."""
        environment = {"RAY_ADDRESS": address, JOB_FOLDER: str(folder)}
        self.driver = subprocess.Popen(self.command, env=os.environ | environment)
        # WNOWAIT: the exit code stays for the signal's handler, which waits as well.
        os.waitid(os.P_PID, self.driver.pid, os.WEXITED | os.WNOWAIT)
        code = self.driver.wait()
        logger.info("driver_exit=%d", code)
        return code if code >= 0 else 128 - code

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """SIGTERM, of `scancel` above all: the driver saves its state, in SLURM's KillWait."""
        if self.driver is None:
            raise StoppedError("asked to stop by SIGTERM before the driver ran")
        self.driver.send_signal(signal.SIGTERM)

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


class StartError(SessionError):
    """Ray could not be started on all nodes of the job."""

    def __init__(self, message: str, node: str) -> None:
        super().__init__(message)
        self.node = node
        """The one to blame, as far as known."""


def _goes_on() -> bool:
    """Whether SLURM would let the job run on: one that was cancelled, or has reached its time limit,
    must not come back.
    """
    shown = subprocess.run(
        ["scontrol", "--oneliner", "show", "job", os.environ["SLURM_JOB_ID"]],
        capture_output=True,
        text=True,
    ).stdout
    return "JobState=RUNNING" in shown


@contextmanager
def _ray_nodes(folder: Path, container: tuple[str, ...]) -> Iterator[str]:
    """Ray on every node of the allocation; yields the head's address once all are counted."""
    nodelist = os.environ["SLURM_JOB_NODELIST"]
    listed = subprocess.run(
        ["scontrol", "show", "hostnames", nodelist], check=True, capture_output=True, text=True
    )
    hosts = listed.stdout.split()
    cpus = _per_node(os.environ["SLURM_JOB_CPUS_PER_NODE"])
    address = f"{_address_of_this_node()}:{free_port()}"
    nodes = [_Node(hosts[0], ("head", address), folder)]

    try:
        _wait_for_nodes(address, nodes)
        for host, host_cpus in zip(hosts[1:], cpus[1:], strict=True):
            place = [
                "--overlap",
                "--nodes=1",
                "--ntasks=1",
                f"--nodelist={host}",
                f"--cpus-per-task={host_cpus}",
                "--mem=0",
            ]
            nodes.append(_Node(host, ("worker", address), folder, ("srun", *place, *container)))
        _wait_for_nodes(address, nodes)
        logger.info("ray=ready nodes=%d address=%s", len(hosts), address)
        yield address
    finally:
        for node in nodes:
            node.step.stdin.close()  # type: ignore[union-attr]
        deadline = time.monotonic() + STEP_GRACE_S
        for node in nodes:
            try:
                node.step.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                node.step.kill()


class _Node:
    """Ray on one node of the allocation, as the batch process sees it."""

    def __init__(
        self, host: str, arguments: tuple[str, ...], folder: Path, prefix: tuple[str, ...] = ()
    ) -> None:
        self.host = host
        start = f"{os.environ['SLURM_JOB_ID']}.{os.environ.get('SLURM_RESTART_COUNT', '0')}"
        self.log = folder / f"{start}.ray-{host}.log"
        self.command = [*prefix, sys.executable, "-m", "cluster.allocation", *arguments]
        self.attempt = 0
        self.start()

    def start(self) -> None:
        """Start Ray there, once more."""
        self.attempt += 1
        with self.log.open("a") as output:
            self.step = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=output, stderr=output
            )


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


def _wait_for_nodes(address: str, nodes: Sequence[_Node]) -> None:
    """Return when Ray counts all nodes. A Ray that ends before is started again, as on a busy node
    it misses its own deadlines of 30 to 60 s; StartError when that does not help or time runs out.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while (alive := _alive_nodes(address)) < len(nodes):
        for node in nodes:
            code = node.step.poll()
            if code is None:
                continue
            if node.attempt == START_ATTEMPTS:
                raise StartError(
                    f"Ray did not start on {node.host} in {START_ATTEMPTS} attempts (exit code "
                    f"{code}): all nodes of the job must start; see {node.log}",
                    node.host,
                )
            pause_s = BACK_OFF_S * 3 ** (node.attempt - 1)
            logger.warning(
                "Ray did not start on %s (attempt %d of %d, exit code %d), again in %g s; see %s",
                node.host,
                node.attempt,
                START_ATTEMPTS,
                code,
                pause_s,
                node.log,
            )
            time.sleep(pause_s)
            node.start()

        if time.monotonic() > deadline:
            raise StartError(
                f"Ray has {alive} of {len(nodes)} nodes after {START_TIMEOUT_S:.0f} s: all nodes of "
                f"the job must start; see *.ray-*.log in {nodes[0].log.parent}",
                nodes[-1].host,
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
    """One node's Ray, within what SLURM has given this job of it, until standard input ends, also
    because the batch process was killed.

    SLURM's SIGTERM does not end it: the driver must save its state first, and needs Ray for that.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # Ray's processes inherit it
    with private_folder(f"{os.environ['SLURM_JOB_ID']}-") as folder:
        command = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            "--block",
            "--disable-usage-stats",
            f"--temp-dir={folder}",
            "--min-worker-port=0",
            "--max-worker-port=0",
            *node_shares(os.environ),
        ]
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

        node = subprocess.Popen(command)
        threading.Thread(target=_end_with_input, args=(node,), daemon=True).start()
        return node.wait()


def _end_with_input(node: subprocess.Popen) -> None:
    """Kill Ray on this node when the batch process closes its end, or has none any more."""
    sys.stdin.read()
    kill_children()
    node.kill()


def node_shares(slurm: Mapping[str, str]) -> list[str]:
    """What Ray may use of this node, as options of `ray start`, by SLURM's environment.

    Ray would otherwise advertise the whole machine.
    """
    cpus = int(slurm["SLURM_CPUS_ON_NODE"])
    # Without GPUs, SLURM sets no number: Ray would count those that it sees.
    gpus = slurm.get("SLURM_GPUS_ON_NODE", "0")
    shares = [f"--num-cpus={cpus}", f"--num-gpus={gpus}"]

    megabytes = (
        int(slurm.get("SLURM_MEM_PER_NODE", 0)) or int(slurm.get("SLURM_MEM_PER_CPU", 0)) * cpus
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
