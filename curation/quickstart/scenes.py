"""Scenes for segmentation: cut-out drawings on painted backgrounds, with exact masks.

The backgrounds imitate photographs (sky over ground, bokeh, rough surfaces; vignette and grain), so
that a drawing cannot be recognized by a white page around it. A scene is a function of the seed and
its number.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageFilter

OBJECTS = (2, 4)  # fewest and most per scene
OBJECT_SHARE = (0.32, 0.5)  # side of an object, as a share of the scene's
TRIES = 30
SKY = np.array([0.45, 0.62, 0.85], np.float32)
GRASS = np.array([0.25, 0.38, 0.15], np.float32)


@dataclass(frozen=True)
class Cutout:
    """A drawing with a transparent background, and the label of its pixels."""

    label: int
    png: bytes


@dataclass(frozen=True)
class Scene:
    """A scene as encoded files."""

    image: bytes
    """JPEG."""
    mask: bytes
    """PNG, one label per pixel."""


def draw_scenes(cutouts: Sequence[Cutout], count: int, size: int, seed: int) -> Iterator[Scene]:
    """`count` scenes of two to four cut-outs with different labels, `size` pixels wide and high."""
    by_label: dict[int, list[Cutout]] = {}
    for cutout in cutouts:
        by_label.setdefault(cutout.label, []).append(cutout)

    for i in range(count):
        rng = np.random.default_rng((seed, i))
        labels = rng.choice(
            sorted(by_label), size=rng.integers(OBJECTS[0], OBJECTS[1] + 1), replace=False
        )
        chosen = [by_label[label][rng.integers(len(by_label[label]))] for label in labels]
        image, mask = compose(rng, chosen, size)
        yield Scene(
            _encode(Image.fromarray(image), "JPEG", quality=90),
            _encode(Image.fromarray(mask), "PNG"),
        )


def _encode(image: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def compose(
    rng: np.random.Generator, cutouts: Sequence[Cutout], size: int
) -> tuple[UInt8[np.ndarray, "s s 3"], UInt8[np.ndarray, "s s"]]:
    """(image, mask) of a scene.

    A pixel has the label of the last cut-out that covers at least half of it, or 0.
    """
    image = Image.fromarray(background(rng, size))
    mask = np.zeros((size, size), np.uint8)
    placed: list[tuple[float, float, float]] = []

    for cutout in cutouts:
        side = int(size * rng.uniform(*OBJECT_SHARE))
        drawing = (
            Image.open(io.BytesIO(cutout.png))
            .convert("RGBA")
            .resize((side, side), Image.Resampling.BICUBIC)
        )
        left, top = _place(rng, placed, side, size)
        image.paste(drawing, (left, top), drawing)
        covered = np.asarray(drawing)[:, :, 3] >= 128
        mask[top : top + side, left : left + side][covered] = cutout.label

    return np.array(image), mask


def _place(
    rng: np.random.Generator, placed: list[tuple[float, float, float]], side: int, size: int
) -> tuple[int, int]:
    """(left, top) of a square: of some random places, the one that overlaps earlier squares least.

    `placed` has the center and the side of each earlier square, and gets those of this one.
    """
    tries = rng.integers(0, size - side + 1, size=(TRIES, 2))

    # The gap between two squares along the axis where they are farther apart; negative if they
    # overlap.
    clearance = [
        min(
            (max(abs(x - u), abs(y - v)) - (side + other) / 2 for u, v, other in placed),
            default=0.0,
        )
        for x, y in tries + side / 2
    ]
    # Places without any overlap are equally good: argmax takes the first of them.
    left, top = tries[int(np.argmax(np.minimum(clearance, 0.0)))]
    placed.append((float(left + side / 2), float(top + side / 2), float(side)))

    return int(left), int(top)


def background(rng: np.random.Generator, size: int) -> UInt8[np.ndarray, "s s 3"]:
    """One of three kinds of pseudo-photograph, with vignette and grain."""
    paint = (_landscape, _bokeh, _surface)[rng.integers(3)]
    pixels = paint(rng, size)
    across = np.linspace(-1, 1, size, dtype=np.float32)
    vignette = 1 - 0.25 * (across[:, None] ** 2 + across[None, :] ** 2) / 2
    grain = rng.normal(0, 0.015, (size, size, 1)).astype(np.float32)
    return (np.clip(pixels * vignette[:, :, None] + grain, 0, 1) * 255).astype(np.uint8)


def _noise(
    rng: np.random.Generator, size: int, stretch: int = 1, octaves: int = 6
) -> Float32[np.ndarray, "s s"]:
    """Fractal noise in [0, 1]; a `stretch` above 1 makes it wider than high."""
    total = np.zeros((size, size), np.float32)
    # Each octave is a random grid of twice the resolution, enlarged smoothly, with less weight.
    for octave in range(octaves):
        cells = 2 ** (octave + 1)
        grid = rng.random((cells + 1, max(2, cells // stretch + 1)), dtype=np.float32)
        layer = Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC)
        total += np.asarray(layer) * 0.55**octave
    return (total - total.min()) / (np.ptp(total) + 1e-6)


def _blend(
    share: Float32[np.ndarray, "..."],
    low: Float32[np.ndarray, " 3"],
    high: Float32[np.ndarray, " 3"],
) -> Float32[np.ndarray, "..."]:
    """Colors between `low` (share 0) and `high` (share 1)."""
    return low + share[..., None] * (high - low)


def _color(rng: np.random.Generator, low: float, high: float) -> Float32[np.ndarray, " 3"]:
    """A muted color: one brightness and a small deviation per channel."""
    return np.clip(rng.uniform(low, high) + rng.normal(0, 0.09, 3), 0, 1).astype(np.float32)


def _landscape(rng: np.random.Generator, size: int) -> Float32[np.ndarray, "s s 3"]:
    """Sky with clouds above a textured ground, with an uneven horizon."""
    sky = _blend(_noise(rng, size, stretch=2) ** 1.5, SKY, _color(rng, 0.8, 1.0))
    greens = GRASS if rng.random() < 0.6 else _color(rng, 0.3, 0.5)
    ground = _blend(_noise(rng, size, stretch=3, octaves=7), greens, _color(rng, 0.4, 0.7))
    horizon = size * (rng.uniform(0.3, 0.7) + 0.12 * (_noise(rng, size, octaves=3)[0] - 0.5))
    # 1 above the horizon, 0 below, with a transition of three pixels.
    above = np.clip((horizon[None, :] - np.arange(size)[:, None]) / 3 + 0.5, 0, 1).astype(
        np.float32
    )
    return above[:, :, None] * sky + (1 - above[:, :, None]) * ground


def _bokeh(rng: np.random.Generator, size: int) -> Float32[np.ndarray, "s s 3"]:
    """Blurred discs of light in front of a soft gradient: a background out of focus."""
    pixels = _blend(_noise(rng, size, octaves=2), _color(rng, 0.1, 0.4), _color(rng, 0.3, 0.7))
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    for _ in range(rng.integers(8, 20)):
        y, x = rng.uniform(0, size, 2)
        disc = np.hypot(rows - y, columns - x) < size * rng.uniform(0.03, 0.12)
        pixels += disc[:, :, None] * _color(rng, 0.1, 0.4) * rng.uniform(0.3, 0.9)
    picture = Image.fromarray((np.clip(pixels, 0, 1) * 255).astype(np.uint8))
    blurred = picture.filter(ImageFilter.GaussianBlur(size * rng.uniform(0.008, 0.02)))
    return np.asarray(blurred, dtype=np.float32) / 255


def _surface(rng: np.random.Generator, size: int) -> Float32[np.ndarray, "s s 3"]:
    """Wood, stone or cloth: fine noise between two colors, lit from one side."""
    texture = _noise(rng, size, stretch=int(rng.choice([1, 1, 4, 8])), octaves=7)
    light = np.linspace(rng.uniform(0.7, 1.0), rng.uniform(0.7, 1.1), size, dtype=np.float32)
    return _blend(texture, _color(rng, 0.25, 0.5), _color(rng, 0.5, 0.85)) * light[None, :, None]
