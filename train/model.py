"""dino.txt: a causal text encoder aligned with a small head on frozen DINOv2 features.

"DINOv2 Meets Text" (arXiv:2412.16334), with the published architecture and initialization; the
sizes come from the config. Everything here is single-device. The residual stream, norms and
features are float32; only matrix products run in the dtype of their weights.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor, nn

from train.attention import Packed, PackedAttention, pack, packed_attention
from train.config import ModelConfig, TextConfig, VisionConfig, swiglu_hidden

HEAD_DIM = 64  # channels per attention head, as in every ViT of DINOv2
MAX_LOGIT_SCALE = math.log(100)  # CLIP's limit (arXiv:2103.00020, section 2.5)


class LayerNorm(nn.LayerNorm):
    """LayerNorm computed in float32, returned in the dtype of its weight."""

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        return self.float32(x).to(self.weight.dtype)

    def float32(self, x: Float[Tensor, "*b d"]) -> Float32[Tensor, "*b d"]:
        """The float32 result itself."""
        return F.layer_norm(
            x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps
        )


class Attention(nn.Module):
    """Multi-head self-attention with one product for queries, keys and values (no bias)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.packed: PackedAttention = packed_attention
        """Attention over packed captions."""
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Every token of an image attends to all tokens of that image."""
        q, k, v = self._qkv(x).transpose(1, 3).unbind(2)  # b heads t d/heads
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.proj(attended.transpose(1, 2).flatten(-2))

    def attend(self, x: Float[Tensor, "n d"], layout: Packed) -> Float[Tensor, "n d"]:
        """Every token of a caption attends to itself and to those before it.

        The result is not yet projected: the last block projects only the tokens that it needs.
        """
        return self.packed(self._qkv(x), layout).flatten(-2)

    def _qkv(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b 3 h w"]:
        return self.qkv(x).unflatten(-1, (3, self.heads, -1))


class TextMlp(nn.Module):
    """Two linear layers with the exact (erf) GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        return self.fc2(F.gelu(self.fc1(x)))


class TextBlock(nn.Module):
    """Pre-norm causal transformer block on packed tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp_norm = LayerNorm(width)
        self.mlp = TextMlp(width)

    def forward(
        self, x: Float[Tensor, "n d"], layout: Packed, is_last: bool = False
    ) -> Float[Tensor, "m d"]:
        """All tokens, packed; for the last block, end-of-text alone, in the caller's order."""
        attended = self.attention.attend(self.attention_norm(x), layout)
        if is_last:
            # All operations after attention treat each token by itself, and only end-of-text is
            # read after the last block: the other tokens can go now.
            x = x[layout.ends]
            attended = attended[layout.ends]

        x = x + self.attention.proj(attended)
        return x + self.mlp(self.mlp_norm(x))


