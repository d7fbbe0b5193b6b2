"""A real SLURM of two nodes, and one with feigned GPUs, on this machine: daemons in a process
namespace of their own, with accounts, limits and enforced memory.

Ending the namespace ends every process in it, jobs included. Needs root, `unshare`, and the daemons
of SLURM, munge and MariaDB.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cluster import slurm
from cluster.jobs import Job, ask_of
from cluster.limits import asked_partitions, smallest
from cluster.resources import Resources
from cluster.site import JobConfig

PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])  # where Debian's daemons lie
BINARIES = (
    "unshare",
    "munged",
    "slurmctld",
    "slurmd",
    "slurmdbd",
    "mariadbd",
    "mariadb-install-db",
    "sbatch",
    "srun",
    "scontrol",
    "sinfo",
    "sacct",
    "sacctmgr",
)
START_TIMEOUT_S = 60.0
POLL_S = 0.2
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")

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
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
KillWait=3
ReturnToService=2
JobRequeue=1
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=UsePss,OverMemoryKill
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={ports[4]}
AccountingStoragePass=socket={folder}/munge.sock
AccountingStorageEnforce=associations,limits,qos
AccountingStorageTRES=gres/gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
GresTypes=gpu
NodeName=DEFAULT CPUs=2 RealMemory=8000 State=UNKNOWN
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]}
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]}
NodeName=n3 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[3]} Gres=gpu:fake:2
PartitionName=DEFAULT Nodes=n1,n2 State=UP MaxTime=60 DefMemPerCPU=1000
PartitionName=low Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high PriorityTier=2 PreemptMode=OFF
PartitionName=gpu Nodes=n3
"""

DATABASE = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={ports[4]}
SlurmUser=root
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
"""

INIT = """
munged --foreground --force --socket=$1/munge.sock --key-file=$1/munge.key --pid-file=$1/munged.pid \
    --seed-file=$1/munge.seed --log-file=$1/munged.log &
mariadb-install-db --no-defaults --datadir=$1/db --auth-root-authentication-method=normal \
    --skip-test-db --user=root
mariadbd --no-defaults --user=root --datadir=$1/db --socket=$1/db.sock --skip-networking \
    --pid-file=$1/db.pid --log-error=$1/mariadb.log --performance-schema=OFF --skip-log-bin \
    --innodb-buffer-pool-size=32M --innodb-log-file-size=8M --innodb-flush-log-at-trx-commit=0 \
    --innodb-doublewrite=0 --innodb-lock-wait-timeout=900 --innodb-use-native-aio=0 &
until [ -S $1/munge.sock ] && [ -S $1/db.sock ]; do sleep 0.05; done
MYSQL_UNIX_PORT=$1/db.sock slurmdbd -D &
until sacctmgr -i add cluster test; do sleep 0.1; done
sacctmgr -i add account ml cluster=test
sacctmgr -i add qos narrow MaxTRESPerJob=cpu=1
sacctmgr -i add user root account=ml qos=normal,narrow defaultqos=normal
slurmctld -D & slurmd -D -N n1 & slurmd -D -N n2 & slurmd -D -N n3 & wait
"""


def missing() -> str:
    """Why SLURM cannot be started here; empty when it can."""
    absent = [name for name in BINARIES if shutil.which(name, path=PATH) is None]
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
    ports = _free_ports(5)
    folder.chmod(0o755)
    for name in ("state", "spool-n1", "spool-n2", "spool-n3", "db"):
        (folder / name).mkdir()
    for name, text in (("slurm.conf", CONFIGURATION), ("slurmdbd.conf", DATABASE)):
        filled = text.format(host=socket.gethostname(), ports=ports, folder=folder)
        (folder / name).write_text(filled)
        (folder / name).chmod(0o600)
    (folder / "munge.key").touch(0o600)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "gres.conf").write_text("NodeName=n3 Name=gpu Type=fake File=/dev/zero,/dev/full\n")
    (folder / "cgroup.conf").write_text(f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={folder}\n")

    environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}
    namespace = ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
    with (folder / "console.log").open("w") as console, slurm.without_leaks():
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


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


def submit(
    command: list[str],
    resources: Resources,
    folder: Path,
    name: str,
    site: JobConfig = JobConfig(),  # noqa: B008
) -> str:
    """Submit a command as `submit RECIPE` submits a step; its logs go to `folder/name`."""
    ask = ask_of(resources, site, smallest(asked_partitions(site)), name)
    job = Job(name, tuple(command), ask, site, folder / name)
    slurm.check(job)
    return slurm.submit(job)


def logs(folder: Path) -> str:
    """Every log below a folder."""
    files = sorted(folder.rglob("*.[lo][ou][gt]"))
    return "\n".join(f"== {path}\n{path.read_text()}" for path in files)


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
        if facts["JobState"] in ENDED:
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
