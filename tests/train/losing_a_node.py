"""Program: a Ray cluster of three nodes, one of which is lost while they train, and then another
comes.

`losing_a_node.py FOLDER` is the cluster, which starts `losing_a_node.py FOLDER ADDRESS`, the
training. That is told to stop when it has grown again. FOLDER/fewer.txt says up to which step two
workers were seen to train.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ray.cluster_utils import Cluster
from tiny import TINY

from cluster.endings import StoppedError
from cluster.files import read_jsonl
from cluster.resources import Resources
from cluster.session import session
from train.config import CheckpointConfig
from train.interruption import request_stop
from train.train import run

CONFIG = replace(
    TINY,
    num_steps=1_000_000,
    log_every=10,
    val_every=1_000_000,
    checkpoint=CheckpointConfig(every_steps=50),
    resources=Resources(workers=3, min_workers=1),
)


def lose_and_add(folder: Path) -> None:
    """The cluster; ends when the training has."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    lost = [cluster.add_node(num_cpus=1) for _ in range(3)][-1]
    with subprocess.Popen([sys.executable, __file__, str(folder), cluster.address]) as training:

        def until(is_ready: Callable[[list[dict]], bool]) -> None:
            while training.poll() is None and not is_ready(
                read_jsonl(folder / "out" / "metrics.jsonl")
            ):
                time.sleep(0.2)

        until(lambda rows: len(rows) > 5)
        cluster.remove_node(lost, allow_graceful=False)
        until(lambda rows: rows[-1]["workers"] == 2)
        cluster.add_node(num_cpus=1)
        fewer = 0

        def has_grown(rows: list[dict]) -> bool:
            nonlocal fewer
            fewer = max([fewer, *(row["step"] for row in rows if row["workers"] == 2)])
            return rows[-1]["workers"] == 3

        until(has_grown)
        (folder / "fewer.txt").write_text(str(fewer))
        request_stop(folder / "out")
    cluster.shutdown()


def train(folder: Path, address: str) -> None:
    """The training; ends when it is told to."""
    paths = {name: folder / name for name in ("embeddings", "selection", "tokenizer")}
    with session(address=address):
        try:
            run(CONFIG, out=folder / "out", **paths)
        except StoppedError as stopped:
            (folder / "stopped.txt").write_text(str(stopped))


if __name__ == "__main__":
    if len(sys.argv) == 2:
        lose_and_add(Path(sys.argv[1]))
    else:
        train(Path(sys.argv[1]), sys.argv[2])
