"""Retrieval ranks by counting, a tile of scores at a time: nothing is sorted, and no row of scores
is ever whole.

Every tile has one shape, so that a score has the same bits wherever it is computed; only then may
scores be compared.
"""

from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from cluster.compilation import compiled
from evaluate.metrics import Ranks

TILE = 1024  # rows and columns: 4 MB of float32 scores


def both_ranks(
    captions: Float[Tensor, "m dim"],
    images: Float[Tensor, "n dim"],
    owners: Int64[np.ndarray, " m"],
) -> tuple[Ranks, Ranks]:
    """Ranks of each caption's image among all images, and of each image's best caption among all
    captions.

    Caption j describes image owners[j]; captions of one image are neighbors, and images are in the
    order of their captions. Two images with captions [0, 0, 1] and scores

        0.9 0.1        caption 0 and 2 find their image at rank 1, caption 1 at rank 2;
        0.2 0.3        image 0 finds caption 0 at rank 1, image 1 caption 2 at rank 1.
        0.4 0.8
    """
    # The limits are computed first, so that one pass over the tiles counts both ways: a caption's
    # limit is its score with its image, an image's the best score among its captions. `maximum.at`
    # takes all captions of an image into account; an assignment by index would keep the last one.
    own = _own_scores(captions, images, owners)
    best = np.full(len(images), -np.inf, np.float32)
    np.maximum.at(best, owners, own)

    # Row 0 counts the scores above a query's best right answer, row 1 those level with it.
    to_image = np.zeros((2, len(captions)), np.int64)
    to_text = np.zeros((2, len(images)), np.int64)

    for row in range(0, len(captions), TILE):
        block = _padded(captions, row)
        height = min(TILE, len(captions) - row)
        for column in range(0, len(images), TILE):
            tile = (block @ _padded(images, column).T).numpy()
            width = min(TILE, len(images) - column)
            _count(
                tile[:height, :width],
                own[row : row + height],
                best[column : column + width],
                to_image[:, row : row + height],
                to_text[:, column : column + width],
            )

    # A caption's one right answer is level with itself; of an image's captions, those as good as
    # the best are right.
    right = np.bincount(owners, own == best[owners], len(images)).astype(np.int64)
    text_ranks = Ranks(to_text[0], to_text[1] - right, right)
    return Ranks(to_image[0], to_image[1] - 1, np.ones(len(captions), np.int64)), text_ranks


def sibling_ranks(captions: Float[Tensor, "m dim"], owners: Int64[np.ndarray, " m"]) -> Ranks:
    """Rank of each caption's best sibling, another caption of its image, among all other captions.

    `tied_right` is 0 where a caption has no sibling. Captions of one image are neighbors.

    With the owners [0, 0, 0, 1] and the scores

        1.0 0.8 0.5 0.6        caption 0 finds its sibling 1 at rank 1,
        0.8 1.0 0.3 0.2        caption 1 its sibling 0 at rank 1,
        0.5 0.3 1.0 0.9        caption 2 its sibling 0 at rank 2, behind caption 3;
        0.6 0.2 0.9 1.0        caption 3 has no sibling.
    """
    best, right = _best_siblings(captions, owners)
    counts = np.zeros((2, len(captions)), np.int64)
    itself = np.empty(len(captions), np.float32)

    for row in range(0, len(captions), TILE):
        block = _padded(captions, row)
        height = min(TILE, len(captions) - row)
        for column in range(0, len(captions), TILE):
            tile = (block @ _padded(captions, column).T).numpy()
            width = min(TILE, len(captions) - column)
            # A caption's score with itself is not exactly 1: it is read from its tile.
            if row == column:
                itself[row : row + height] = np.diagonal(tile)[:height]

            # Scores are symmetric: rows are counted, and no score of a column reaches infinity.
            no_limit = np.full(width, np.inf, np.float32)
            _count(
                tile[:height, :width],
                best[row : row + height],
                no_limit,
                counts[:, row : row + height],
                np.zeros((2, width), np.int64),
            )

    # A caption is no answer to itself, and siblings as good as the best one are right.
    above = counts[0] - (itself > best)
    level = counts[1] - (itself == best) - right
    return Ranks(above, level, right)


