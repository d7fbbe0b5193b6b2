"""Masks of a segmentation set, as raw values per pixel: index images, colors, ADE20K's two bytes,
MATLAB, polygons.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int64
from PIL import Image
from pycocotools import mask as coco_mask

from curation.pairs.ranges import ByteRange
from curation.pairs.tree import Tree


@runtime_checkable
class Masks(Protocol):
    """The mask of each image of a set."""

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each mask file."""
        ...

    def raw(self, index: int) -> Int64[np.ndarray, "h w"]:
        """The mask values of one image, before they are mapped to classes."""
        ...


@dataclass(frozen=True)
class IndexMasks:
    """One channel of whole numbers per file: PNG in 8 or 16 bits or with a palette, TIFF, GIF."""

    root: Path
    names: tuple[str, ...]
    parts: tuple[ByteRange, ...]

    def raw(self, index: int) -> Int64[np.ndarray, "h w"]:
        kind, mode, mask = _decoded(self.root, self.names[index], self.parts[index])
        if mask.ndim != 2 or mask.dtype.kind not in "uib" or kind == "JPEG":
            raise ValueError(
                f"{self.names[index]} of {self.root} is a {kind} of mode {mode}: one channel of "
                "whole class indices, not blurred by a lossy format, is required; save it as "
                "such a PNG"
            )
        return mask.astype(np.int64)


def index_masks(tree: Tree, names: Sequence[str]) -> IndexMasks:
    """The named files of a tree."""
    return IndexMasks(tree.root, tuple(names), tuple(tree.files[name] for name in names))


@dataclass(frozen=True)
class ColorMasks:
    """One color per class; `colors` gives the value of each."""

    root: Path
    names: tuple[str, ...]
    parts: tuple[ByteRange, ...]
    colors: Mapping[tuple[int, int, int], int]

    def raw(self, index: int) -> Int64[np.ndarray, "h w"]:
        _, _, mask = _decoded(self.root, self.names[index], self.parts[index], "RGB")
        codes = mask.astype(np.int64) @ np.array([65536, 256, 1])

        # Colors as sorted numbers: one binary search per distinct color instead of one comparison
        # per class.
        present, places = np.unique(codes, return_inverse=True)
        known = {
            (red << 16) + (green << 8) + blue: value
            for (red, green, blue), value in self.colors.items()
        }
        strange = [int(code) for code in present if int(code) not in known]

        if strange:
            color = (strange[0] >> 16, strange[0] >> 8 & 255, strange[0] & 255)
            raise ValueError(
                f"unknown color {color} in {self.names[index]} of {self.root}: every color must "
                "be listed; add it to the list of colors, or repair the mask"
            )

        return np.array([known[int(code)] for code in present])[places].reshape(codes.shape)


@dataclass(frozen=True)
class AdeFullMasks:
    """ADE20K as released: the object index is red // 10 * 256 + green."""

    root: Path
    names: tuple[str, ...]
    parts: tuple[ByteRange, ...]

    def raw(self, index: int) -> Int64[np.ndarray, "h w"]:
        _, _, mask = _decoded(self.root, self.names[index], self.parts[index], "RGB")
        wide = mask.astype(np.int64)
        return wide[..., 0] // 10 * 256 + wide[..., 1]


@dataclass(frozen=True)
class MatlabMasks:
    """PASCAL Context as released: a .mat file with a LabelMap per image."""

    root: Path
    names: tuple[str, ...]
    parts: tuple[ByteRange, ...]

    def raw(self, index: int) -> Int64[np.ndarray, "h w"]:
        import scipy.io  # takes long to import, and no other layout needs it

        try:
            content = scipy.io.loadmat(io.BytesIO(self.parts[index].read()))
            return np.asarray(content["LabelMap"]).astype(np.int64)
        except Exception as error:  # a damaged file raises a dozen types
            raise _cannot_decode(self.root, self.names[index], error) from error


@dataclass(frozen=True)
class InstanceMasks:
    """COCO's instances: polygons and run lengths, painted in file order; 0 where no object is."""

    root: Path
    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    """(height, width) of each image."""
    instances: tuple[tuple[tuple[int, Any], ...], ...]
    """(value, COCO's segmentation) of each object of each image."""

    def raw(self, index: int) -> Int64[np.ndarray, "h w"]:
        height, width = self.sizes[index]
        painted = np.zeros((height, width), np.int64)
        for value, segmentation in self.instances[index]:
            try:
                covered = _covered(segmentation, height, width)
            except Exception as error:  # pycocotools raises what its C code meets
                raise _cannot_decode(self.root, self.names[index], error) from error
            painted[covered] = value
        return painted


def _covered(segmentation: Any, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """Pixels of one object: polygons, uncompressed run lengths, or compressed ones."""
    if isinstance(segmentation, dict) and not isinstance(segmentation.get("counts"), list):
        return coco_mask.decode(segmentation).astype(bool)
    runs = coco_mask.frPyObjects(segmentation, height, width)
    merged = coco_mask.merge(runs) if isinstance(runs, list) else runs
    return coco_mask.decode(merged).astype(bool)


def _decoded(
    root: Path, name: str, part: ByteRange, mode: str = ""
) -> tuple[str | None, str, np.ndarray]:
    """(format, mode, pixels) of a mask file."""
    try:
        with Image.open(io.BytesIO(part.read())) as picture:
            return (
                picture.format,
                picture.mode,
                np.asarray(picture.convert(mode) if mode else picture),
            )
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
        raise _cannot_decode(root, name, error) from error


def _cannot_decode(root: Path, name: str, error: Exception) -> ValueError:
    return ValueError(
        f"cannot decode {name} of {root} ({type(error).__name__}: {error}): replace the file"
    )


def evenly_spaced(items: int, wanted: int) -> Sequence[int]:
    """At most `wanted` distinct indices below `items`, spread over all of them."""
    return (
        sorted({int(index) for index in np.linspace(0, items - 1, min(wanted, items)).round()})
        if items
        else []
    )
