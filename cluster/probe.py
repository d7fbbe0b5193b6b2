"""What a compute node has, seen from inside a job: `python -m cluster.probe FILE` writes it as
JSON.
"""

import importlib
import json
import os
import resource
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path

from cluster.files import write_atomic

NEEDED = ("torch", "ray", "pyarrow", "curation.curate", "train.train", "evaluate.evaluate")


def look() -> dict:
    """The facts of this node that jobs depend on."""
    problems = []
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            problems.append(f"{name}: {error}")

    return {
        "host": os.environ.get("SLURMD_NODENAME", socket.gethostname()),
        "time": time.time(),
        "python": sys.executable,
        "import_problems": problems,
        "gpus_seen": _gpus_seen(),
        "gpus_given": int(os.environ.get("SLURM_GPUS_ON_NODE", 0)),
        "temporary": tempfile.gettempdir(),
        "temporary_free": shutil.disk_usage(tempfile.gettempdir()).free,
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }


def _gpus_seen() -> int:
    try:
        import torch
    except ImportError:
        return 0
    return torch.cuda.device_count()


if __name__ == "__main__":
    write_atomic(Path(sys.argv[1]), json.dumps(look()))
