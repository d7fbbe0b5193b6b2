"""The vectors of a set's images, and the features of their frozen backbone, which are computed once.

Features lie in the output of the evaluation that computed them, under a name that says everything
that decides them. An evaluation beside it, of another model on the same backbone or with other
prompts, reads them there: no image is decoded again, and the vectors have the same bits.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cluster.files import replacing
from evaluate.encoder import Encoder, StagedEncoder, checked
from evaluate.parts import cut
from evaluate.sets.images import Images
from evaluate.views import View, batches

FORMAT = 1
"""Part of every file's name: with a new number, no old file is read."""
MOST_BYTES = 4 * 2**30
"""Features of a set that are larger are computed for each model: 4 GB hold those of 500,000 images
as CLS and patch mean of 1,024 channels, or of 4,000 as all tokens.
"""
IMAGES_PER_PART = 512
"""Images of a part, rounded up to whole batches: a second of a GPU, half a minute of a CPU core. COCO's
5,000 are ten parts; with larger ones, some workers would wait for the last part of others.
"""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shelf:
    """Where features of one set are written and looked for."""

    out: Path
    """Output of this evaluation; those beside it are searched as well."""
    data: str
    """Fingerprint of the set."""

    def name(self, encoder: StagedEncoder, images: Images, view: View) -> str:
        """The name of the file with the features of these images."""
        # Joined by a character that no name holds: ("ab", "c") and ("a", "bc") must differ.
        facts = (str(FORMAT), encoder.backbone, view.describe(), self.data, *images.names)
        return f"{sha256(chr(0).join(facts).encode()).hexdigest()[:32]}.npy"

    def find(self, name: str) -> Path | None:
        """The file of this name, of this evaluation or of one beside it."""
        beside = chain([self.out], self.out.parent.iterdir())
        files = (folder / "features" / name for folder in beside)
        return next((file for file in files if file.is_file()), None)


def image_parts(count: int, batch_size: int) -> list[range]:
    """A set of images in parts, which are whole batches: a product may round differently in a batch
    of another composition.
    """
    return cut(count, math.ceil(IMAGES_PER_PART / batch_size) * batch_size)


def image_vectors(
    encoder: Encoder,
    images: Images,
    view: View,
    batch_size: int,
    shelf: Shelf | None = None,
    part: range | None = None,
) -> Iterator[Float[Tensor, "n d"]]:
    """Unit vectors of all images, or of a part, in their order, a batch of at most `batch_size` at a
    time.

    With a shelf and a staged encoder, features come from the shelf, or are left there. ValueError for
    vectors that are not finite.
    """
    some = images if part is None else images.take(part)
    if not isinstance(encoder, StagedEncoder):
        for batch in batches(some, view, batch_size):
            yield checked(encoder.encode_image(batch), "images", len(batch))
        return

    # The limit is that of a whole set, of which a part has its share.
    most_bytes = MOST_BYTES * len(some) / len(images)
    for features in _features(encoder, some, view, batch_size, shelf, most_bytes):
        yield checked(encoder.encode_features(features), "images", len(features))


def _features(
    encoder: StagedEncoder,
    images: Images,
    view: View,
    batch_size: int,
    shelf: Shelf | None,
    most_bytes: float,
) -> Iterator[Float[Tensor, "n tokens width"]]:
    """From the shelf where it has them; else computed, and put there."""
    # A generator: no image is decoded before the first batch is asked for, and none if the shelf
    # has the features.
    computed = (
        encoder.image_features(pixels)
        for pixels in batches(images, lambda image: encoder.prepare(view(image)), batch_size)
    )
    if shelf is None or not encoder.backbone:
        yield from computed
        return

    name = shelf.name(encoder, images, view)
    file = shelf.find(name)
    if file is not None:
        logger.info("image_features=%s images=%d computed=false", file, len(images))
        yield from _read(file, batch_size)
    else:
        yield from _written(computed, len(images), shelf.out / "features" / name, most_bytes)


def _read(file: Path, batch_size: int) -> Iterator[Float[Tensor, "n tokens width"]]:
    # One batch at a time is read from disk, as a copy: torch wants memory that can be written.
    features = np.load(file, mmap_mode="r")
    for start in range(0, len(features), batch_size):
        yield torch.from_numpy(np.array(features[start : start + batch_size]))


def _written(
    blocks: Iterator[Float[Tensor, "n tokens width"]], count: int, file: Path, most_bytes: float
) -> Iterator[Float[Tensor, "n tokens width"]]:
    """The blocks as they come; the file is there when all have been written, if it is not too
    large.
    """
    # The first block says how wide features are; 4 bytes each.
    first = next(blocks)
    shape = (count, *first.shape[1:])
    if 4 * int(np.prod(shape)) > most_bytes:
        yield from chain([first], blocks)
        return

    file.parent.mkdir(parents=True, exist_ok=True)

    # The file gets its name at the end: where the caller stops earlier, or an image fails, none
    # remains.
    with replacing(file) as temporary, temporary.open("wb") as stream:
        _write_header(stream, shape)
        for block in chain([first], blocks):
            stream.write(np.ascontiguousarray(block.numpy()).data)
            yield block


def _write_header(stream: BinaryIO, shape: Sequence[int]) -> None:
    """The head of an .npy file of float32; its rows follow as they are computed."""
    facts = {"descr": "<f4", "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(stream, facts)
