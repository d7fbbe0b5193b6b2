"""open_clip's models as an encoder, for comparison: the package is optional and imported only here.

Dense features are the visual tower's patch tokens after its final norm and projection, for towers
that give them.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

TEXTS_AT_ONCE = 256
IMAGES_AT_ONCE = 64


class OpenClipEncoder:
    """A model of open_clip by architecture and weights: a tag it knows, a file, or "" for random
    ones.
    """

    def __init__(self, architecture: str, weights: str) -> None:
        open_clip = check_architecture(architecture)
        self.description = f"open_clip {architecture} {weights or 'random weights'}"
        self._model, _, self._preprocess = open_clip.create_model_and_transforms(
            architecture, pretrained=weights or None
        )
        self.protocol: Mapping[str, object] = {
            "model_image_size": self._model.visual.image_size,
            "precision": "float32",
        }
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model.to(self._device).eval()
        self._tokenize = open_clip.get_tokenizer(architecture)

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str], *, dense: bool = False) -> Float[Tensor, "n d"]:
        """The same vectors serve images and patches."""
        blocks = [
            self._model.encode_text(
                self._tokenize(list(texts[start : start + TEXTS_AT_ONCE])).to(self._device)
            )
            for start in range(0, len(texts), TEXTS_AT_ONCE)
        ]
        return normalize(torch.cat(blocks).float(), dim=-1).cpu()

    @torch.inference_mode()
    def encode_image(self, images: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        """Preprocessed as the model's own configuration says."""
        blocks = []
        for start in range(0, len(images), IMAGES_AT_ONCE):
            batch = [self._preprocess(image) for image in images[start : start + IMAGES_AT_ONCE]]
            blocks.append(self._model.encode_image(torch.stack(batch).to(self._device)))
        return normalize(torch.cat(blocks).float(), dim=-1).cpu()

    @torch.inference_mode()
    def encode_patches(self, images: Sequence[Image.Image]) -> Float[Tensor, "n h w p"]:
        """Images are brought to the model's own square input size."""
        visual = self._model.visual
        if not hasattr(visual, "output_tokens"):
            raise ValueError(
                f"{self.description} gives no patch tokens: dense use needs a vision transformer "
                "of open_clip"
            )

        side = visual.image_size[0] if isinstance(visual.image_size, tuple) else visual.image_size
        pixels = torch.stack([self._preprocess(image.resize((side, side))) for image in images]).to(
            self._device
        )
        visual.output_tokens = True

        try:
            _, tokens = visual(pixels)
        finally:
            visual.output_tokens = False

        if visual.proj is not None:
            tokens = tokens @ visual.proj

        return (
            normalize(tokens.float(), dim=-1).cpu().unflatten(1, (math.isqrt(tokens.shape[1]), -1))
        )


def check_architecture(name: str) -> Any:
    """The package; ValueError when it is not there or does not know the architecture."""
    try:
        import open_clip
    except ImportError as error:
        raise ValueError(
            f"open_clip cannot be imported ({error}): this encoder is optional; pip install "
            "open_clip_torch, with the torchvision that matches your torch"
        ) from error

    known = open_clip.list_models()
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.0))
        raise ValueError(f"open_clip has no architecture {name!r}: did you mean one of {near}?")

    return open_clip
