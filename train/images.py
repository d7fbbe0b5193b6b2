"""The images of the selected pairs, cropped at random: the input of a live backbone.

They are read from the raw pairs. Shard i was made from part i of the source, and row keys are
unique in it; tar headers and annotations say where the images are.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from curation.encoders.views import center_view, draft_px, random_view
from curation.pairs.config import SourceConfig
from curation.pairs.images import decode
from curation.pairs.ranges import ByteRange
from curation.pairs.sources import image_ranges, list_parts
from curation.pairs.webdataset import TarWalk
from curation.shards.reader import EmbeddingShards
from train.config import LiveConfig
from train.live import live_spec


class Images:
    """The images of the selected pairs as pixels, read and cropped on the CPU."""

    def __init__(
        self,
        config: LiveConfig,
        source: Path,
        shards: EmbeddingShards,
        rows: Int64[np.ndarray, " n"],
    ) -> None:
        self.config = config
        self.side = shards.spec.image_size
        self.spec = live_spec(config, shards.spec)
        self.files = ImageFiles(config.source, source, shards, rows)
        self.threads = ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="decode")

    def pixels(
        self, places: Int64[np.ndarray, " b"], draws: Sequence[int] | None
    ) -> UInt8[Tensor, "b 3 s s"]:
        """The images at some places of the selection, as RGB bytes.

        `draws` has the random number of each crop; None crops at the center.
        """
        views = list(self.threads.map(self._view, places.tolist(), draws or [None] * len(places)))

        # Height, width, channels to the model's order; bytes are a quarter of float32 to copy.
        pixels = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).contiguous()
        return pixels.pin_memory() if torch.cuda.is_available() else pixels

    def _view(self, place: int, draw: int | None) -> UInt8[np.ndarray, "s s 3"]:
        augment = self.config.augment
        if draw is None:
            return np.asarray(
                center_view(decode(self.files.read(place), draft_px=self.side), self.side)
            )

        # A JPEG may be decoded at a fraction of its size, as long as no crop is enlarged more.
        image = decode(self.files.read(place), draft_px=draft_px(self.side, augment.least_area))
        return np.asarray(random_view(image, self.side, augment, draw))


class ImageFiles:
    """The encoded images of some embedding rows, as byte ranges of the source's files."""

    def __init__(
        self,
        config: SourceConfig,
        source: Path,
        shards: EmbeddingShards,
        rows: Int64[np.ndarray, " n"],
    ) -> None:
        """Find the images. ValueError if the source is not the one that was embedded."""
        parts = list_parts(config, source)
        if len(parts) != shards.num_shards:
            raise ValueError(
                f"{source} has {len(parts)} parts, {shards.folder} {shards.num_shards} shards: "
                "the embeddings must be made from these pairs, with these source settings; embed "
                "them again"
            )

        self.paths: list[str] = []

        # Per row: index in `paths`, offset and size in bytes. One array of numbers, because an
        # object per row would take several times the memory.
        self.where: Int64[np.ndarray, "n 3"] = np.empty((len(rows), 3), np.int64)
        keys = shards.keys()

        # Rows ascend, so those of shard i are the places cuts[i] to cuts[i + 1].
        cuts = np.searchsorted(rows, shards.offsets)
        numbers = dict[str, int]()
        walks = dict[str, TarWalk]()

        for index in np.flatnonzero(np.diff(cuts)).tolist():
            ranges = dict(image_ranges(parts[index], walks))
            for place in range(cuts[index], cuts[index + 1]):
                found = ranges.get(key := keys[int(rows[place])].as_py())
                if found is None:
                    raise ValueError(
                        f"{key} is not in part {parts[index].name} of {source}: the pairs have "
                        "changed; restore them, or embed again"
                    )
                number = numbers.setdefault(found.path, len(numbers))
                self.where[place] = number, found.offset, found.size

        self.paths = list(numbers)

    def read(self, place: int) -> bytes:
        """The encoded image at a place of the selection."""
        number, offset, size = self.where[place].tolist()
        return ByteRange(self.paths[number], offset, size).read()
