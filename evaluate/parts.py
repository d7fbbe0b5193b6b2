"""A large set in parts: any worker computes any part, and the set is scored from what they left.

Parts are ranges of images. The cut depends on the set and the batch size, never on the workers, so
that scores have the same bits however many there are, and an evaluation that was interrupted lacks
only the parts that were under way.
"""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cluster.files import write_atomic

PARTS = "parts"  # folder in the output of an evaluation, until all of its sets are scored


class Part(NamedTuple):
    """The images that one worker sees: some of a set, or all of a set that is not cut."""

    name: str
    """Name of the set."""
    images: range
    is_whole: bool


def cut(count: int, size: int) -> list[range]:
    """The numbers below `count` in ranges of `size`, the last of which may be shorter; one range
    where `count` is below twice the size.

    >>> cut(7, 3)
    [range(0, 3), range(3, 6), range(6, 7)]
    >>> cut(5, 3)
    [range(0, 5)]
    """
    if count < 2 * size:
        return [range(count)]
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


@dataclass(frozen=True)
class Parts:
    """What has been computed of the parts of one set, on disk."""

    folder: Path

    def has(self, images: range) -> bool:
        """Whether this part is there."""
        return self._file(images).exists()

    def read(self, images: range) -> Any:
        """What was written for this part; None where nothing was."""
        return pickle.loads(self._file(images).read_bytes()) if self.has(images) else None

    def write(self, images: range, value: object) -> None:
        """Leave what was computed of this part, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self._file(images), pickle.dumps(value, pickle.HIGHEST_PROTOCOL))

    def _file(self, images: range) -> Path:
        return self.folder / f"{images.start}-{images.stop}.pickle"
