"""dino.txt: a causal text encoder and a small head on frozen DINOv2 features, aligned with each
other.

"DINOv2 Meets Text" (arXiv:2412.16334), with the published architecture and initialization, sized by
config. Everything here is single-device. The residual stream, norms and features are float32; only
matrix products run in the dtype of their weights.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor, nn

from train.attention import Packed, pack, packed_attention
from train.config import AttentionChoice, ModelConfig, TextConfig, VisionConfig, swiglu_hidden

HEAD_DIM = 64
MAX_LOGIT_SCALE = math.log(100)


class LayerNorm(nn.LayerNorm):
    """LayerNorm computed in float32, returned in the dtype of its weight."""

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        return self.float32(x).to(self.weight.dtype)

    def float32(self, x: Float[Tensor, "*b d"]) -> Float32[Tensor, "*b d"]:
        """As it was computed."""
        return F.layer_norm(
            x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps
        )


class Attention(nn.Module):
    """Multi-head self-attention with one product for queries, keys and values (no bias)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.kernel: AttentionChoice = "auto"
        """Of attention over packed captions."""
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Every token of an image attends to all of them."""
        q, k, v = self._qkv(x).transpose(1, 3).unbind(2)  # b heads t d/heads
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.proj(attended.transpose(1, 2).flatten(-2))

    def attend(self, x: Float[Tensor, "n d"], layout: Packed) -> Float[Tensor, "n d"]:
        """Every token of a caption attends to those before it and to itself; before the output
        projection.
        """
        return packed_attention(self._qkv(x), layout, self.kernel).flatten(-2)

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
    """Pre-norm causal transformer block on packed tokens; the last of a stack computes only the
    ends of captions.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp_norm = LayerNorm(width)
        self.mlp = TextMlp(width)

    def forward(
        self, x: Float[Tensor, "n d"], layout: Packed, is_last: bool = False
    ) -> Float[Tensor, "m d"]:
        """All tokens; of the last block the end-of-text tokens, in the caller's order of
        captions.
        """
        attended = self.attention.attend(self.attention_norm(x), layout)
        if is_last:
            # What follows attention treats each token alone, and nobody reads the others after the
            # last block.
            x = x[layout.ends]
            attended = attended[layout.ends]

        x = x + self.attention.proj(attended)
        return x + self.mlp(self.mlp_norm(x))


class TextEncoder(nn.Module):
    """Packed captions to one feature each: the end-of-text token, then a linear projection without
    bias.
    """

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
            nn.init.normal_(attention.proj.weight, std=(2 * layers * width) ** -0.5)
            nn.init.normal_(mlp.fc1.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(mlp.fc2.weight, std=(2 * layers * width) ** -0.5)
            for layer in (attention.proj, mlp.fc1, mlp.fc2):
                nn.init.zeros_(layer.bias)

        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def forward(self, captions: Packed) -> Float32[Tensor, "b f"]:
        # In float32, because the gradients of a token that occurs often are added up in the format
        # of its row.
        words = F.embedding(captions.tokens, self.token_embedding.weight.float())
        x = words + F.embedding(captions.positions, self.position_embedding.float())
        for index, block in enumerate(self.blocks):
            x = block(x, captions, index == len(self.blocks) - 1)
        return self.projection(self.norm(x)).float()


class SwiGlu(nn.Module):
    """w3(silu(w1 x) * (w2 x)), hidden size two thirds of four times the width, rounded up to a
    multiple of 64.
    """

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
        """x plus its branch; in training the branch is computed for a random share of the images,
        and scaled up.
        """
        if not self.training or not self.drop_path:
            return x + branch(norm(x)) * scale.float()

        num_rows = max(1, round(len(x) * (1 - self.drop_path)))
        rows = torch.randperm(len(x), device=x.device)[:num_rows]
        return x.index_add(0, rows, branch(norm(x[rows])) * scale.float(), alpha=len(x) / num_rows)


def num_heads(dim: int) -> int:
    """Heads of a vision block: one per 64 channels, or the next number that divides the
    channels.
    """
    return next(heads for heads in range(math.ceil(dim / HEAD_DIM), dim + 1) if dim % heads == 0)


class VisionHead(nn.Module):
    """Blocks and a LayerNorm on the frozen backbone's tokens; without blocks, the LayerNorm
    alone.
    """

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
        tokens = torch.cat(
            [cls[:, None].float(), registers, patches], dim=1
        )  # b 1+r+p d, float32 as its first part
        for block in self.blocks:
            tokens = block(tokens)

        tokens = self.norm.float32(tokens)
        return tokens[:, 0], tokens[:, 1 + registers.shape[1] :]


class LogitScale(nn.Module):
    """The learned temperature; a module of its own, so that it stays float32 when the rest is
    sharded in bfloat16.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.full((1,), math.log(1 / 0.07)))

    def forward(self) -> Float32[Tensor, ""]:
        return self.log.exp().sum()  # a scalar; a view would upset the hooks of FSDP

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep the scale within [1, 100]; call after each step."""
        self.log.clamp_(0, MAX_LOGIT_SCALE)


class PairFeatures(NamedTuple):
    """What the loss needs of a batch: unit-norm features and the scale of the logits."""

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
        """Text features before normalization; with pooling=concat, CLS is aligned with the first
        half, patches with the last.
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
