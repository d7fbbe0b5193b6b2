"""How images are cut for classification and retrieval, and images decoded ahead of the encoder.

`resize-crop` is the published protocol: the short side resized, then the center cropped, to the
pixel as torchvision's Resize and CenterCrop do it. `square` is the view that models here are
trained on: the whole centered square, resized.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Literal, TypeVar

from PIL import Image

from curation.encoders.views import center_view
from evaluate.config import ViewConfig
from evaluate.sets.images import Images
from evaluate.sets.kinds import Facts

RESIZE_PER_CROP = 256 / 224  # the published short side and crop, px; other crops in proportion
DECODING_THREADS = 4
T = TypeVar("T")


@dataclass(frozen=True)
class View:
    """A way to cut images, with all its numbers."""

    crop: Literal["resize-crop", "square", "encoder"]
    side: int = 0
    """Side of the result, px."""
    resize: int = 0
    """Short side before the crop, px."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """The image cut this way; unchanged where the encoder cuts."""
        if self.crop == "encoder":
            return image
        return (
            resize_crop(image, self.resize, self.side)
            if self.crop == "resize-crop"
            else center_view(image, self.side)
        )

    def describe(self) -> str:
        """The protocol's name and numbers, for results."""
        if self.crop == "encoder":
            return "the encoder's own preprocessing"
        if self.crop == "square":
            return f"square: the whole centered square to {self.side} px, bicubic"
        return f"resize-crop: short side to {self.resize} px, bicubic, center crop {self.side} px"


UNCUT = View("encoder")


def choose_view(config: ViewConfig, facts: Facts, protocol: Mapping[str, object]) -> View:
    """The view of a set for an encoder. One that does not name its image side as a number cuts
    images by itself. ValueError for a crop that is larger than the resized image.
    """
    side = protocol.get("image_size")
    if not isinstance(side, int):
        return UNCUT

    crop = config.crop if config.crop != "auto" else "resize-crop" if facts.published else "square"
    resize = config.resize or round(side * RESIZE_PER_CROP)
    if crop == "resize-crop" and resize < side:
        raise ValueError(
            f"view.resize is {resize}, but the model's image size is {side} px: the crop must fit "
            "into the resized image; raise it, or leave it out"
        )

    return View(crop, side, resize if crop == "resize-crop" else 0)


def resize_crop(image: Image.Image, resize: int, side: int) -> Image.Image:
    """The short side to `resize` px, bicubic, then the middle `side` x `side` px.

    Example: 640 x 427 px, resize 256, side 224. The long side becomes int(383.7) = 383, and the
    crop begins at round(79.5) = 80 and 16.
    """
    short, long = sorted(image.size)
    scaled = int(resize * long / short)  # cut, not rounded, as torchvision does
    size = (resize, scaled) if image.width <= image.height else (scaled, resize)
    resized = image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)

    # Python rounds a half to the even number, and so does torchvision's CenterCrop.
    left = round((size[0] - side) / 2)
    top = round((size[1] - side) / 2)
    return resized.crop((left, top, left + side, top + side))


def batches(
    images: Images, prepare: Callable[[Image.Image], T], batch_size: int
) -> Iterator[list[T]]:
    """All images as `prepare` makes them, a batch at a time; the next batches are decoded while the
    encoder works on this one.
    """
    starts = range(0, len(images), batch_size)

    def load(index: int) -> T:
        return prepare(images.load(index))

    loaded = ahead(load, range(len(images)), 2 * batch_size)
    for start in starts:
        yield list(islice(loaded, min(batch_size, len(images) - start)))


def ahead(load: Callable[[int], T], items: Sequence[int], most: int) -> Iterator[T]:
    """load(item) for every item, in order, at most `most` of them ahead of the consumer.

    An error of `load` is raised where its item's turn comes.
    """
    # The limit bounds memory: decoding is often faster than the encoder.
    with ThreadPoolExecutor(DECODING_THREADS) as threads:
        waiting = [threads.submit(load, item) for item in items[:most]]
        position = len(waiting)
        try:
            while waiting:
                result = waiting.pop(0).result()

                # The next one starts before this one is handed out, so that threads do not wait for
                # the consumer.
                if position < len(items):
                    waiting.append(threads.submit(load, items[position]))
                    position += 1
                yield result
        finally:
            # The consumer may stop early; otherwise leaving the pool would wait for all of them.
            for future in waiting:
                future.cancel()
