"""Segmentation at high resolution: features of many crops averaged, and regions of like features
named by their mean, as in "DINOv2 Meets Text" (arXiv:2412.16334).

Crops of several sizes see each place of the image about forty times. Their patch features are laid
on one fine grid and averaged; k-means cuts the grid into regions, and a region has the class that
is nearest to its mean feature.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int32
from PIL import Image
from scipy.cluster.vq import kmeans2
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from evaluate.config import RegionConfig
from evaluate.encoder import Encoder, checked
from evaluate.windows import starts

CROPS_AT_ONCE = 64  # encoded together; an image has hundreds


def region_labels(
    features: Float[Tensor, "cells_down cells_across dim"],
    out: tuple[int, int],
    config: RegionConfig,
    name: Callable[[Float[Tensor, "regions dim"]], Int32[np.ndarray, " regions"]],
) -> Int32[np.ndarray, "h w"]:
    """The class of every pixel of an `out` map, (height, width) in px; `name` gives the class of
    each mean feature.
    """
    height, width, dim = features.shape

    # On unit vectors, the squared distance that k-means minimizes is 2 - 2 cosine.
    cells = normalize(features.flatten(0, 1), dim=-1)

    # Equal cells would leave clusters empty, which SciPy warns of: never more clusters than
    # distinct cells.
    num_regions = min(config.regions, len(torch.unique(cells, dim=0)))
    _, region = kmeans2(
        cells.numpy().astype(np.float64),
        num_regions,
        iter=config.iterations,
        minit="++",
        seed=config.seed,
        missing="warn",
    )
    member = torch.from_numpy(region).long()
    sums = torch.zeros(num_regions, dim).index_add_(0, member, cells)

    # Sum and mean have one direction: unit norm makes them equal, without a division by counts.
    classes = name(normalize(sums, dim=-1))

    labels = Image.fromarray(classes[region].reshape(height, width))

    return np.asarray(labels.resize((out[1], out[0]), Image.Resampling.NEAREST), np.int32)


def averaged_features(
    encoder: Encoder, image: Image.Image, config: RegionConfig
) -> Float[Tensor, "h w dim"]:
    """The mean feature of each cell of the grid over all crops that see it.

    Patches are unit vectors, their means shorter: the product of a mean with a unit vector is the
    mean of the crops' cosines.
    """
    cell = min(image.size) / config.grid  # px per cell
    size = (max(1, round(image.height / cell)), max(1, round(image.width / cell)))
    total: Tensor | None = None
    count = torch.zeros(*size, 1)

    for side, places in _crops(size, config):
        for first in range(0, len(places), CROPS_AT_ONCE):
            some = places[first : first + CROPS_AT_ONCE]
            crops = [_crop(image, size, place, side, config.input_px) for place in some]
            patches = checked(encoder.encode_patches(crops), "crops", len(crops))
            if total is None:
                total = torch.zeros(*size, patches.shape[-1])

            # A crop covers `side` x `side` cells, whatever the number of its patches.
            up = interpolate(
                patches.permute(0, 3, 1, 2), size=(side, side), mode="bilinear", align_corners=False
            )
            for (top, left), feature in zip(some, up.permute(0, 2, 3, 1), strict=True):
                total[top : top + side, left : left + side] += feature
                count[top : top + side, left : left + side] += 1

    assert total is not None
    return total / count


def _crops(
    size: tuple[int, int], config: RegionConfig
) -> Sequence[tuple[int, list[tuple[int, int]]]]:
    """(side, (top, left) of each crop) by size, in cells."""
    crops = []
    for share in config.crop_shares:
        side = max(1, round(share * min(size)))

        # Along each axis side / stride crops cover a place, in the area the square of that.
        stride = max(1, round(side / math.sqrt(config.times_seen)))
        tops, lefts = (starts(full, side, stride) for full in size)
        crops.append((side, [(top, left) for top in tops for left in lefts]))
    return crops


def _crop(
    image: Image.Image, size: tuple[int, int], place: tuple[int, int], side: int, input_px: int
) -> Image.Image:
    """One square crop of the original image, resized for the encoder."""
    # Sizes were rounded to whole cells: these are px per cell, not quite the same along both axes.
    down = image.height / size[0]
    across = image.width / size[1]
    top, left = place
    box = (
        left * across,
        top * down,
        min((left + side) * across, image.width),
        min((top + side) * down, image.height),
    )

    return image.resize((input_px, input_px), Image.Resampling.BICUBIC, box=box)
