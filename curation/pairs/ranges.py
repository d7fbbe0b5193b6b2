"""Where the bytes of a file are, so that any process can read them in place: a whole file, or a
member of a tar.
"""

from typing import NamedTuple

from cluster.storage import read_range


class ByteRange(NamedTuple):
    """Where the bytes of one file are: a whole file, or a member of a tar."""

    path: str
    offset: int
    size: int
    """Bytes of the file, holes of a sparse one included."""
    pieces: tuple[tuple[int, int], ...] | None = None
    """(position in the file, bytes) of what a sparse member stores, one after the other; None: all
    of it is stored.
    """

    def read(self) -> bytes:
        """All bytes; shorter than `size` when the file has been cut."""
        if self.pieces is None:
            return read_range(self.path, self.offset, self.size)

        stored = read_range(self.path, self.offset, sum(size for _, size in self.pieces))
        whole = bytearray(self.size)
        begin = 0
        for position, size in self.pieces:
            whole[position : position + size] = stored[begin : begin + size]
            begin += size
        return bytes(whole) if begin == len(stored) else stored

    def head(self, size: int) -> bytes:
        """The first bytes; of a sparse member, all."""
        return self.read() if self.pieces else self._replace(size=min(self.size, size)).read()
