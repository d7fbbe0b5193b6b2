"""C-RADIO, distilled from several teachers, built by transformers; patch size 16.

It has several class tokens, each trained on other teachers. The first one counts as CLS, the others
as registers. The model normalizes pixels itself, so its input are values from 0 to 1. Ranzinger et
al. 2024 (arXiv:2312.06709).
"""

import math
from typing import Any

import transformers
from torch import Tensor

from curation.encoders.architectures import VisionTransformer
from curation.encoders.library import (
    StateDict,
    TokenEncoder,
    load_library_model,
    random_library_state,
)

PATCH_SIZE = 16
NUM_CLASS_TOKENS = 3
MAX_IMAGE_SIZE = 2048
PREFIX = "radio_model.model.patch_generator."

# (name in the published files, name in transformers' own state dict)
POSITIONS = (f"{PREFIX}pos_embed", "embeddings.position_embedding")
TOKENS = (f"{PREFIX}cls_token.token", "embeddings.cls_register_token")


def matches(architecture: VisionTransformer, state: StateDict) -> bool:
    """Whether the weights are those of this architecture, in published or the library's names."""
    tokens = _either(state, TOKENS)
    return tokens is not None and tuple(tokens.shape) == (
        1 + architecture.num_registers,
        architecture.dim,
    )


def _either(state: StateDict, names: tuple[str, str]) -> Tensor | None:
    published, library = names
    return state.get(published, state.get(library))


def build(architecture: VisionTransformer, state: StateDict) -> TokenEncoder:
    """The encoder with these weights. Raises ValueError when some are missing or do not fit."""
    positions = _either(state, POSITIONS)
    if positions is None:
        raise ValueError(
            "backbone weights hold no position embeddings: those of C-RADIO do; give a "
            "published file"
        )
    # Positions are those of the largest image, which the weights tell.
    config = library_config(architecture, math.isqrt(positions.shape[1]) * PATCH_SIZE)
    return TokenEncoder(
        load_library_model(transformers.RadioModel, config, state), architecture.num_registers
    )


def library_config(architecture: VisionTransformer, max_image_size: int = MAX_IMAGE_SIZE) -> Any:
    """The architecture as a config of transformers."""
    # Of the 1 + registers tokens that are no patches, three are class tokens for the library.
    return transformers.RadioConfig(
        hidden_size=architecture.dim,
        num_hidden_layers=architecture.depth,
        num_attention_heads=architecture.num_heads,
        use_swiglu_ffn=architecture.has_swiglu,
        num_cls_tokens=NUM_CLASS_TOKENS,
        num_registers=1 + architecture.num_registers - NUM_CLASS_TOKENS,
        patch_size=PATCH_SIZE,
        max_img_size=max_image_size,
    )


def random_state(architecture: VisionTransformer, seed: int = 0) -> StateDict:
    """Seeded weights, initialized by the library; for tests and dry runs."""
    return random_library_state(transformers.RadioModel, library_config(architecture), seed)
