"""Where the image of each embedded row is in the raw pairs, so that single images can be read again in any order.

Shard i was made of part i of the source, and row keys are unique in it. Only headers and annotations are read.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from curation.pairs import Part, Reject, SourceConfig
from curation.shards import EmbeddingShards
from curation.sources import list_parts
from curation.tree import ByteRange
from curation.webdataset import TarWalk, tar_samples


class ImageFiles:
    """The encoded images of some rows of a folder of embeddings, as byte ranges of the source's files."""

    def __init__(
        self, config: SourceConfig, source: Path, shards: EmbeddingShards, rows: Int64[np.ndarray, " n"]
    ) -> None:
        parts = list_parts(config, source)
        if len(parts) != shards.num_shards:
            raise ValueError(
                f"{source} has {len(parts)} parts, {shards.folder} {shards.num_shards} shards: the embeddings must be "
                "made of these pairs, with these source settings; embed them again"
            )
        self.paths: list[str] = []
        self.where: Int64[np.ndarray, "n 3"] = np.empty((len(rows), 3), np.int64)  # path, offset, size
        keys, cuts, numbers = shards.keys(), np.searchsorted(rows, shards.offsets), dict[str, int]()
        walks = dict[str, TarWalk]()
        for index in np.flatnonzero(np.diff(cuts)).tolist():
            ranges = dict(image_ranges(parts[index], walks))
            for place in range(cuts[index], cuts[index + 1]):
                found = ranges.get(key := keys[int(rows[place])].as_py())
                if found is None:
                    raise ValueError(
                        f"{key} is not in part {parts[index].name} of {source}: the pairs have changed; restore them, "
                        "or embed again"
                    )
                number = numbers.setdefault(found.path, len(numbers))
                self.where[place] = number, found.offset, found.size
        self.paths = list(numbers)

    def read(self, place: int) -> bytes:
        """The encoded image of one of the rows."""
        number, offset, size = self.where[place].tolist()
        return ByteRange(self.paths[number], offset, size).read()


def image_ranges(part: Part, walks: dict[str, TarWalk] | None = None) -> Iterator[tuple[str, ByteRange]]:
    """(key, where the image is) of the rows of a part that have an image; `walks` is kept from part to part."""
    if part.kind == "parquet":
        raise ValueError(
            f"{part.name} is Parquet, whose single images cannot be read in any order: train on stored embeddings, or "
            "convert it to WebDataset tars"
        )
    if part.kind == "rows":
        yield from ((row.key, row.image) for row in part.rows if row.image is not None and not row.problem)
        return
    yield from ((key, files["image"]) for key, files in tar_samples(part, walks) if not isinstance(files, Reject))
