"""The two published files as their release reads them: an independent check of the export.

It shares no code with the model. Lists of names are strict, captions are padded with 0 to the whole
context, the feature is read at the largest token id, and every step is written out
(arXiv:2412.16334).
"""

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from train.export.probe import Probe
from train.tokenizer import load_tokenizer

HEAD_DIM = 64
BLOCK = re.compile(r"(?:backbone\.)?(?:block_list|blocks)\.(\d+)\.(.*)")
VISION_BLOCK = {
    "norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.proj.weight", "attn.proj.bias", "ls1.gamma",
    "norm2.weight", "norm2.bias", "mlp.w1.weight", "mlp.w1.bias", "mlp.w2.weight", "mlp.w2.bias", "mlp.w3.weight",
    "mlp.w3.bias", "ls2.gamma",
}  # fmt: skip
TEXT_BLOCK = {
    "attention_norm.weight", "attention_norm.bias", "attention.qkv.weight", "attention.proj.weight",
    "attention.proj.bias", "ffn_norm.weight", "ffn_norm.bias", "feed_forward.fc1.weight", "feed_forward.fc1.bias",
    "feed_forward.fc2.weight", "feed_forward.fc2.bias",
}  # fmt: skip
HEAD_STEM = {"ln_final.weight", "ln_final.bias"}
TEXT_STEM = {
    "backbone.token_embedding.weight", "backbone.positional_embedding", "backbone.ln_final.weight",
    "backbone.ln_final.bias", "head.linear_projection.weight",
}  # fmt: skip
Weights = dict[str, Tensor]


@torch.inference_mode()
def published_features(folder: Path, probe: Probe) -> dict[str, Tensor]:
    """Unit-norm features of the two files in a folder, with the tokenizer beside them."""
    head = torch.load(next(folder.glob("*head*.pth")), weights_only=True)
    text = torch.load(next(folder.glob("*text*.pth")), weights_only=True)
    head_blocks = split_blocks(head, HEAD_STEM, VISION_BLOCK)
    text_blocks = split_blocks(text, TEXT_STEM, TEXT_BLOCK)

    context = text["backbone.positional_embedding"].shape[0]
    ids = load_tokenizer(folder).encode(probe.captions, context)
    padded = torch.tensor([caption + [0] * (context - len(caption)) for caption in ids])

    cls, patches = read_head(head, head_blocks, *probe.tokens)
    features = {
        "text": read_text(text, text_blocks, padded),
        "image": torch.cat([cls, patches.mean(1)], dim=-1),
        "patches": patches,
    }

    return {kind: F.normalize(feature, dim=-1) for kind, feature in features.items()}


def split_blocks(weights: Weights, stem: set[str], block: set[str]) -> list[Weights]:
    """Weights by block. ValueError if there is no block, or if a name is missing or unknown."""
    blocks: dict[int, Weights] = {}
    for name, tensor in weights.items():
        match = BLOCK.fullmatch(name)
        if match:
            blocks.setdefault(int(match[1]), {})[match[2]] = tensor

    names = {name for name in weights if not BLOCK.fullmatch(name)}
    problems = [f"{sorted(names ^ stem)[:3]}"] if names != stem else []
    problems += [
        f"block {index}: {sorted(set(each) ^ block)[:3]}"
        for index, each in blocks.items()
        if set(each) != block
    ]

    if problems or not blocks or sorted(blocks) != list(range(len(blocks))):
        raise ValueError(
            "published files differ from the release's names "
            f"({'; '.join(problems) or f'blocks {sorted(blocks)}'}): strict loading refuses them; "
            "export another format"
        )

    return [blocks[index] for index in range(len(blocks))]


def read_text(
    weights: Weights, blocks: list[Weights], ids: Int64[Tensor, "b t"]
) -> Float[Tensor, "b f"]:
    """Features of padded captions, each at the position of its largest token id."""
    x = weights["backbone.token_embedding.weight"][ids] + weights["backbone.positional_embedding"]
    for block in blocks:
        x = x + attend(norm(x, block, "attention_norm"), block, "attention", is_causal=True)
        y = F.linear(
            norm(x, block, "ffn_norm"),
            block["feed_forward.fc1.weight"],
            block["feed_forward.fc1.bias"],
        )
        x = x + F.linear(
            F.gelu(y), block["feed_forward.fc2.weight"], block["feed_forward.fc2.bias"]
        )

    every = norm(x, weights, "backbone.ln_final") @ weights["head.linear_projection.weight"].T
    return every[torch.arange(len(ids)), ids.argmax(dim=-1)]


def read_head(
    weights: Weights,
    blocks: list[Weights],
    cls: Float[Tensor, "b d"],
    registers: Float[Tensor, "b r d"],
    patches: Float[Tensor, "b p d"],
) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b p d"]]:
    """CLS and patches, aligned with text."""
    x = torch.cat([cls[:, None], registers, patches], dim=1)
    for block in blocks:
        x = x + block["ls1.gamma"] * attend(norm(x, block, "norm1"), block, "attn", is_causal=False)
        y = norm(x, block, "norm2")
        gate = F.silu(F.linear(y, block["mlp.w1.weight"], block["mlp.w1.bias"]))
        value = F.linear(y, block["mlp.w2.weight"], block["mlp.w2.bias"])
        x = x + block["ls2.gamma"] * F.linear(
            gate * value, block["mlp.w3.weight"], block["mlp.w3.bias"]
        )

    x = norm(x, weights, "ln_final")
    return x[:, 0], x[:, 1 + registers.shape[1] :]


def attend(
    x: Float[Tensor, "b t d"], block: Weights, name: str, is_causal: bool
) -> Float[Tensor, "b t d"]:
    """Multi-head self-attention, one head per 64 channels, with the scores written out."""
    batch, length, dim = x.shape
    qkv = (x @ block[f"{name}.qkv.weight"].T).reshape(batch, length, 3, dim // HEAD_DIM, HEAD_DIM)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each: batch, heads, tokens, channels
    scores = q @ k.transpose(-1, -2) / HEAD_DIM**0.5
    if is_causal:  # -inf above the diagonal: no weight on later tokens
        scores = scores + torch.full((length, length), -torch.inf).triu(1)

    mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, dim)
    return F.linear(mixed, block[f"{name}.proj.weight"], block[f"{name}.proj.bias"])


def norm(x: Float[Tensor, "b t d"], weights: Weights, name: str) -> Float[Tensor, "b t d"]:
    """LayerNorm with the weights of this name."""
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)
