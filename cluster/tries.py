"""<job>.tries.jsonl in the folder of a SLURM job: what each try of the job began with, so that one
that gets nowhere ends.

A requeued job keeps its id and its folder. A try whose Ray did not start, or that begins with the
same finished work as the one before, shows that a try has finished nothing.
"""

import os
import socket
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cluster.endings import JOB_FOLDER, FruitlessError
from cluster.files import append_jsonl, read_jsonl

MOST_FRUITLESS = 2
NOT_STARTED = "Ray did not start"


def note_try(finished: str) -> None:
    """Note, in a SLURM job of ours, what is finished when its driver begins. FruitlessError when the
    last tries have added nothing to it.
    """
    if JOB_FOLDER not in os.environ:
        return

    folder = Path(os.environ[JOB_FOLDER])
    rows = read_jsonl(_file(folder))
    append_jsonl(_file(folder), {"node": _own_node(), "finished": finished})
    _refuse_another(folder, _fruitless(rows, finished))


def note_failed_start(folder: Path, node: str) -> None:
    """Note that Ray did not start on a node. FruitlessError when the try before has finished nothing
    either.
    """
    append_jsonl(_file(folder), {"node": node, "finished": NOT_STARTED})
    _refuse_another(folder, _fruitless(read_jsonl(_file(folder)), NOT_STARTED))


def _file(folder: Path) -> Path:
    return folder / f"{os.environ['SLURM_JOB_ID']}.tries.jsonl"


def _own_node() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _fruitless(rows: Sequence[dict], finished: str) -> list[dict]:
    """The last tries in a row that have finished nothing, the newest first.

    Before a try that begins with "two shards": of "one shard", "two shards", "two shards", the last
    two.
    """
    fruitless = []
    for row in reversed(rows):
        if row["finished"] not in (finished, NOT_STARTED):
            break
        fruitless.append(row)
    return fruitless


def _refuse_another(folder: Path, fruitless: Sequence[dict]) -> None:
    if len(fruitless) < MOST_FRUITLESS:
        return

    nodes = Counter(row["node"] for row in fruitless)
    where = ", ".join(f"{count} on {node}" for node, count in nodes.most_common())
    raise FruitlessError(
        f"{len(fruitless)} tries of this job in a row have finished nothing ({where}): a job that "
        f"gets nowhere is not requeued; look in {folder} for what ended them, raise the time limit "
        "if it is too short for one part of the work, exclude a node that failed twice, and submit "
        "again"
    )
