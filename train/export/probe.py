"""Inputs for the comparison of exports: captions of many kinds, and seeded images or tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from curation.encoders.backbone import Features, store_features
from train.export.folder import LoadedModel
from train.export.subject import Subject

NUM_IMAGES = 3
CAPTIONS = (
    "a",
    "a dog",
    "A brown dog runs through the snow.",
    "Two children are playing football in a park while their parents watch from a bench.",
    "photo of the Eiffel Tower at night, 4k, high resolution!!!",
    "un café crème à Zürich",
    "写真 of a cat ☕",
    "size: 10.5 x 3/4 inches (model #A-113) & more...",
    "  leading   and double   spaces ",
    "an extraordinarily long caption " * 40,
)


@dataclass(frozen=True)
class Probe:
    """Inputs of a comparison.

    There are images, pixels and all tokens only if the backbone is available.
    """

    captions: Sequence[str]
    tokens: Features
    """In the format that the model was trained on."""
    images: Sequence[Image.Image] = ()
    pixels: Tensor | None = None
    """batch, 3, side, side; standardized for the backbone."""
    all_tokens: Features | None = None
    """The backbone's tokens with all patches and registers."""


def make_probe(subject: Subject) -> Probe:
    """Images through the backbone; without one, seeded tokens of the shape used in training."""
    spec = subject.loaded.spec
    backbone = subject.backbone
    if backbone is None:
        generator = torch.Generator().manual_seed(0)
        counts = (1, spec.num_registers, spec.grid[0] * spec.grid[1])
        cls, registers, patches = (
            torch.randn(NUM_IMAGES, count, spec.dim, generator=generator) for count in counts
        )
        return Probe(CAPTIONS, Features(cls[:, 0], registers, patches))

    images = [noise_image(seed, spec.image_size) for seed in range(NUM_IMAGES)]
    pixels = torch.stack([backbone.preprocess(image) for image in images])
    all_tokens = backbone(pixels)
    tokens = store_features(all_tokens, backbone.geometry.grid, spec.num_registers, spec.grid)

    return Probe(CAPTIONS, tokens, images, pixels, all_tokens)


def noise_image(seed: int, side: int) -> Image.Image:
    """Smooth random colors, a little taller than wide, so that cropping matters."""
    values = np.random.default_rng(seed).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((side + 9, side + 30 + seed), Image.Resampling.BICUBIC)


@torch.inference_mode()
def features_of(loaded: LoadedModel, probe: Probe) -> dict[str, Tensor]:
    """Unit-norm features of our own encoder, on packed captions.

    The kinds are text, image and patches, and dense for the patches of `all_tokens`.
    """
    model = loaded.model
    features = {
        "text": model.encode_tokens(
            loaded.tokenizer.encode(probe.captions, model.config.text.context)
        ),
        "image": model.encode_image_features(*probe.tokens),
        "patches": model.vision(*probe.tokens)[1],
    }
    if probe.all_tokens is not None:
        cls, registers, patches = probe.all_tokens
        features["dense"] = model.vision(cls, registers[:, : loaded.spec.num_registers], patches)[1]

    return {kind: normalize(feature, dim=-1) for kind, feature in features.items()}
