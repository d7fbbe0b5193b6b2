"""Encoded image files to RGB pixels, or a named reason why not; hashes and thumbnails.

Whatever a web crawl contains goes through `decode`: alpha is composited on white, 16 bits become 8,
palettes and CMYK become RGB, an animation becomes its first frame, and EXIF orientation is applied.
An image that cannot be used raises ImageError.
"""

import contextlib
import hashlib
import io
from typing import Literal

import numpy as np
from PIL import Image

RejectReason = Literal[
    "missing file",
    "empty file",
    "not an image",
    "corrupt image",
    "too many pixels",
    "too small",
    "extreme aspect",
    "unsupported mode",
    "unsupported format",
    "image is an address",
    "empty caption",
    "undecodable text",
    "duplicate key",
    "ambiguous name",
    "unreadable record",
    "truncated archive",
]

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif"),
)
UNREAD_IMAGE_SUFFIXES = (
    *(
        ".svg",
        ".eps",
        ".psd",
        ".ico",
        ".tga",
        ".exr",
        ".hdr",
        ".jxl",
        ".jp2",
        ".j2k",
        ".dng",
        ".cr2",
        ".nef",
        ".arw",
    ),
)
"""Images of formats that are not read."""
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF")

# First bytes of image files. AVIF and HEIC begin with the length of a box, below 256: three zeros.
MARKS = (
    b"\xff\xd8",
    b"\x89PNG",
    b"GIF8",
    b"RIFF",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"P6",
    b"P5",
    b"\0\0\0",
)
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
MAX_PIXELS = 64_000_000  # 192 MB of RGB
MIN_SIDE_PX = 2
MAX_ASPECT = 20.0

# EXIF's tag, and what turns an image of each of its values upright. Value 1 is upright.
ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PNG_MARK = b"\x89PNG\r\n\x1a\n"
PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt")
DARKEST_HIGH_BYTE = 16  # 12-bit values in 16 bits have high bytes below this
THUMBNAIL_QUALITY = 85


