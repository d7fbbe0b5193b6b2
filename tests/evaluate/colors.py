"""A world in which the right answers are known: things are colours, and the encoder sees
colours.
"""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from evaluate.classification import Classified, classify
from evaluate.retrieval import Retrieved, retrieve
from evaluate.sets.kinds import ClassificationSet, RetrievalSet
from evaluate.vectors import SetVectors
from evaluate.views import UNCUT

COLORS = {
    "black": (0, 0, 0),
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "magenta": (255, 0, 255),
    "cyan": (0, 255, 255),
    "white": (255, 255, 255),
}
NAMES = tuple(COLORS)
PATCH = 8


class ColorEncoder:
    """Knows every colour by its name and by its looks: perfect by construction."""

    description = "colours"
    protocol: Mapping[str, object] = {"image_size": "any"}

    def encode_text(self, texts: Sequence[str], *, dense: bool = False) -> Float[Tensor, "n d"]:
        found = [
            next(COLORS[word] for word in text.strip(".").split() if word in COLORS)
            for text in texts
        ]
        return normalize(torch.tensor(found) / 127.5 - 1, dim=-1)

    def encode_image(self, images: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        return self.encode_patches([image.resize((PATCH, PATCH)) for image in images]).flatten(1)

    def encode_patches(self, images: Sequence[Image.Image]) -> Float[Tensor, "n h w p"]:
        pixels = torch.tensor(np.stack([np.asarray(image) for image in images])) / 127.5 - 1
        return normalize(
            pixels.unflatten(1, (-1, PATCH)).unflatten(3, (-1, PATCH)).mean((2, 4)), dim=-1
        )


class BlindEncoder(ColorEncoder):
    """Gives everything the same vector."""

    description = "blind"

    def encode_text(self, texts: Sequence[str], *, dense: bool = False) -> Float[Tensor, "n d"]:
        return torch.eye(3)[:1].expand(len(texts), -1)

    def encode_patches(self, images: Sequence[Image.Image]) -> Float[Tensor, "n h w p"]:
        return torch.eye(3)[0].expand(
            len(images), images[0].height // PATCH, images[0].width // PATCH, -1
        )


def classified(
    encoder: ColorEncoder, dataset: ClassificationSet, templates: Sequence[str], batch_size: int
) -> Classified:
    vectors = SetVectors(encoder, dataset, templates, UNCUT, batch_size)
    return classify(dataset, vectors.texts(), vectors.images())


def retrieved(encoder: ColorEncoder, dataset: RetrievalSet, batch_size: int) -> Retrieved:
    vectors = SetVectors(encoder, dataset, (), UNCUT, batch_size)
    return retrieve(dataset, vectors.texts(), vectors.images())


def picture(color: str, size: tuple[int, int] = (24, 16)) -> bytes:
    return png(Image.new("RGB", size, COLORS[color]))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_folder(path: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def classification_files(images_of_each: int = 2) -> dict[str, bytes]:
    pictures = {color: picture(color) for color in NAMES}
    return {
        f"{color}/{index}.png": pictures[color]
        for color in NAMES
        for index in range(images_of_each)
    }


def retrieval_files(captions_of_each: int = 2, split: str = "val") -> dict[str, bytes]:
    entries = [
        {
            "filename": f"{color}.png",
            "split": split,
            "sentences": [
                {"raw": f"caption {index} of something {color}"}
                for index in range(captions_of_each)
            ],
        }
        for color in NAMES
    ]
    files = {f"images/{color}.png": picture(color) for color in NAMES}
    return {"dataset.json": json.dumps({"images": entries}).encode(), **files}


def scene(
    seed: int, cells: tuple[int, int] = (4, 6), cell: int = 16
) -> tuple[Image.Image, Image.Image]:
    """A picture of coloured cells and its mask; index 0 (black) is the background."""
    labels = (
        np.random.default_rng(seed).integers(0, len(NAMES), cells).repeat(cell, 0).repeat(cell, 1)
    )
    colors = np.array([COLORS[name] for name in NAMES], np.uint8)
    return Image.fromarray(colors[labels]), Image.fromarray(labels.astype(np.uint8))


def segmentation_files(
    scenes: int = 3, labels: object = None, cells: tuple[int, int] = (4, 6)
) -> dict[str, bytes]:
    files = {"labels.json": json.dumps(labels or ["background", *NAMES[1:]]).encode()}
    for index in range(scenes):
        image, mask = scene(index, cells)
        files |= {f"images/scene-{index}.png": png(image), f"masks/scene-{index}.png": png(mask)}
    return files
