"""Sliding windows without full-resolution scores.

Windows lie on a grid, so "bilinear to pixels, mean over the windows that see a pixel, bilinear to the output" is one
matrix for the rows and one for the columns (`axis_matrix`). The arg-max runs over blocks of rows: all classes at full
resolution are never held.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import interpolate

BLOCK_ELEMENTS = 4_000_000


def starts(full: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one axis: every `stride`, and one that ends at the border."""
    return [*range(0, full - window, stride), full - window]


def axis_matrix(patches: int, window: int, begins: Sequence[int], full: int, out: int) -> Float[Tensor, "out inputs"]:
    """What one axis does to stacked windows: bilinear to pixels, mean over the windows, bilinear to `out` pixels."""
    to_pixels = _bilinear(patches, window)
    placed = torch.zeros(full, len(begins), patches)
    for index, begin in enumerate(begins):
        placed[begin : begin + window, index] = to_pixels
    seen = torch.zeros(full)
    for begin in begins:
        seen[begin : begin + window] += 1
    return _bilinear(full, out) @ (placed.flatten(1) / seen[:, None])


def _bilinear(source: int, target: int) -> Float[Tensor, "target source"]:
    """The matrix of torch's bilinear interpolation (align_corners=False) along one axis."""
    if source == target:
        return torch.eye(source)
    return interpolate(torch.eye(source)[None], size=target, mode="linear", align_corners=False)[0].T


def blockwise_argmax(
    scores: Float[Tensor, "channels inner_rows inner_columns"],
    rows: Float[Tensor, "h inner_rows"],
    columns: Float[Tensor, "w inner_columns"],
) -> Int64[np.ndarray, "h w"]:
    """Arg-max over channels of rows @ scores @ columns.T, a block of rows at a time."""
    wide = scores @ columns.T
    block = max(1, BLOCK_ELEMENTS // (wide.shape[0] * wide.shape[2]))
    parts = []
    for start, used in _bands(rows, block):
        part = rows[start : start + block, used] @ wide[:, used].transpose(0, 1).flatten(1)
        parts.append(part.unflatten(1, (wide.shape[0], wide.shape[2])).max(1).indices)
    return torch.cat(parts).numpy()


def _bands(rows: Float[Tensor, "h inner_rows"], block: int) -> Iterator[tuple[int, Int64[Tensor, " used"]]]:
    """Each block of rows with the inner rows that it needs: few, since the matrix is banded."""
    for start in range(0, len(rows), block):
        yield start, rows[start : start + block].abs().amax(0).nonzero()[:, 0]
