"""Files as byte ranges, so that any process can read a file or a member of a tar in place."""

from typing import NamedTuple

from cluster.storage import read_range


class ByteRange(NamedTuple):
    """Where the bytes of one file are: in a file of its own, or inside a tar."""

    path: str
    offset: int
    size: int
    """Bytes of the file, including the holes of a sparse one."""
    pieces: tuple[tuple[int, int], ...] | None = None
    """(position in the file, number of bytes) of each piece that a sparse member stores; the pieces
    are stored one after the other. None: the file is stored as a whole.
    """

    def read(self) -> bytes:
        """All bytes; fewer than `size` if the file has been truncated."""
        if self.pieces is None:
            return read_range(self.path, self.offset, self.size)

        # A new bytearray is all zeros, which is what holes contain.

        stored = read_range(self.path, self.offset, sum(size for _, size in self.pieces))
        whole = bytearray(self.size)
        begin = 0
        for position, size in self.pieces:
            whole[position : position + size] = stored[begin : begin + size]
            begin += size
        return bytes(whole) if begin == len(stored) else stored

    def head(self, size: int) -> bytes:
        """The first `size` bytes; all bytes of a sparse member."""
        return self.read() if self.pieces else self._replace(size=min(self.size, size)).read()
