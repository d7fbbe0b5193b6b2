"""The images of an evaluation set by index, decoded on demand.

Unlike a training pool, an evaluation set may not lose an image: one that cannot be decoded is an
error.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from curation.pairs.images import IMAGE_SUFFIXES, ImageError, decode
from curation.pairs.ranges import ByteRange
from curation.pairs.tree import Tree

MAX_PIXELS = 256_000_000  # 768 MB of RGB


@dataclass(frozen=True)
class Images:
    """Encoded image files, or pixels where a set stores those."""

    root: Path
    names: tuple[str, ...]
    parts: tuple[ByteRange, ...] = ()
    border_px: int = 0
    """Pixels cut from each side of the decoded image."""
    pixels: UInt8[np.ndarray, "n h w 3"] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> Image.Image:
        """One image as RGB; ValueError names a file that cannot be decoded."""
        if self.pixels is not None:
            return Image.fromarray(self.pixels[index])

        # Four times the pixels that the pool allows, and any aspect: every image of a set counts.
        try:
            image = decode(self.parts[index].read(), MAX_PIXELS, max_aspect=math.inf)
        except ImageError as error:
            raise ValueError(
                f"cannot decode {self.names[index]} of {self.root} ({error}): replace or remove "
                "the file"
            ) from error

        if not self.border_px:
            return image

        border = self.border_px
        return image.crop((border, border, image.width - border, image.height - border))

    def take(self, indices: Sequence[int]) -> "Images":
        """The images at some indices, in that order."""
        return Images(
            self.root,
            tuple(self.names[index] for index in indices),
            tuple(self.parts[index] for index in indices) if self.parts else (),
            self.border_px,
            None if self.pixels is None else self.pixels[list(indices)],
        )


def images_of(tree: Tree, names: Sequence[str], border_px: int = 0) -> Images:
    """The named files of a tree."""
    return Images(tree.root, tuple(names), tuple(tree.files[name] for name in names), border_px)


def image_names(tree: Tree, folder: str = "") -> list[str]:
    """Names of the image files below a folder, sorted."""
    return [name for name in tree.with_suffix(*IMAGE_SUFFIXES) if name.startswith(folder)]


def find(tree: Tree, name: str, near: str = "") -> ByteRange | None:
    """The one file that a name in a list means, which lies in folder `near`; None without one, or
    with several.
    """
    names = tree.find(name, near)
    return tree.files[names[0]] if len(names) == 1 else None
