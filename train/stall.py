"""stalled/: what every rank was doing when no step was finished for too long.

Each rank has a thread that watches its own progress. Ranks wait for each other at every step, so
that one that hangs stalls all of them: the one to blame is the one furthest behind, or the one that
cannot even report. The first rank to report ends its process then, which makes Ray Train start the
workers again from the last checkpoint.

| file in `stalled/<time of the start>/` | says |
|---|---|
| `rank-*.txt` | in its first line, how far the rank was, as JSON; then the stacks of its threads |
| `summary.txt` | which rank is to blame; read by the driver |
"""

import faulthandler
import json
import logging
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist

from cluster.files import write_atomic
from cluster.words import duration
from train.failure import fail

STALLED = "stalled"
SUMMARY = "summary.txt"
PLACES = ("starts", "waits for data", "computes", "waits for the other ranks", "saves")
"""What a rank does in a step, in this order."""
LOOK_S = 1.0
GATHER_S = 10.0  # between a rank's own report and its look at those of the others
MOST_STALLS = 2  # at one checkpoint

logger = logging.getLogger(__name__)


class Watchdog:
    """A rank's progress, and the thread that watches it; a context manager. Every rank enters it at
    once.
    """

    def __init__(self, out: Path, limit_minutes: float | None, start: int) -> None:
        """`start` is the step that training begins with; without a limit nothing is watched."""
        self.out = out
        self.limit_s = 60 * limit_minutes if limit_minutes is not None else None
        self.start = start
        self.rank = dist.get_rank()
        self._step = start
        self._place = PLACES[0]
        self._moved_s = time.monotonic()
        self._ended = threading.Event()

    def __enter__(self) -> "Watchdog":
        if self.limit_s is None:
            return self

        names: list[Any] = [None] * dist.get_world_size()
        own = f"rank {self.rank} (process {os.getpid()} on {socket.gethostname()})"
        dist.all_gather_object(names, (own, time.strftime("%Y%m%d-%H%M%S")))
        self.names = [name for name, _ in names]
        self.folder = self.out / STALLED / names[0][1]
        threading.Thread(target=self._watch, name="watch-steps", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()

    def __call__(self, step: int, place: str) -> None:
        """The rank works at this step, and does this of PLACES."""
        self._step = step
        self._place = place
        self._moved_s = time.monotonic()

    def _watch(self) -> None:
        assert self.limit_s is not None
        while not self._ended.wait(LOOK_S):
            if time.monotonic() - self._moved_s >= self.limit_s:
                self._report()
                if not self._ended.wait(GATHER_S) and self._is_first():
                    self._summarize()
                    os._exit(1)
                return

    def _report(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        head = {"rank": self.rank, "step": self._step, "place": self._place}
        with (self.folder / f"rank-{self.rank}.txt").open("w") as file:
            file.write(json.dumps(head) + "\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)

    def _is_first(self) -> bool:
        return self.rank == min(_reports(self.folder))

    def _summarize(self) -> None:
        """Say which rank is to blame; after several stalls at one checkpoint, give up."""
        assert self.limit_s is not None
        reports = _reports(self.folder)
        text = (
            f"no step was finished for {duration(self.limit_s)}: "
            f"{blame(self.names, reports)}; stacks of all ranks are in {self.folder}"
        )
        write_atomic(self.folder / SUMMARY, f"{self.start} {text}\n")

        earlier = (self.out / STALLED).glob(f"*/{SUMMARY}")
        num_here = sum(path.read_text().startswith(f"{self.start} ") for path in earlier)
        if num_here >= MOST_STALLS:
            fail(self.out, f"training stalled {num_here} times after step {self.start}: {text}")


def blame(names: list[str], reports: dict[int, dict]) -> str:
    """Who holds the others up: ranks without a report, else those furthest behind.

    Of three ranks at step 7, of which two wait for the others and rank 1 waits for data, it is
    rank 1.
    """
    silent = [name for rank, name in enumerate(names) if rank not in reports]
    if silent:
        return f"{', '.join(silent)} gave no sign of life"

    def progress(rank: int) -> tuple[int, int]:
        return reports[rank]["step"], PLACES.index(reports[rank]["place"])

    least = min(map(progress, reports))
    behind = [names[rank] for rank in sorted(reports) if progress(rank) == least]
    step, place = least
    where = f"in step {step + 1}, where it {PLACES[place]}"
    if len(behind) == len(names) > 1:
        return f"all {len(names)} ranks stand at the same place, {where.replace('it ', 'each ')}"
    return f"{', '.join(behind)} is furthest behind, {where}"


def _reports(folder: Path) -> dict[int, dict]:
    """The first lines of all reports, by rank."""
    reports = {}
    for path in folder.glob("rank-*.txt"):
        with suppress(ValueError, IndexError):  # one that is being written
            report = json.loads(path.read_text().splitlines()[0])
            reports[report["rank"]] = report
    return reports


def log_stalls(out: Path, known: set[Path]) -> None:
    """Write new summaries into the log, each with the stacks of all ranks."""
    for summary in sorted((out / STALLED).glob(f"*/{SUMMARY}")):
        if summary not in known:
            known.add(summary)
            _, _, text = summary.read_text().strip().partition(" ")
            stacks = sorted(summary.parent.glob("rank-*.txt"))
            told = "\n".join(path.read_text(errors="replace").strip() for path in stacks)
            logger.warning("training stalled: %s\n%s", text, told)
