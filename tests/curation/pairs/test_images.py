"""Decoding of everything a crawl holds, and the hashes."""

import contextlib
import io
import pickle
import sys
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from jaxtyping import Int64
from PIL import Image, ImageOps, ImageSequence, PngImagePlugin

from curation.pairs.images import (
    MAX_PIXELS,
    PNG_MARK,
    ImageError,
    bytes_hash,
    decode,
    pixel_hash,
    thumbnail,
)

Draw = Callable[..., Image.Image]
Encode = Callable[..., bytes]


def reason_of(data: bytes, **options: int) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, **options)
    return caught.value.reason


def test_png_pixels_come_back_exactly(picture: Draw, encoded: Encode) -> None:
    image = picture(0)
    np.testing.assert_array_equal(np.asarray(decode(encoded(image, "PNG"))), np.asarray(image))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF"])
def test_common_formats_decode_close_to_the_original(
    picture: Draw, encoded: Encode, format: str
) -> None:
    image = picture(1)
    decoded = decode(encoded(image, format))
    assert decoded.mode == "RGB"
    assert decoded.size == image.size
    assert np.abs(np.asarray(decoded, float) - np.asarray(image)).mean() < 12


def test_cmyk_jpeg_becomes_rgb(picture: Draw, encoded: Encode) -> None:
    image = picture(2)
    decoded = decode(encoded(image.convert("CMYK"), quality=95))
    assert decoded.mode == "RGB"
    assert np.abs(np.asarray(decoded, float) - np.asarray(image)).mean() < 8


