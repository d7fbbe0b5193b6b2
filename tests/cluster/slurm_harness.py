"""A real SLURM of two nodes, and one with feigned GPUs, on this machine: daemons in a process
namespace of their own.

Ending the namespace ends every process in it, jobs included. Needs root, `unshare` and the SLURM
and munge daemons.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

BINARIES = ("unshare", "munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo")
START_TIMEOUT_S = 30.0
POLL_S = 0.2

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.sock,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
KillWait=3
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
GresTypes=gpu
NodeName=DEFAULT CPUs=2 RealMemory=4000 State=UNKNOWN
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]}
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]}
NodeName=n3 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[3]} Gres=gpu:fake:2
PartitionName=DEFAULT Nodes=n1,n2 State=UP MaxTime=60 DefMemPerCPU=1000
PartitionName=low Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high PriorityTier=2 PreemptMode=OFF
PartitionName=gpu Nodes=n3
"""

INIT = """
munged --foreground --force --socket=$1/munge.sock --key-file=$1/munge.key --pid-file=$1/munged.pid \
    --seed-file=$1/munge.seed --log-file=$1/munged.log &
until [ -S $1/munge.sock ]; do sleep 0.05; done
slurmctld -D & slurmd -D -N n1 & slurmd -D -N n2 & slurmd -D -N n3 & wait
"""


def missing() -> str:
    """Why SLURM cannot be started here; empty when it can."""
    absent = [name for name in BINARIES if shutil.which(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    if os.geteuid() != 0:
        return "needs root"
    namespaces = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True
    )
    return "" if namespaces.returncode == 0 else "no namespaces here"


@contextmanager
def local_slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Run SLURM with its state in `folder`; yields what the environment needs to reach it."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(4)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        ports = [free.getsockname()[1] for free in sockets]
    folder.chmod(0o755)
    for name in ("state", "spool-n1", "spool-n2", "spool-n3"):
        (folder / name).mkdir()
    (folder / "munge.key").touch(0o600)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(host=socket.gethostname(), ports=ports, folder=folder)
    )
    (folder / "gres.conf").write_text("NodeName=n3 Name=gpu Type=fake File=/dev/zero,/dev/full\n")
    (folder / "cgroup.conf").write_text(f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={folder}\n")
    environment = {"SLURM_CONF": str(folder / "slurm.conf")}
    namespace = ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
    with (folder / "console.log").open("w") as console:
        init = [*namespace, "sh", "-c", INIT, "init", str(folder)]
        machine = subprocess.Popen(
            init, env=os.environ | environment, stdout=console, stderr=console
        )
    try:
        _wait_until_idle(os.environ | environment, folder)
        yield environment
    finally:
        machine.kill()
        machine.wait()


def wait_for_end(job: str, timeout_s: float = 300.0) -> dict[str, str]:
    """What SLURM says of a job once it has ended for good: state, exit code, restarts ..."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        shown = subprocess.run(
            ["scontrol", "--oneliner", "show", "job", job],
            capture_output=True,
            text=True,
            check=True,
        )
        facts = dict(fact.split("=", 1) for fact in shown.stdout.split() if "=" in fact)
        if facts["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"):
            return facts
        time.sleep(POLL_S)
    raise TimeoutError(f"job {job} did not end within {timeout_s:.0f} s: {shown.stdout}")


def _wait_until_idle(environment: dict[str, str], folder: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        nodes = subprocess.run(
            ["sinfo", "-h", "-N", "-p", "low,gpu", "-o", "%T"],
            env=environment,
            capture_output=True,
            text=True,
        )
        if nodes.stdout.split() == ["idle"] * 3:
            return
        time.sleep(POLL_S)
    logs = "\n".join(path.read_text() for path in folder.glob("*.log"))
    raise TimeoutError(f"SLURM did not start within {START_TIMEOUT_S:.0f} s:\n{logs}")
