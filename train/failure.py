"""failed.txt: the error for which training is not tried again, by any rank, for all others and the
driver.

Its bytes are on the disk, blank, before training starts: the reason is written over them, so that a
disk without any room left can still say that it is full.
"""

import errno
import shutil
from pathlib import Path

import torch
from torch.distributed.checkpoint.api import CheckpointException

from train.config import TrainConfig

REASON = "failed.txt"
REASON_BYTES = 4096
FULL_BYTES = 1 << 20  # what a disk may say is free when nothing more can be written
LASTING = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
}  # other OSErrors pass
WOULD_FAIL_AGAIN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    CheckpointException,
    torch.OutOfMemoryError,
)
BYTES_PER_WEIGHT = 12  # of a checkpoint: a weight and its two moments, in float32
MODEL_BYTES_PER_WEIGHT = 4


def reserve_reason(out: Path) -> None:
    """Forget an earlier failure, and have room for the next one."""
    (out / REASON).write_bytes(b" " * REASON_BYTES)


def failure(out: Path) -> str:
    """Why training must not be tried again; empty while it may be."""
    try:
        return (out / REASON).read_bytes().decode(errors="replace").strip()
    except FileNotFoundError:
        return ""


def note_failure(out: Path, error: BaseException) -> None:
    """Write down an error that another try would repeat; others are left to Ray, which tries
    again.
    """
    if not _would_fail_again(out, error):
        return

    fail(out, f"{_described(error)}; {_full(out)}" if _is_full(out) else _described(error))


def fail(out: Path, reason: str) -> None:
    """Write down why training must not be tried again."""
    with (out / REASON).open("r+b") as file:  # over the blanks: no new room is needed
        file.write(reason.encode()[:REASON_BYTES].ljust(REASON_BYTES))


def _would_fail_again(out: Path, error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in LASTING or _is_full(out)
    return isinstance(error, WOULD_FAIL_AGAIN) or _is_full(out)


def _described(error: BaseException) -> str:
    """The error in one line; of a checkpoint, the first rank's."""
    if isinstance(error, CheckpointException):
        rank, (cause, _) = min(error.failures.items(), key=lambda item: item[0])
        return f"a checkpoint could not be written or read (rank {rank}: {_described(cause)})"
    return f"{type(error).__name__}: {error}"


def _is_full(out: Path) -> bool:
    return shutil.disk_usage(out).free < FULL_BYTES


def _full(out: Path) -> str:
    return f"the disk of {out} is full: free space on it"


def check_space(config: TrainConfig, out: Path, checkpoints: Path, num_weights: int) -> None:
    """OSError, before anything is trained, when the checkpoints and models that a run writes do not
    fit on the disk.
    """
    # A checkpoint is complete before the oldest one goes, and the best one is kept beside the
    # others.
    num_checkpoints = min(
        config.checkpoint.keep + 1, 1 + config.num_steps // config.checkpoint.every_steps
    )
    num_models = 1
    if config.best:
        num_checkpoints += 1
        num_models += 1

    there = sum(file.stat().st_size for file in checkpoints.rglob("*") if file.is_file())
    needed = (
        num_weights * (num_checkpoints * BYTES_PER_WEIGHT + num_models * MODEL_BYTES_PER_WEIGHT)
        - there
    )
    free = shutil.disk_usage(out).free

    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"{free / 1e9:.2f} GB are free on the disk of {out}, and training writes about "
            f"{needed / 1e9:.2f} GB ({num_checkpoints} checkpoints of {num_weights:,} weights "
            "with their moments): free space, choose another workspace, or lower "
            "train.checkpoint.keep",
        )