def test_sixteen_bit_png_keeps_its_high_byte(encoded: Encode) -> None:
    values = np.arange(48 * 40, dtype=np.uint16).reshape(40, 48) * 33
    decoded = np.asarray(decode(encoded(Image.fromarray(values), "PNG")))
    np.testing.assert_array_equal(
        decoded, np.repeat((values >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    )


@pytest.mark.parametrize("num_bits", [8, 10, 12, 14])
def test_fewer_bits_in_a_sixteen_bit_file_are_not_black(encoded: Encode, num_bits: int) -> None:
    values = np.linspace(0, 2**num_bits - 1, 48 * 40).astype(np.uint16).reshape(40, 48)
    decoded = np.asarray(decode(encoded(Image.fromarray(values), "PNG")))
    np.testing.assert_array_equal(decoded[:, :, 0], values >> (num_bits - 8))


def sixteen_bit_color_png(values: Int64[np.ndarray, "h w 3"]) -> bytes:
    """A PNG of 16 bits per channel, which Pillow reads but does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(name + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + name + content + checksum

    height, width = values.shape[:2]
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return (
        PNG_MARK
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_sixteen_bit_color_keeps_its_high_byte_and_is_refused_where_that_is_empty() -> None:
    values = np.arange(8 * 8 * 3, dtype=np.int64).reshape(8, 8, 3) * 300
    np.testing.assert_array_equal(np.asarray(decode(sixteen_bit_color_png(values))), values >> 8)
    assert reason_of(sixteen_bit_color_png(values // 16)) == "unsupported mode"


def test_png_with_long_text_is_read(picture: Draw, encoded: Encode) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("prompt", "x" * 3_000_000, zip=True)
    text.add_itxt("more", "y" * 3_000_000, zip=True)
    data = encoded(picture(0), "PNG", pnginfo=text)
    np.testing.assert_array_equal(np.asarray(decode(data)), np.asarray(picture(0)))
    assert reason_of(data[:-500]) == "corrupt image"


def test_heic_is_read_where_pillow_heif_is_there(picture: Draw) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(picture(1)).save(buffer, quality=90)
    decoded = np.asarray(decode(buffer.getvalue()), float)
    assert np.abs(decoded - np.asarray(picture(1))).mean() < 12


def test_heic_without_its_reader_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert reason_of(b"\0\0\0\x18ftypheic" + b"\0" * 100) == "unsupported format"


def test_palette_png_becomes_rgb(picture: Draw, encoded: Encode) -> None:
    palette = picture(3).convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    np.testing.assert_array_equal(
        np.asarray(decode(encoded(palette, "PNG"))), np.asarray(palette.convert("RGB"))
    )


def test_alpha_is_composited_on_white(encoded: Encode) -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2, :, 3] = 255
    decoded = np.asarray(decode(encoded(Image.fromarray(pixels, "RGBA"), "PNG")))
    assert (decoded[:2] == 0).all()
    assert (decoded[2:] == 255).all()


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_transparent_colour_becomes_white(encoded: Encode, mode: str) -> None:
    image = Image.new(mode, (6, 6), 0)
    data = encoded(image, "PNG", transparency=(0, 0, 0) if mode == "RGB" else 0)
    assert (np.asarray(decode(data)) == 255).all()


def test_animated_gif_gives_its_first_frame(encoded: Encode) -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert len(list(ImageSequence.Iterator(Image.open(io.BytesIO(data))))) == 3
    assert (np.asarray(decode(data)) == (255, 0, 0)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(picture: Draw, encoded: Encode, orientation: int) -> None:
    """Pillow's own function is the oracle."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(4), exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(np.asarray(decode(data)), np.asarray(expected))


def test_fifty_megapixels_decode(encoded: Encode) -> None:
    data = encoded(Image.new("L", (10_000, 5_000), 7), "PNG", compress_level=1)
    assert decode(data).size == (10_000, 5_000)


def test_too_many_pixels_are_rejected_before_decoding(encoded: Encode) -> None:
    data = encoded(Image.new("1", (20_000, 10_000)), "PNG")
    assert reason_of(data) == "too many pixels"
    assert (
        reason_of(encoded(Image.new("1", (9_000, MAX_PIXELS // 9_000 + 1)), "PNG"))
        == "too many pixels"
    )


def test_draft_shrinks_a_jpeg_but_not_below_what_is_asked(picture: Draw, encoded: Encode) -> None:
    data = encoded(picture(5, (640, 480)))
    assert decode(data, draft_px=100).size == (160, 120)
    assert decode(data, draft_px=250).size == (640, 480)


def test_an_error_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(ImageError("too small", "1 x 1")))
    assert (error.reason, error.detail, str(error)) == ("too small", "1 x 1", "too small: 1 x 1")


def test_empty_file_is_rejected() -> None:
    assert reason_of(b"") == "empty file"


@pytest.mark.parametrize("data", [b"<html>404</html>", b"\0" * 1000, b"%!PS-Adobe-3.0 EPSF-3.0"])
def test_what_is_no_image_is_rejected(data: bytes) -> None:
    assert reason_of(data) == "not an image"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF"])
def test_truncated_image_is_rejected(picture: Draw, encoded: Encode, format: str) -> None:
    data = encoded(picture(6, (200, 160)), format)
    assert reason_of(data[: len(data) // 2]) in ("corrupt image", "not an image")


def test_any_flipped_byte_decodes_or_is_rejected(picture: Draw, encoded: Encode) -> None:
    rng = np.random.default_rng(0)
    for format in ("JPEG", "PNG", "GIF"):
        data = encoded(picture(7), format)
        for position in rng.integers(0, len(data), 150):
            damaged = bytearray(data)
            damaged[position] ^= int(rng.integers(1, 256))
            with contextlib.suppress(ImageError):
                decode(bytes(damaged))


def test_one_pixel_is_rejected(encoded: Encode) -> None:
    assert reason_of(encoded(Image.new("RGB", (1, 1)), "PNG")) == "too small"


def test_extreme_aspect_is_rejected(encoded: Encode) -> None:
    assert reason_of(encoded(Image.new("RGB", (1000, 4)), "PNG")) == "extreme aspect"


def test_float_pixels_are_rejected(encoded: Encode) -> None:
    assert reason_of(encoded(Image.new("F", (8, 8), 0.5), "TIFF")) == "unsupported mode"


def test_hashes_tell_files_and_pixels_apart(picture: Draw, encoded: Encode) -> None:
    png = encoded(picture(8), "PNG")
    stored = encoded(picture(8), "PNG", compress_level=0)
    assert bytes_hash(png) != bytes_hash(stored)
    assert pixel_hash(decode(png)) == pixel_hash(decode(stored)) != pixel_hash(picture(9))


def test_pixel_hash_covers_the_shape() -> None:
    assert pixel_hash(Image.new("RGB", (4, 9))) != pixel_hash(Image.new("RGB", (6, 6)))


def test_thumbnail_keeps_the_aspect_and_never_enlarges(picture: Draw) -> None:
    assert Image.open(io.BytesIO(thumbnail(picture(0, (480, 240)), 48))).size == (48, 24)
    assert Image.open(io.BytesIO(thumbnail(picture(0, (20, 30)), 48))).size == (20, 30)
    assert thumbnail(picture(0), 0) == b""
