"""DINOv3 ViT-S/B/L with patch size 16 and four registers, built by transformers.

Weights come as Meta's published .pth or with Hugging Face's published names. Meta's names are
changed to the latter. Positions are rotations of queries and keys, computed for any grid, so
nothing is interpolated. Siméoni et al. 2025 (arXiv:2508.10104).
"""

import re
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
REGISTERS = "embeddings.register_tokens"

# Meta's published names to Hugging Face's, as patterns. A name that fits none of them is kept.
NAMES = (
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^mask_token$", "embeddings.mask_token"),
    (r"^storage_tokens$", REGISTERS),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"layer.\1.attention.o_proj."),
    (r"^blocks\.(\d+)\.ls(\d)\.gamma$", r"layer.\1.layer_scale\2.lambda1"),
    (r"^blocks\.(\d+)\.mlp\.fc1\.", r"layer.\1.mlp.up_proj."),
    (r"^blocks\.(\d+)\.mlp\.fc2\.", r"layer.\1.mlp.down_proj."),
    (r"^blocks\.(\d+)\.norm", r"layer.\1.norm"),
)
QKV = re.compile(r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)")

# What the library computes and does not read: the periods of the rotations, and the mask of the
# biases that qkv does not have.
COMPUTED = re.compile(r"rope_embed\.periods|blocks\.\d+\.attn\.qkv\.bias_mask")


def matches(architecture: VisionTransformer, state: StateDict) -> bool:
    """Whether the weights are those of this architecture, in Meta's or Hugging Face's names."""
    state = hub_names(state)
    if REGISTERS not in state or "layer.0.attention.o_proj.weight" not in state:
        return False

    num_layers = sum(name.endswith("attention.o_proj.weight") for name in state)
    _, num_registers, dim = state[REGISTERS].shape
    return (dim, num_layers, num_registers) == (
        architecture.dim,
        architecture.depth,
        architecture.num_registers,
    )


def build(architecture: VisionTransformer, state: StateDict) -> TokenEncoder:
    """The encoder with these weights, in Meta's or Hugging Face's names.

    Raises ValueError when weights are missing or do not fit.
    """
    model = load_library_model(
        transformers.DINOv3ViTModel, library_config(architecture), hub_names(state)
    )
    return TokenEncoder(model, architecture.num_registers)


def library_config(architecture: VisionTransformer) -> Any:
    """The architecture as a config of transformers."""
    return transformers.DINOv3ViTConfig(
        hidden_size=architecture.dim,
        intermediate_size=architecture.mlp_dim,
        num_hidden_layers=architecture.depth,
        num_attention_heads=architecture.num_heads,
        num_register_tokens=architecture.num_registers,
        patch_size=PATCH_SIZE,
    )


def hub_names(state: StateDict) -> StateDict:
    """A state dict in Hugging Face's published names: as it is, or renamed from Meta's.

    Meta's qkv tensors are split into three.
    """
    if "storage_tokens" not in state:
        return state

    renamed: StateDict = {}
    for key, value in state.items():
        qkv = QKV.fullmatch(key)
        if COMPUTED.fullmatch(key):
            continue
        if qkv is not None:
            renamed |= _query_key_value(qkv[1], qkv[2], value)
            continue
        for pattern, replacement in NAMES:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value

    # Meta stores the mask token as one row, Hugging Face stores it as a batch of one row.
    renamed["embeddings.mask_token"] = renamed["embeddings.mask_token"].reshape(1, 1, -1)
    return renamed


def _query_key_value(block: str, kind: str, value: Tensor) -> StateDict:
    """The three parts of a qkv tensor under their names; keys have no bias."""
    # In Meta's file, the third of the keys in a bias is meaningless: a mask removes it.
    query, key, values = value.chunk(3)
    prefix = f"layer.{block}.attention"
    named = {f"{prefix}.q_proj.{kind}": query, f"{prefix}.v_proj.{kind}": values}
    return named if kind == "bias" else named | {f"{prefix}.k_proj.{kind}": key}


def random_state(architecture: VisionTransformer, seed: int = 0) -> StateDict:
    """Seeded weights, initialized by the library; for tests and dry runs."""
    return random_library_state(transformers.DINOv3ViTModel, library_config(architecture), seed)
