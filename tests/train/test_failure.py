"""The reason for which training ends: written over blanks, so that a full disk can still say that
it is full.
"""

import errno
from pathlib import Path

import pytest
from tiny import fill
from torch.distributed.checkpoint.api import CheckpointException

from train.failure import failure, note_failure, reserve_reason


def test_a_full_disk_can_still_say_so(full_disk: Path) -> None:
    reserve_reason(full_disk)
    assert not failure(full_disk)
    fill(full_disk / "ballast")
    with pytest.raises(OSError, match="No space left"):
        (full_disk / "more").write_bytes(b"x")

    note_failure(full_disk, RuntimeError("iostream error"))
    assert (
        failure(full_disk)
        == f"RuntimeError: iostream error; the disk of {full_disk} is full: free space on it"
    )


def test_errors_that_pass_are_not_noted(tmp_path: Path) -> None:
    reserve_reason(tmp_path)
    for error in (
        RuntimeError("a worker was lost"),
        OSError(errno.EIO, "the network"),
        KeyboardInterrupt(),
    ):
        note_failure(tmp_path, error)
    assert not failure(tmp_path)


def test_an_error_of_a_checkpoint_is_one_line(tmp_path: Path) -> None:
    reserve_reason(tmp_path)
    note_failure(
        tmp_path, CheckpointException("save", {1: (OSError(errno.EROFS, "read-only"), None)})
    )  # type: ignore[dict-item]
    assert failure(tmp_path) == (
        "a checkpoint could not be written or read (rank 1: OSError: [Errno 30] read-only)"
    )
    reserve_reason(tmp_path)
    assert not failure(tmp_path)