class ImageError(ValueError):
    """An image that cannot be used: one of the known reasons, and what exactly is wrong."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(reason, detail)  # what an exception is unpickled from
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def decode(
    data: bytes, max_pixels: int = MAX_PIXELS, draft_px: int = 0, max_aspect: float = MAX_ASPECT
) -> Image.Image:
    """The first frame as upright RGB.

    With `draft_px`, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, but neither side becomes
    smaller than that many pixels. Raises ImageError when the image cannot be used.
    """
    if not data:
        raise ImageError("empty file", "0 bytes")

    try:
        image = _opened(data)
        _check_size(image, max_pixels, max_aspect)
        if draft_px and image.format in ("JPEG", "MPO"):
            image.draft(None, (draft_px, draft_px))
        # The raw mode of a tile ("RGB;16B") tells 16 bits per channel. Loading clears the tiles.
        is_deep = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
        image.load()
    except (ImageError, MemoryError):
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageError(
            "not an image", f"{len(data)} bytes that start with {data[:8]!r}"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("too many pixels", str(error)) from error
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
        # A PNG with more text than Pillow allows is decoded again without it.
        if (without_text := _without_png_text(data)) != data:
            return decode(without_text, max_pixels, draft_px, max_aspect)
        raise ImageError("corrupt image", f"{type(error).__name__}: {error}") from error

    if is_deep and not image.mode.startswith("I"):
        _check_depth(image)

    return _upright(_to_rgb(image), image)


def has_image_mark(data: bytes) -> bool:
    """Whether bytes begin like an image file, as far as a few bytes can tell."""
    return data.startswith(MARKS)


def _opened(data: bytes) -> Image.Image:
    # HEIC begins with a box: its length (4 bytes), "ftyp", and its brand.
    if data[4:8] != b"ftyp" or data[8:12] not in HEIF_BRANDS:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    try:
        import pillow_heif  # an extra: most pools hold no HEIC
    except ImportError as error:
        detail = "HEIC: install pillow-heif (the extra `heic`), or convert it to JPEG"
        raise ImageError("unsupported format", detail) from error
    return pillow_heif.open_heif(io.BytesIO(data)).to_pillow()


def _without_png_text(data: bytes) -> bytes:
    """A PNG without its text chunks, whose size Pillow limits; any other file as it is."""
    if not data.startswith(PNG_MARK):
        return data

    pieces = [PNG_MARK]
    begin = len(PNG_MARK)
    while begin < len(data):
        # A chunk is the length of its content (4 bytes), its name (4), content and checksum (4).
        end = begin + 12 + int.from_bytes(data[begin : begin + 4], "big")
        if data[begin + 4 : begin + 8] not in PNG_TEXT:
            pieces.append(data[begin:end])
        begin = end

    return b"".join(pieces)


def _upright(rgb: Image.Image, opened: Image.Image) -> Image.Image:
    """The image turned and flipped as EXIF says; damaged EXIF is ignored."""
    orientation = None
    with contextlib.suppress(Exception):  # as many types as Pillow's decoders raise
        orientation = opened.getexif().get(ORIENTATION)
    return rgb.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else rgb


def _check_size(image: Image.Image, max_pixels: int, max_aspect: float) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError("too many pixels", f"{width} x {height}, at most {max_pixels} pixels")
    if min(width, height) < MIN_SIDE_PX:
        raise ImageError("too small", f"{width} x {height}, at least {MIN_SIDE_PX} pixels a side")
    if max(width, height) > max_aspect * min(width, height):
        raise ImageError("extreme aspect", f"{width} x {height}, at most {max_aspect:g} to 1")


def _check_depth(image: Image.Image) -> None:
    """Raise ImageError when the colors of a 16-bit image are nearly black after the cut to 8 bits.

    Pillow gives the high bytes of 16-bit color only. If its values use 12 bits, they are lost.
    """
    brightest = int(np.asarray(image.convert("RGB")).max())
    if brightest < DARKEST_HIGH_BYTE:
        raise ImageError(
            "unsupported mode",
            f"16-bit color whose values use 12 bits at most (highest byte {brightest}): save it "
            "with 8 bits",
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return _from_16_bits(image)
    if image.mode == "F":
        raise ImageError("unsupported mode", "floating-point pixels have no agreed range")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        flat = Image.new("RGB", image.size, (255, 255, 255))
        flat.paste(with_alpha, mask=with_alpha.getchannel("A"))
        return flat

    return image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Gray values of 16 bits as the 8 highest bits that any value uses.

    Cameras and scanners store 12-bit values in 16-bit files, whose high bytes alone are nearly
    black.
    """
    values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
    num_bits = max(8, int(values.max()).bit_length())
    # Devices have 10, 12, 14 or 16 bits, so an odd number of used bits is rounded up: 13 is 14.
    high_byte = values >> (num_bits + num_bits % 2 - 8)
    return Image.fromarray(high_byte.astype(np.uint8)).convert("RGB")


def bytes_hash(data: bytes) -> int:
    """64-bit BLAKE2b of an encoded file."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def pixel_hash(image: Image.Image) -> int:
    """64-bit BLAKE2b of the size and the RGB pixels as decoded.

    The pixels of a JPEG that was decoded with a draft are those of the smaller image.
    """
    return bytes_hash(np.array(image.size, "<u4").tobytes() + image.tobytes())


def thumbnail(image: Image.Image, longest_px: int) -> bytes:
    """A JPEG for galleries with at most `longest_px` pixels on its longer side; empty for 0."""
    if not longest_px:
        return b""
    scale = min(1.0, longest_px / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    buffer = io.BytesIO()
    small = image if scale == 1 else image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    small.save(buffer, "JPEG", quality=THUMBNAIL_QUALITY)
    return buffer.getvalue()
