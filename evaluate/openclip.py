"""open_clip's models as an encoder, for comparison: the package is optional and imported only here.

Dense features are the visual tower's patch tokens after its final norm and projection, for towers
that give them. Texts are encoded without their padding where the tower allows it: open_clip pads
all of them to 77 tokens, of which a caption has about 14.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import normalize

TEXTS_AT_ONCE = 256
IMAGES_AT_ONCE = {"cpu": 16, "cuda": 128}


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
        self._text = EncodeText(self._model)
        self._per_position = tensors_per_position(self._model)
        self.backbone = ""  # a tag or a file does not say which weights it stands for

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str], *, dense: bool = False) -> Float[Tensor, "n d"]:
        """The same vectors serve images and patches."""
        tokens = self._tokenize(list(texts))
        lengths = torch.full((len(tokens),), tokens.shape[1])
        if self._per_position:
            # The end token has the highest number of the vocabulary; what follows it is padding.
            lengths = tokens.argmax(1) + 1

        # Texts of like length go together, so that hardly any padding is left in a block.
        order = lengths.argsort(stable=True)
        blocks = [
            self._encode_tokens(tokens[rows, : int(lengths[rows].max())])
            for rows in order.split(TEXTS_AT_ONCE)
        ]
        vectors = normalize(torch.cat(blocks), dim=-1)

        # Row i of the blocks is text order[i]; argsort inverts the permutation.
        return vectors[order.argsort()]

    def _encode_tokens(self, tokens: Int64[Tensor, "n length"]) -> Float[Tensor, "n d"]:
        """Vectors of texts that are cut behind the longest of them.

        With a causal mask, what stands behind a text's end token does not change its vector.
        """
        # For this call only, the model has as many positions as the block: its own tensors are not
        # touched. The mask has two axes of positions, the embeddings one.
        length = tokens.shape[1]
        cut = {
            name: tensor[:length, :length] if name.endswith("mask") else tensor[:length]
            for name, tensor in self._per_position.items()
        }
        return functional_call(self._text, cut, (tokens.to(self._device),)).float().cpu()

    @torch.inference_mode()
    def encode_image(self, images: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        """Preprocessed as the model's own configuration says."""
        return self.encode_features(self.image_features([self.prepare(image) for image in images]))

    def prepare(self, image: Image.Image) -> Float[Tensor, "3 h w"]:
        """The pixels as the model's own configuration has them."""
        return self._preprocess(image)

    @torch.inference_mode()
    def image_features(self, pixels: Sequence[Tensor]) -> Float[Tensor, "n tokens width"]:
        """One token per image: the whole visual tower is the backbone."""
        at_once = IMAGES_AT_ONCE[self._device]
        blocks = []
        for start in range(0, len(pixels), at_once):
            batch = torch.stack(list(pixels[start : start + at_once]))
            blocks.append(self._model.encode_image(batch.to(self._device)).float().cpu())
        return torch.cat(blocks)[:, None]

    def encode_features(self, features: Float[Tensor, "n tokens width"]) -> Float[Tensor, "n d"]:
        """Unit vectors: there is no head behind the tower."""
        return normalize(features[:, 0], dim=-1)

    @torch.inference_mode()
    def encode_patches(self, images: Sequence[Image.Image]) -> Float[Tensor, "n h w p"]:
        """Unit vectors of patches; images are stretched to the model's own square input size.

        ValueError for a tower without patch tokens, such as a ResNet.
        """
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

        # With this switch, the tower returns its patch tokens beside the pooled vector. All other
        # calls expect the vector alone.
        visual.output_tokens = True
        try:
            _, tokens = visual(pixels)
        finally:
            visual.output_tokens = False

        # The tower projects only the pooled vector into the space of texts.
        if visual.proj is not None:
            tokens = tokens @ visual.proj

        return (
            normalize(tokens.float(), dim=-1).cpu().unflatten(1, (math.isqrt(tokens.shape[1]), -1))
        )


class EncodeText(nn.Module):
    """A model's text encoder as a module, so that `functional_call` can cut its positions."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Int64[Tensor, "n length"]) -> Float[Tensor, "n d"]:
        return self.model.encode_text(tokens)


def tensors_per_position(model: nn.Module) -> dict[str, Tensor]:
    """What the text tower has for each of its 77 positions, by name: the position embeddings and
    the causal mask.

    Empty for a tower whose vector depends on the padding: one without a causal mask, or one that
    pools elsewhere than at the end token.
    """
    tower = getattr(model, "text", model)
    pooling = getattr(tower, "pool_type", getattr(tower, "text_pool_type", ""))
    mask = getattr(tower, "attn_mask", None)
    positions = getattr(tower, "positional_embedding", None)
    sees_padding = (
        getattr(tower, "use_pad_mask", False) or getattr(tower, "cls_emb", None) is not None
    )

    if pooling != "argmax" or sees_padding or mask is None or positions is None:
        return {}

    # Names as `functional_call` knows them, seen from EncodeText: its model, and there the text
    # tower, or the model itself where that holds the text's parameters.
    prefix = "model.text." if hasattr(model, "text") else "model."
    return {f"{prefix}attn_mask": mask, f"{prefix}positional_embedding": positions}


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
