"""Our model as an encoder: a trained head and text encoder on the frozen backbone.

Image tokens are reduced to the content that the model was trained on (pooled, grid or all); patches
for dense use keep the backbone's own grid at any image size.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from cluster.machine import Precision
from curation.encoders.backbone import Backbone, Features, load_backbone, store_features
from curation.encoders.config import BackboneConfig, geometry_of
from curation.encoders.resolve import resolve
from train.export.folder import LoadedModel
from train.export.published import read_model

IMAGES_AT_ONCE = {"cpu": 16, "cuda": 128}
"""Small batches stay in a CPU's cache: 1.4 times the images/s of 64."""
TEXTS_AT_ONCE = 512


class DinoTxtEncoder:
    """A frozen backbone with a trained dino.txt on top.

    `weights` is the identity of the backbone's weights; without it, features are not shared.
    """

    def __init__(self, backbone: Backbone, loaded: LoadedModel, weights: str = "") -> None:
        # Published weights do not name their backbone, so they need a description of their own.
        has_name = bool(loaded.spec.backbone)
        self.description = (
            backbone.description
            if has_name
            else f"{loaded.spec.description} on {backbone.description}"
        )
        self._backbone = backbone
        self._loaded = loaded
        self.protocol: Mapping[str, object] = {
            "image_size": backbone.geometry.image_size,
            "precision": backbone.precision,
        }
        self._at_once = IMAGES_AT_ONCE[backbone.device.type]

        spec = loaded.spec
        side = backbone.geometry.image_size
        tokens = f"{spec.num_registers} registers, grid {spec.grid}"

        # Everything that decides the bits of the features: a CPU and a GPU round differently.
        made_by = f"{side} px, {tokens}, {backbone.precision} on {backbone.device.type}"
        self.backbone = f"{backbone.name} {weights}, {made_by}" if weights else ""

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str], *, dense: bool = False) -> Float[Tensor, "n d"]:
        """Unit vectors of texts on the CPU: whole ones, or with `dense` the half that was trained
        against patches.

        Texts are cut at the model's context length.
        """
        model = self._loaded.model
        tokenizer = self._loaded.tokenizer
        blocks = []

        for start in range(0, len(texts), TEXTS_AT_ONCE):
            tokens = tokenizer.encode(
                texts[start : start + TEXTS_AT_ONCE], model.config.text.context
            )
            blocks.append(model.encode_tokens(tokens).float().cpu())

        # The cut is before the normalization: a half of a unit vector has no unit norm.
        features = torch.cat(blocks)
        if dense and model.config.vision.pooling == "concat":
            features = features[:, features.shape[1] // 2 :]

        return normalize(features, dim=-1)

    def encode_image(self, images: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        """Resized and cropped as in training."""
        return self.encode_features(self.image_features([self.prepare(image) for image in images]))

    def prepare(self, image: Image.Image) -> Float[Tensor, "3 s s"]:
        """The center square at the backbone's image size, normalized."""
        return self._backbone.preprocess(image)

    @torch.inference_mode()
    def image_features(self, pixels: Sequence[Tensor]) -> Float[Tensor, "n tokens width"]:
        """CLS, registers and patches of each image, pooled to the content that the model was
        trained on.
        """
        spec = self._loaded.spec
        blocks = []
        for start in range(0, len(pixels), self._at_once):
            batch = torch.stack(list(pixels[start : start + self._at_once]))
            features = store_features(
                self._backbone(batch), self._grid(batch), spec.num_registers, spec.grid
            )
            tokens = (features.cls[:, None], features.registers, features.patches)
            blocks.append(torch.cat(tokens, dim=1).cpu())

        return torch.cat(blocks)

    @torch.inference_mode()
    def encode_features(self, features: Float[Tensor, "n tokens width"]) -> Float[Tensor, "n d"]:
        """The head's unit vectors of what `image_features` gave: CLS, registers, patches."""
        first_patch = 1 + self._loaded.spec.num_registers
        blocks = []
        for block in features.split(self._at_once):
            tokens = block.to(self._backbone.device)
            vectors = self._loaded.model.encode_image_features(
                tokens[:, 0], tokens[:, 1:first_patch], tokens[:, first_patch:]
            )
            blocks.append(vectors.float().cpu())

        return normalize(torch.cat(blocks), dim=-1)

    @torch.inference_mode()
    def encode_patches(self, images: Sequence[Image.Image]) -> Float[Tensor, "n h w p"]:
        """Unit vectors of patches, comparable with texts that are encoded as `dense`.

        Sides are stretched up to whole patches, as published (bicubic, after normalization): with
        patches of 14, a window of 384 px becomes 392, a grid of 28 x 28. ValueError for images of
        several sizes.
        """
        sizes = {image.size for image in images}
        if len(sizes) != 1:
            raise ValueError(
                f"images of {len(sizes)} sizes: encode_patches needs one size; call it once "
                "for each"
            )

        patch = self._backbone.geometry.patch_size
        width, height = (math.ceil(side / patch) * patch for side in images[0].size)

        blocks = []
        for start in range(0, len(images), self._at_once):
            pixels = torch.stack(
                [self._backbone.normalize(image) for image in images[start : start + self._at_once]]
            )
            if pixels.shape[2:] != (height, width):
                pixels = interpolate(
                    pixels, size=(height, width), mode="bicubic", align_corners=False
                )

            # As stored tokens have them: a model may have been trained without registers.
            features = self._backbone(pixels)
            registers = features.registers[:, : self._loaded.spec.num_registers]
            _, patches = self._loaded.model.vision(features.cls, registers, features.patches)
            blocks.append(patches.float().cpu())

        return normalize(torch.cat(blocks), dim=-1).unflatten(1, (height // patch, width // patch))

    @torch.inference_mode()
    def align_patches(self, features: Features) -> Float[Tensor, "n h w p"]:
        """Patches of stored tokens, comparable with texts that are encoded as `dense`; they cover
        the center square.
        """
        device = self._backbone.device
        _, patches = self._loaded.model.vision(*(tokens.to(device) for tokens in features))
        return normalize(patches.float().cpu(), dim=-1).unflatten(1, self._loaded.spec.grid)

    def _grid(self, pixels: Float[Tensor, "b 3 h w"]) -> tuple[int, int]:
        patch = self._backbone.geometry.patch_size
        return pixels.shape[2] // patch, pixels.shape[3] // patch


def load_encoder(
    model_folder: Path, backbone: BackboneConfig, precision: Precision = "float32"
) -> DinoTxtEncoder:
    """A model of ours on the backbone that it was trained with, ValueError if it was another; or
    published weights, which do not name theirs, on one of their size.
    """
    loaded = read_model(model_folder)
    resolved = resolve(backbone)
    spec = loaded.spec
    geometry = geometry_of(resolved)

    # The digest too: weights of one name that were trained again have other features.
    if spec.backbone and (resolved.name, resolved.digest) != (spec.backbone, spec.digest):
        raise ValueError(
            f"the model in {model_folder} was trained on {spec.backbone} ({spec.digest[:12]}), "
            f"evaluation has {resolved.name} ({resolved.digest[:12]}): they must be the same; set "
            "the evaluation's backbone"
        )

    # Of published weights, only the width can be compared.
    if not spec.backbone and geometry.dim != spec.dim:
        raise ValueError(
            f"the weights in {model_folder} are for {spec.dim} channels, {resolved.name} has "
            f"{geometry.dim}: name the backbone that they were made for"
        )

    frozen = load_backbone(resolved, precision)
    loaded = loaded._replace(model=loaded.model.to(frozen.device))
    return DinoTxtEncoder(frozen, loaded, resolved.digest)
