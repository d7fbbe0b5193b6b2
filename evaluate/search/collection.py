"""The images that a page can ask for: rows of a gallery, and images that the user brings.

An image is named by its row, or by a name that was handed out for an own image. There is no third
way, so that no path of the machine can be asked for.
"""

import io
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import count

from PIL import Image

from curation.encoders.backbone import Features
from curation.encoders.views import center_view
from curation.pairs.images import decode
from evaluate.search.galleries import Gallery

OWN = "own-"
MOST_OWN = 32  # in memory, 8 MB each at most: 1600 x 1600 x 3 bytes
LONGEST_OWN_PX = 1600
JPEG_QUALITY = 88


@dataclass(frozen=True)
class Picture:
    """One image; equal by its name."""

    name: str
    row: int | None
    """Its row in the gallery; None for an own image."""
    # Not compared or hashed: pictures are keys of caches, and an image has no hash.
    own: Image.Image | None = field(default=None, compare=False)


class Collection:
    """A gallery and the newest own images."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        self._own = OrderedDict[str, Picture]()
        self._numbers = count(1)
        self._lock = threading.Lock()

    def add(self, data: bytes) -> Picture:
        """Take in an encoded image. ImageError where it is none."""
        image = decode(data)
        image.thumbnail((LONGEST_OWN_PX, LONGEST_OWN_PX))

        # Requests come in several threads. Numbers are never used again, so that a page that still
        # shows a dropped image gets an error, and not another image.
        with self._lock:
            picture = Picture(f"{OWN}{next(self._numbers)}", None, image)
            self._own[picture.name] = picture
            if len(self._own) > MOST_OWN:
                self._own.popitem(last=False)
        return picture

    def picture(self, name: str) -> Picture:
        """The picture of a name. LookupError where there is none."""
        if name in self._own:
            return self._own[name]
        if name.startswith(OWN):
            raise LookupError(
                f"there is no image {name}: the {MOST_OWN} newest own images are kept; add it again"
            )
        # ASCII first: `isdigit` is true for digits of other scripts too.
        if not name.isascii() or not name.isdigit() or int(name) >= len(self.gallery):
            raise LookupError(
                f"there is no image {name[:40]!r}: images are numbered 0 to {len(self.gallery) - 1}"
            )
        return Picture(str(int(name)), int(name))

    def image(self, picture: Picture, draft_px: int = 0) -> Image.Image:
        """The pixels as RGB."""
        if picture.own is not None:
            return picture.own
        assert picture.row is not None
        return self.gallery.image(picture.row, draft_px)

    def features(self, picture: Picture) -> Features | None:
        """The backbone's tokens, where they are stored."""
        return None if picture.row is None else self.gallery.features(picture.row)

    def as_jpeg(self, picture: Picture, side: int, is_square: bool) -> bytes:
        """A JPEG whose longest side is `side`, or the center square of that side."""
        image = self.image(picture, side)
        if is_square:
            shown = center_view(image, side)
        else:
            shown = image.copy()  # `thumbnail` works in place, and an own image is kept
            shown.thumbnail((side, side))

        buffer = io.BytesIO()
        shown.save(buffer, "JPEG", quality=JPEG_QUALITY)
        return buffer.getvalue()
