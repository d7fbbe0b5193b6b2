"""Collections of images by row: the pool of a workspace, or any folder.

A row is all that a caller can name: files are those that the collection listed, never a path from
outside.
"""

import io
import logging
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64
from PIL import Image

from curation.encoders.backbone import Features
from curation.pairs.config import SourceConfig
from curation.pairs.images import decode
from curation.pairs.tree import open_tree
from curation.shards.reader import EmbeddingShards
from curation.shards.schema import CLS, PATCHES, REGISTERS
from evaluate.sets.images import Images, image_names, images_of
from train.images import ImageFiles

logger = logging.getLogger(__name__)


@runtime_checkable
class Gallery(Protocol):
    """Images by row."""

    def __len__(self) -> int: ...

    def name(self, row: int) -> str:
        """What the row is called: a key, or a file's name below the folder."""
        ...

    def caption(self, row: int) -> str:
        """The first caption; empty where there is none."""
        ...

    def image(self, row: int, draft_px: int = 0) -> Image.Image:
        """The image as RGB; a JPEG perhaps at a fraction of its size, never below `draft_px`."""
        ...

    def features(self, row: int) -> Features | None:
        """The backbone's tokens, where they are stored."""
        ...


class PoolGallery:
    """The embedded pairs of a workspace, with their raw images where those can be read."""

    def __init__(self, shards: EmbeddingShards, config: SourceConfig, source: Path) -> None:
        self.shards = shards
        self.note = ""
        """Why thumbnails are shown instead of the images; empty where they are not."""
        # The raw images may have moved since they were embedded: then the stored thumbnails serve.
        rows = np.arange(len(shards))
        try:
            self._files: ImageFiles | None = ImageFiles(config, source, shards, rows)
        except (ValueError, OSError) as error:
            self._files = None
            self.note = f"images are shown as thumbnails: {error}"
            logger.warning("%s", self.note)

    def __len__(self) -> int:
        return len(self.shards)

    def name(self, row: int) -> str:
        return self.shards.keys_of(_one(row))[0]

    def caption(self, row: int) -> str:
        return (self.shards.captions(_one(row))[0] or [""])[0]

    def image(self, row: int, draft_px: int = 0) -> Image.Image:
        if self._files is not None:
            return decode(self._files.read(row), draft_px=draft_px)
        thumbnail = self.shards.thumbnails(_one(row))[0]
        if not thumbnail:
            raise ValueError(f"{self.name(row)} has no thumbnail, and its image cannot be read")
        return Image.open(io.BytesIO(thumbnail)).convert("RGB")

    def features(self, row: int) -> Features:
        return stored_features(self.shards, _one(row))


class FolderGallery:
    """The images of a folder or tar, as the index lists them."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def name(self, row: int) -> str:
        return self.images.names[row]

    def caption(self, row: int) -> str:
        return ""

    def image(self, row: int, draft_px: int = 0) -> Image.Image:
        return self.images.load(row)

    def features(self, row: int) -> None:
        return None


def list_images(folder: Path) -> Images:
    """Every image file below a folder, or in a tar. Links that lead out of the folder are left out.

    ValueError where there is none.
    """
    # Paths are resolved, because a link inside the folder could make any file of the machine one of
    # its images. A tar is one file, with nothing to lead out of it.
    tree = open_tree(folder)
    root = folder.resolve()
    names = [
        name
        for name in image_names(tree)
        if tree.is_file or Path(tree.files[name].path).resolve().is_relative_to(root)
    ]
    if not names:
        raise ValueError(
            f"{folder} holds no image: a folder or an uncompressed tar with image files is needed; "
            "name another one"
        )
    return images_of(tree, names)


def stored_features(shards: EmbeddingShards, rows: Int64[np.ndarray, " n"]) -> Features:
    """The tokens of some rows, as they are stored."""
    spec = shards.spec
    registers = torch.zeros(len(rows), 0, spec.dim)
    if spec.num_registers:
        registers = torch.from_numpy(shards.gather(rows, REGISTERS))

    return Features(
        torch.from_numpy(shards.gather(rows, CLS))[:, 0],
        registers,
        torch.from_numpy(shards.gather(rows, PATCHES)),
    )


def _one(row: int) -> Int64[np.ndarray, " 1"]:
    return np.array([row], np.int64)
