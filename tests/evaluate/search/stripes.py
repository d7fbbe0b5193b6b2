"""Images of colored stripes."""

import io

from PIL import Image

from tests.evaluate.colors import COLORS

SIDE = 64


def square(*colors: str) -> Image.Image:
    """Vertical stripes of equal width."""
    image = Image.new("RGB", (SIDE, SIDE))
    width = SIDE // len(colors)
    for place, color in enumerate(colors):
        image.paste(COLORS[color], (place * width, 0, (place + 1) * width, SIDE))
    return image


def encoded(image: Image.Image) -> bytes:
    """The image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
