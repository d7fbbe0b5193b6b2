"""A trained model on one's own images, from Python.

    from evaluate.predict import load

    model = load("exported/safetensors")
    vectors = model.encode_images(["cat.jpg", "dog.jpg"])       # 2 x dim, unit norm
    words = model.encode_texts(["a cat", "a dog"])              # 2 x dim: vectors @ words.T are cosines
    chances = model.classify("cat.jpg", ["cat", "dog"])         # {"cat": 0.98, "dog": 0.02}
    regions = model.segment("cat.jpg", ["cat", "sofa", "wall"])
    regions.labels                                              # height x width: 0 is cat, 1 sofa, 2 wall
    regions.heat["cat"]                                         # height x width: cosine with "cat"

An image is a path, a PIL image, an array or a tensor (channels first or last; bytes, or floats from
0 to 1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from PIL import Image
from torch import Tensor

from curation.encoders.config import BackboneConfig
from curation.pairs.images import decode
from evaluate.classification import class_embeddings
from evaluate.dinotxt import DinoTxtEncoder, load_encoder
from evaluate.prompts import PLAIN
from train.export.published import read_model

SEGMENTED_SIDE = 448  # px of the short side: 32 patches of 14

ImageLike = str | Path | Image.Image | np.ndarray | Tensor


@dataclass(frozen=True)
class Regions:
    """Which name each pixel of an image belongs to, and how well each name fits each pixel."""

    names: tuple[str, ...]
    labels: Int64[np.ndarray, "h w"]
    """Index of the best name."""
    heat: dict[str, Float32[np.ndarray, "h w"]]
    """Cosine of each pixel's patch with each name."""


class Model:
    """A trained dino.txt on its frozen backbone."""

    def __init__(self, encoder: DinoTxtEncoder, logit_scale: float) -> None:
        self.encoder = encoder
        self.logit_scale = logit_scale

    def encode_images(self, images: ImageLike | Sequence[ImageLike]) -> Float[Tensor, "n d"]:
        """Unit vectors of one image, or of several."""
        return self.encoder.encode_image([open_image(image) for image in _as_list(images)])

    def encode_texts(self, texts: str | Sequence[str]) -> Float[Tensor, "n d"]:
        """Unit vectors of one text, or of several."""
        return self.encoder.encode_text([texts] if isinstance(texts, str) else list(texts))

    def classify(
        self, image: ImageLike, names: Sequence[str], templates: Sequence[str] = PLAIN
    ) -> dict[str, float]:
        """Probability per name; they sum to 1. Templates hold {} in place of the name; their
        vectors are averaged. ValueError for no name, or one that repeats."""
        _check_names(names)
        classes = class_embeddings(self.encoder, list(names), list(templates))

        # The trained scale makes cosines, which are close together, into the logits of training.
        logits = self.logit_scale * self.encode_images(image) @ classes.T
        return dict(zip(names, logits[0].softmax(-1).tolist(), strict=True))

    def segment(
        self,
        image: ImageLike,
        names: Sequence[str],
        templates: Sequence[str] = PLAIN,
        side: int = SEGMENTED_SIDE,
    ) -> Regions:
        """The best name of every pixel. `side`: pixels of the short side that the backbone gets;
        more is finer. ValueError for no name, or one that repeats."""
        _check_names(names)
        picture = open_image(image)
        width, height = picture.size
        factor = side / min(width, height)
        resized = picture.resize(
            (round(width * factor), round(height * factor)), Image.Resampling.BICUBIC
        )

        # Cosines are up-sampled, one map per name, rather than vectors of a thousand channels.
        classes = class_embeddings(self.encoder, list(names), list(templates), dense=True)
        cosines = (self.encoder.encode_patches([resized]) @ classes.T).permute(0, 3, 1, 2)
        maps = F.interpolate(cosines, size=(height, width), mode="bilinear", align_corners=False)[0]

        heat = {name: each.numpy() for name, each in zip(names, maps, strict=True)}

        return Regions(tuple(names), maps.argmax(0).numpy(), heat)


def load(folder: str | Path, backbone: BackboneConfig | None = None, weights: str = "") -> Model:
    """A model as training leaves it or `export --format safetensors` writes it, on the backbone
    that it names.

    `weights`: the backbone's file, where neither the hub's cache nor a package has it. Published
    dino.txt weights do not name their backbone: pass one. ValueError or FileNotFoundError says what
    is missing.
    """
    loaded = read_model(Path(folder))
    spec = loaded.spec
    if backbone is None and not spec.backbone:
        raise ValueError(
            f"{folder} does not name its backbone: pass one, as "
            "backbone=BackboneConfig('dinov2-vitl14-reg')"
        )

    named = backbone or BackboneConfig(spec.backbone, weights, spec.digest, spec.image_size)

    return Model(load_encoder(Path(folder), named), loaded.model.logit_scale().item())


def open_image(image: ImageLike) -> Image.Image:
    """An RGB image, upright. ValueError for what is none."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if isinstance(image, str | Path):
        return decode(Path(image).read_bytes())

    # Channels last, unless only the first axis can be the channels: 3 x 3 x 3 stays as it is.
    values = image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else image
    if values.ndim == 3 and values.shape[0] == 3 and values.shape[2] != 3:
        values = values.transpose(1, 2, 0)
    if values.ndim != 3 or values.shape[2] != 3:
        raise ValueError(
            f"an image of shape {values.shape}: three channels, first or last, are needed; "
            "convert it to RGB"
        )
    if values.dtype != np.uint8:
        values = (values * 255).round().clip(0, 255).astype(np.uint8)

    return Image.fromarray(values)


def _as_list(images: ImageLike | Sequence[ImageLike]) -> list[ImageLike]:
    return list(images) if isinstance(images, list | tuple) else [cast(ImageLike, images)]


def _check_names(names: Sequence[str]) -> None:
    if isinstance(names, str) or not names or len(set(names)) < len(names):
        raise ValueError(f"names are {names!r}: a list of different names is needed, at least one")
