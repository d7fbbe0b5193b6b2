"""Checkpoints of sharded training through DCP: one directory per step, complete with its marker.

A save may run behind the training steps, on a process group of its own (on the default group, gloo
aborts the process). Rank 0 writes the marker when every rank has written its part; directories
without a marker are never read. A checkpoint can be loaded on another number of ranks. The best
one, by the score in its marker, is not deleted.
"""

import json
import math
import shutil
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from cluster.files import write_atomic
from train.config import CheckpointConfig
from train.parallel import plain_name

MARKER = "complete.json"
T = TypeVar("T")


class Checkpoints:
    """The checkpoints of one run; every rank makes the same calls."""

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self.folder = folder
        self.config = config
        self.tensors = checkpoint_tensors(model, optimizer)
        self.group = dist.new_group(backend="gloo")
        self.pending: tuple[int, float, Future] | None = None
        self.last_save_s = time.monotonic()
        self.best_score = self._from_first(lambda: best_score(folder))

    def is_due(self, step: int) -> bool:
        """Whether this rank would save after `step` finished steps; clocks of ranks may differ."""
        minutes = (time.monotonic() - self.last_save_s) / 60
        return step % self.config.every_steps == 0 or minutes >= self.config.every_minutes

    def load(self) -> int:
        """Read the last complete checkpoint into the model and optimizer; returns its step.

        Without one it returns 0. Directories of interrupted saves are removed.
        """
        last = self._from_first(self._clean)
        if last is None:
            return 0
        self._read(last)
        return step_of(last)

    def _clean(self) -> Path | None:
        complete = complete_checkpoints(self.folder)
        for path in {*self.folder.glob("step-*")} - {*complete}:
            shutil.rmtree(path)
        return complete[-1] if complete else None

    def _from_first(self, find: Callable[[], T]) -> T:
        """The result of `find` on rank 0, for all ranks.

        On a network file system the other ranks may still see an older state of the folder.
        """
        result: list[Any] = [find() if dist.get_rank() == 0 else None]
        dist.broadcast_object_list(result, group=self.group)
        return result[0]

    def load_best(self) -> None:
        """Read the checkpoint of the best score into the model and optimizer."""
        best = self._from_first(lambda: best_checkpoint(self.folder))
        assert best is not None
        self._read(best)

    def _read(self, path: Path) -> None:
        with _quiet():
            dcp.load(self.tensors, checkpoint_id=path, process_group=self.group)

    def save(self, step: int, score: float = -math.inf) -> None:
        """Save the state after `step` finished steps, with its score.

        An earlier save is completed first. All ranks call it; an asynchronous save copies the
        tensors before it returns.
        """
        self.wait()
        self.last_save_s = time.monotonic()
        self.best_score = max(score, self.best_score)

        path = self.folder / f"step-{step:08d}"
        if dist.get_rank() == 0 and path.exists():
            shutil.rmtree(path)  # of an interrupted save, perhaps on more ranks

        # No rank may write before rank 0 has removed the old directory.
        dist.barrier(self.group)

        with _quiet():
            if self.config.asynchronous:
                future = dcp.async_save(self.tensors, checkpoint_id=path, process_group=self.group)
                assert isinstance(future, Future)
                self.pending = (step, score, future)
            else:
                dcp.save(self.tensors, checkpoint_id=path, process_group=self.group)
                self._complete(step, score)

    def poll(self) -> None:
        """Mark the pending save as complete if it has ended."""
        if self.pending and self.pending[2].done():
            self.wait()

    def wait(self) -> None:
        """Wait for the pending save, if there is one; an error of the save is raised here."""
        if self.pending:
            step, score, future = self.pending
            future.result()
            self.pending = None
            self._complete(step, score)

    def _complete(self, step: int, score: float) -> None:
        """Mark the directory as complete, then drop old ones."""
        if dist.get_rank() != 0:
            return

        # DCP returns on rank 0 only after every rank has reported its part, so all files are there.
        path = self.folder / f"step-{step:08d}"
        marker = {"world_size": dist.get_world_size(), "score": score, "files": _sizes(path)}
        write_atomic(path / MARKER, json.dumps(marker))
        best = best_checkpoint(self.folder)
        for old in complete_checkpoints(self.folder)[: -self.config.keep]:
            if old != best:
                shutil.rmtree(old)


def checkpoint_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor that training carries from step to step, by a name independent of sharding."""
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[f"model.{plain_name(name)}"] = parameter.data
        for kind, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{kind}.{plain_name(name)}"] = value
    return tensors


def complete_checkpoints(folder: Path) -> list[Path]:
    """Directories with a marker and all the files that it lists, in the order of steps."""
    return [path for path in _marked(folder) if not _damage(path)]


def damaged_checkpoints(folder: Path) -> list[str]:
    """One line for every directory whose files differ from the list in its marker."""
    return [
        f"checkpoint {path} is damaged ({damage})"
        for path in _marked(folder)
        if (damage := _damage(path))
    ]


def _marked(folder: Path) -> list[Path]:
    return sorted((marker.parent for marker in folder.glob(f"step-*/{MARKER}")), key=step_of)


def _damage(path: Path) -> str:
    """What is wrong with a marked directory; empty when nothing is.

    Only sizes are compared, because reading whole checkpoints takes long.
    """
    try:
        listed = json.loads((path / MARKER).read_text())["files"]
        float(json.loads((path / MARKER).read_text())["score"])
    except (ValueError, KeyError, TypeError):
        return f"{MARKER} cannot be read"

    there = _sizes(path)
    for name, size in listed.items():
        if there.get(name) != size:
            return f"{name} has {there.get(name, 0)} bytes of {size}"

    return ""


def _sizes(path: Path) -> dict[str, int]:
    """Bytes of each file of a checkpoint, without its marker."""
    return {
        file.name: file.stat().st_size for file in sorted(path.iterdir()) if file.name != MARKER
    }


def saved_step(folder: Path) -> int:
    """How many steps the last complete checkpoint holds; 0 without one."""
    saved = complete_checkpoints(folder)
    return step_of(saved[-1]) if saved else 0


def best_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint with the highest score; None when none was scored."""
    scored = [path for path in complete_checkpoints(folder) if score_of(path) > -math.inf]
    return max(scored, key=score_of, default=None)


def best_score(folder: Path) -> float:
    """The highest score of a complete checkpoint; minus infinity when none was scored."""
    return max(map(score_of, complete_checkpoints(folder)), default=-math.inf)


def score_of(path: Path) -> float:
    """The score with which a complete checkpoint was saved; minus infinity if it had none."""
    return float(json.loads((path / MARKER).read_text())["score"])


def step_of(path: Path) -> int:
    """Number of finished steps, from the name of a checkpoint directory."""
    return int(path.name.removeprefix("step-"))


class _quiet(warnings.catch_warnings):  # noqa: N801 - reads as the context manager it is
    """DCP warns about its own internals at each call."""

    def __enter__(self) -> None:  # type: ignore[override]
        super().__enter__()
        warnings.simplefilter("ignore")