class TextEncoder(nn.Module):
    """Packed captions to one feature each: the end-of-text token through a linear projection."""

    def __init__(self, config: TextConfig, vocab_size: int, feature_dim: int) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(vocab_size, config.width)
        self.position_embedding = nn.Parameter(torch.empty(config.context, config.width))
        self.blocks = nn.ModuleList(
            TextBlock(config.width, config.heads) for _ in range(config.layers)
        )
        self.norm = LayerNorm(config.width)
        self.projection = nn.Linear(config.width, feature_dim, bias=False)
        self.init_weights()

    def init_weights(self) -> None:
        """The published initialization (CLIP's)."""
        width = self.config.width
        layers = self.config.layers
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding, std=0.01)

        for block in self.blocks:
            assert isinstance(block, TextBlock)
            attention = block.attention
            mlp = block.mlp
            nn.init.normal_(attention.qkv.weight, std=width**-0.5)

            # The 2 * layers branches add up in the residual stream: with these factors its variance
            # does not grow with depth.
            nn.init.normal_(attention.proj.weight, std=(2 * layers * width) ** -0.5)
            nn.init.normal_(mlp.fc1.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(mlp.fc2.weight, std=(2 * layers * width) ** -0.5)
            for layer in (attention.proj, mlp.fc1, mlp.fc2):
                nn.init.zeros_(layer.bias)

        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def forward(self, captions: Packed) -> Float32[Tensor, "b f"]:
        # The table is cast to float32, because the backward pass adds up the gradients of a token
        # in the format of its row. A token that occurs 1,000 times with a gradient of 1 each has a
        # sum of 1,000; in bfloat16, with 8 bits of precision, 256 + 1 is 256, and the sum stops.
        words = F.embedding(captions.tokens, self.token_embedding.weight.float())
        x = words + F.embedding(captions.positions, self.position_embedding.float())
        for index, block in enumerate(self.blocks):
            x = block(x, captions, index == len(self.blocks) - 1)
        return self.projection(self.norm(x)).float()


class SwiGlu(nn.Module):
    """w3(silu(w1 x) * (w2 x)), the gated MLP of arXiv:2002.05202."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = swiglu_hidden(dim)
        self.w1 = nn.Linear(dim, hidden)
        self.w2 = nn.Linear(dim, hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        return self.w3(F.silu(self.w1(x)) * self.w2(x))


class VisionBlock(nn.Module):
    """Pre-norm block with LayerScale and drop path on all tokens of an image."""

    def __init__(self, dim: int, config: VisionConfig) -> None:
        super().__init__()
        self.drop_path = config.drop_path
        self.attention_norm = LayerNorm(dim)
        self.attention = Attention(dim, num_heads(dim))
        self.attention_scale = nn.Parameter(torch.full((dim,), config.layer_scale))
        self.mlp_norm = LayerNorm(dim)
        self.mlp = SwiGlu(dim)
        self.mlp_scale = nn.Parameter(torch.full((dim,), config.layer_scale))

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        x = self._add(x, self.attention_norm, self.attention, self.attention_scale)
        return self._add(x, self.mlp_norm, self.mlp, self.mlp_scale)

    def _add(
        self,
        x: Float[Tensor, "b t d"],
        norm: nn.Module,
        branch: nn.Module,
        scale: Float[Tensor, " d"],
    ) -> Float[Tensor, "b t d"]:
        """x + scale * branch(norm(x)), with drop path in training.

        Drop path (DINOv2's batched form) computes the branch for a random share of the images only,
        and scales it up so that its mean over the batch is the same.
        """
        if not self.training or not self.drop_path:
            return x + branch(norm(x)) * scale.float()

        num_rows = max(1, round(len(x) * (1 - self.drop_path)))
        rows = torch.randperm(len(x), device=x.device)[:num_rows]

        # Images that are not among the rows pass through unchanged.
        return x.index_add(0, rows, branch(norm(x[rows])) * scale.float(), alpha=len(x) / num_rows)


def num_heads(dim: int) -> int:
    """Heads of a vision block: one per 64 channels, or the next number that divides `dim`."""
    return next(heads for heads in range(math.ceil(dim / HEAD_DIM), dim + 1) if dim % heads == 0)


class VisionHead(nn.Module):
    """Blocks and a LayerNorm on the tokens of the frozen backbone; blocks may be 0."""

    def __init__(self, config: VisionConfig, dim: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(VisionBlock(dim, config) for _ in range(config.blocks))
        self.norm = LayerNorm(dim)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self,
        cls: Float[Tensor, "b d"],
        registers: Float[Tensor, "b r d"],
        patches: Float[Tensor, "b p d"],
    ) -> tuple[Float32[Tensor, "b d"], Float32[Tensor, "b p d"]]:
        """CLS and patches, aligned with text; the registers take part and are dropped."""
        # "b 1+r+p d". torch.cat promotes to the widest type: one float32 part makes all float32.
        tokens = torch.cat([cls[:, None].float(), registers, patches], dim=1)
        for block in self.blocks:
            tokens = block(tokens)

        # One split, not two slices: the backward pass of each slice would fill a tensor of the size
        # of all tokens with zeros.
        sizes = (1, registers.shape[1], patches.shape[1])
        aligned_cls, _, aligned_patches = self.norm.float32(tokens).split(sizes, dim=1)
        return aligned_cls[:, 0], aligned_patches


class LogitScale(nn.Module):
    """The learned temperature.

    It is a module of its own, so that it stays float32 when the rest is sharded in bfloat16.
    """

    def __init__(self) -> None:
        super().__init__()
        # CLIP's initial temperature, 0.07. One dimension, because FSDP shards no scalar.
        self.log = nn.Parameter(torch.full((1,), math.log(1 / 0.07)))

    def forward(self) -> Float32[Tensor, ""]:
        return self.log.exp().sum()  # a scalar; FSDP's hooks do not work on a view such as [0]

    @torch.no_grad()
    def clamp(self) -> None:
        """Limit the scale to [1, 100]; call after each optimizer step."""
        self.log.clamp_(0, MAX_LOGIT_SCALE)


class PairFeatures(NamedTuple):
    """The inputs of the loss: unit-norm features, row i a pair, and the scale of the logits."""

    images: Float32[Tensor, "b f"]
    texts: Float32[Tensor, "b f"]
    scale: Float32[Tensor, ""]


class DinoTxt(nn.Module):
    """Text encoder, vision head and logit scale."""

    def __init__(self, config: ModelConfig, vocab_size: int, image_dim: int) -> None:
        super().__init__()
        self.config = config
        self.image_dim = image_dim
        self.text = TextEncoder(config.text, vocab_size, config.feature_dim(image_dim))
        self.vision = VisionHead(config.vision, image_dim)
        self.logit_scale = LogitScale()

    def encode_tokens(self, captions: Packed | Sequence[Sequence[int]]) -> Float32[Tensor, "b f"]:
        """Text features before normalization, in the caller's order.

        With pooling=concat, the first half is aligned with CLS and the second half with patches.
        """
        packed = captions if isinstance(captions, Packed) else pack(captions)
        return self.text(packed.to(self.text.position_embedding.device))

    def encode_image_features(
        self,
        cls: Float[Tensor, "b d"],
        registers: Float[Tensor, "b r d"],
        patches: Float[Tensor, "b p d"],
    ) -> Float32[Tensor, "b f"]:
        """Image features of backbone tokens, before normalization."""
        aligned_cls, aligned_patches = self.vision(cls, registers, patches)

        pooling = self.config.vision.pooling
        if pooling == "cls":
            return aligned_cls

        # Concatenation has the order of the text feature's halves: CLS, then patches.
        mean = aligned_patches.mean(1)
        return mean if pooling == "mean" else torch.cat([aligned_cls, mean], dim=-1)

    def forward(
        self,
        captions: Packed,
        cls: Float[Tensor, "b d"],
        registers: Float[Tensor, "b r d"],
        patches: Float[Tensor, "b p d"],
    ) -> PairFeatures:
        """Unit-norm features of a batch of pairs."""
        images = self.encode_image_features(cls, registers, patches)
        texts = self.encode_tokens(captions)
        return PairFeatures(
            F.normalize(images, dim=-1), F.normalize(texts, dim=-1), self.logit_scale()
        )