def _best_siblings(
    captions: Float[Tensor, "m dim"], owners: Int64[np.ndarray, " m"]
) -> tuple[Float32[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    """The score of each caption's best sibling, infinity without one, and how many siblings have
    it.
    """
    best = np.full(len(captions), np.inf, np.float32)
    right = np.zeros(len(captions), np.int64)

    # Image i has the captions ends[i - 1] to ends[i]: of the owners [0, 0, 1], ends are [2, 3].
    ends = np.cumsum(np.bincount(owners))

    for row in range(0, len(captions), TILE):
        block = _padded(captions, row)
        here = owners[row : row + TILE]
        first = int(ends[here[0] - 1]) if here[0] else 0
        last = int(ends[here[-1]])

        # The tiles that hold the siblings of this block: its own, and one beside it where an image
        # is cut.
        columns = range(first // TILE * TILE, last, TILE)
        tiles = np.concatenate(
            [(block @ _padded(captions, column).T).numpy() for column in columns], axis=1
        )
        for place, owner in enumerate(here.tolist()):
            start = int(ends[owner - 1]) if owner else 0
            siblings = np.arange(start, int(ends[owner]))
            siblings = siblings[siblings != row + place]
            if len(siblings):
                # Columns of `tiles` count from the first tile, captions from 0.
                scores = tiles[place, siblings - columns.start]
                best[row + place] = scores.max()
                right[row + place] = (scores == scores.max()).sum()

    return best, right


def _own_scores(
    captions: Float[Tensor, "m dim"],
    images: Float[Tensor, "n dim"],
    owners: Int64[np.ndarray, " m"],
) -> Float32[np.ndarray, " m"]:
    """The score of each caption with its image, from the tiles that hold them: few, as captions are
    in image order.
    """
    own = np.empty(len(captions), np.float32)
    for row in range(0, len(captions), TILE):
        block = _padded(captions, row)
        here = owners[row : row + TILE]

        # Rounded down to a multiple of TILE, an image's index is the first column of its tile.
        for column in np.unique(here // TILE * TILE).tolist():
            tile = (block @ _padded(images, column).T).numpy()
            inside = np.flatnonzero(here // TILE * TILE == column)
            own[row + inside] = tile[inside, here[inside] - column]
    return own


def _padded(vectors: Float[Tensor, "n dim"], start: int) -> Float[Tensor, "tile dim"]:
    """TILE rows from `start`, with zeros where there are no more.

    A matrix product of another shape may add up in another order, and round differently.
    """
    block = vectors[start : start + TILE]
    if len(block) == TILE:
        return block
    return torch.cat([block, block.new_zeros(TILE - len(block), block.shape[1])])


@compiled()
@no_type_check
def _count(
    tile: Float32[np.ndarray, "h w"],
    own: Float32[np.ndarray, " h"],
    best: Float32[np.ndarray, " w"],
    to_image: Int64[np.ndarray, "2 h"],
    to_text: Int64[np.ndarray, "2 w"],
) -> None:
    """Add how many scores of each row and column are above its limit, and how many are equal to
    it.
    """
    height, width = tile.shape

    # Counted in int32 without a branch, which vector instructions do eight or sixteen at a time.
    column_above = np.zeros(width, np.int32)
    column_equal = np.zeros(width, np.int32)

    for row in range(height):
        limit = own[row]
        above = np.int32(0)
        equal = np.int32(0)
        for column in range(width):
            score = tile[row, column]
            above += np.int32(score > limit)
            equal += np.int32(score == limit)
            column_above[column] += np.int32(score > best[column])
            column_equal[column] += np.int32(score == best[column])
        to_image[0, row] += above
        to_image[1, row] += equal

    for column in range(width):
        to_text[0, column] += column_above[column]
        to_text[1, column] += column_equal[column]
