"""Encoded image files to RGB pixels, or a named reason why not; hashes and thumbnails of the pixels.

Whatever a web crawl holds goes through `decode`: alpha is composited on white, 16 bits become 8, palettes and CMYK
become RGB, of an animation the first frame is taken, EXIF rotation is ignored. What cannot be used raises ImageError.
"""

import hashlib
import io
from functools import cache
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float64
from PIL import Image

Reason = Literal[
    "missing file",
    "empty file",
    "not an image",
    "corrupt image",
    "too many pixels",
    "too small",
    "extreme aspect",
    "unsupported mode",
    "empty caption",
    "duplicate key",
    "unreadable record",
    "truncated archive",
]
REASONS: tuple[Reason, ...] = get_args(Reason)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
MAX_PIXELS = 64_000_000
MIN_SIDE_PX = 2
MAX_ASPECT = 20.0
THUMBNAIL_QUALITY = 85
HASH_SIDE = 32
HASH_FREQUENCIES = 8


class ImageError(ValueError):
    """An image that cannot be used: a reason from the closed list and what exactly was found."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)  # what an exception is unpickled from
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def decode(data: bytes, max_pixels: int = MAX_PIXELS, draft_px: int = 0, max_aspect: float = MAX_ASPECT) -> Image.Image:
    """The first frame as RGB, EXIF ignored; ImageError otherwise.

    With `draft_px`, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, never smaller than that many pixels a side.
    """
    if not data:
        raise ImageError("empty file", "0 bytes")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError as error:
        raise ImageError("not an image", f"{len(data)} bytes that start with {data[:8]!r}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("too many pixels", str(error)) from error
    except Exception as error:
        raise ImageError("corrupt image", f"{type(error).__name__}: {error}") from error
    _check_size(image, max_pixels, max_aspect)
    if draft_px and image.format == "JPEG":
        image.draft(None, (draft_px, draft_px))
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
        raise ImageError("corrupt image", f"{type(error).__name__}: {error}") from error
    return _to_rgb(image)


def _check_size(image: Image.Image, max_pixels: int, max_aspect: float) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError("too many pixels", f"{width} x {height}, at most {max_pixels} pixels")
    if min(width, height) < MIN_SIDE_PX:
        raise ImageError("too small", f"{width} x {height}, at least {MIN_SIDE_PX} pixels a side")
    if max(width, height) > max_aspect * min(width, height):
        raise ImageError("extreme aspect", f"{width} x {height}, at most {max_aspect:g} to 1")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        high_byte = np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8
        return Image.fromarray(high_byte.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ImageError("unsupported mode", "floating-point pixels have no agreed range")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        flat = Image.new("RGB", image.size, (255, 255, 255))
        flat.paste(with_alpha, mask=with_alpha.getchannel("A"))
        return flat
    return image.convert("RGB")


def bytes_hash(data: bytes) -> int:
    """64-bit BLAKE2b of an encoded file."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def pixel_hash(image: Image.Image) -> int:
    """64-bit BLAKE2b of the size and the RGB pixels, as decoded (so, for JPEG, at the draft scale)."""
    return bytes_hash(np.array(image.size, "<u4").tobytes() + image.tobytes())


def perceptual_hash(image: Image.Image) -> int:
    """64-bit DCT hash (pHash): signs of the 8 x 8 lowest frequencies of a 32 x 32 grey image against their median."""
    grey = image.convert("L").resize((HASH_SIDE, HASH_SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    basis = _cosines()
    low = (basis @ np.asarray(grey, np.float64) @ basis.T).round(6)  # rounding: a flat image has zeros, not noise
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


@cache
def _cosines() -> Float64[np.ndarray, "frequencies side"]:
    """The lowest rows of the DCT-II matrix."""
    frequencies, positions = np.arange(HASH_FREQUENCIES), np.arange(HASH_SIDE)
    return np.cos(np.pi / HASH_SIDE * np.outer(frequencies, positions + 0.5))


def thumbnail(image: Image.Image, longest_px: int) -> bytes:
    """A small JPEG for galleries, never enlarged; empty when `longest_px` is 0."""
    if not longest_px:
        return b""
    scale = min(1.0, longest_px / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    buffer = io.BytesIO()
    small = image if scale == 1 else image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    small.save(buffer, "JPEG", quality=THUMBNAIL_QUALITY)
    return buffer.getvalue()
