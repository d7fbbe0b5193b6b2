"""dino.txt for `AutoModel.from_pretrained(folder, trust_remote_code=True)`: this file travels in the exported folder.

It needs torch and transformers alone and shares no code with training: padded captions and plain products, so that it
is also an independent reading of the architecture (arXiv:2412.16334). Images come as the tokens of the frozen backbone
that `config.backbone` names. Captions are padded on the right; what follows end-of-text changes nothing.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput


class DinoTxtConfig(PretrainedConfig):
    """Sizes of the text encoder and of the head on the backbone's tokens."""

    model_type = "dinotxt"

    def __init__(
        self,
        vocab_size: int = 4096,
        text_width: int = 384,
        text_layers: int = 6,
        text_heads: int = 6,
        context: int = 77,
        image_dim: int = 384,
        vision_blocks: int = 2,
        vision_heads: int = 6,
        vision_hidden: int = 1024,
        pooling: str = "concat",
        backbone: str = "",
        **others: Any,
    ) -> None:
        self.vocab_size, self.context = vocab_size, context
        self.text_width, self.text_layers, self.text_heads = text_width, text_layers, text_heads
        self.image_dim, self.pooling, self.backbone = image_dim, pooling, backbone
        self.vision_blocks, self.vision_heads, self.vision_hidden = vision_blocks, vision_heads, vision_hidden
        super().__init__(**others)


@dataclass
class DinoTxtOutput(ModelOutput):
    """What a forward pass gives; every embedding has unit norm."""

    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    text_embeds: Tensor | None = None
    image_embeds: Tensor | None = None
    patch_embeds: Tensor | None = None


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: batch, tokens, dim; mask: tokens, tokens, added to the scores."""
        batch, length, dim = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) * (dim // self.heads) ** -0.5
        if mask is not None:
            scores = scores + mask
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, dim))


class TextMlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class TextBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.mlp_norm, self.mlp = nn.LayerNorm(width), TextMlp(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), mask)
        return x + self.mlp(self.mlp_norm(x))


class TextEncoder(nn.Module):
    """Causal transformer; a caption's feature is its last token, projected."""

    def __init__(self, config: DinoTxtConfig) -> None:
        super().__init__()
        width = config.text_width
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.position_embedding = nn.Parameter(torch.zeros(config.context, width))
        self.blocks = nn.ModuleList(TextBlock(width, config.text_heads) for _ in range(config.text_layers))
        self.norm = nn.LayerNorm(width)
        features = config.image_dim * (2 if config.pooling == "concat" else 1)
        self.projection = nn.Linear(width, features, bias=False)

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """input_ids: batch, tokens, padded on the right; lengths: tokens of each caption, end-of-text included."""
        length = input_ids.shape[1]
        x = self.token_embedding(input_ids) + self.position_embedding[:length]
        place = torch.arange(length, device=x.device)
        hidden = place[None, :] > place[:, None]
        mask = torch.zeros(length, length, dtype=x.dtype, device=x.device).masked_fill(hidden, -torch.inf)
        for block in self.blocks:
            x = block(x, mask)
        ends = (lengths - 1)[:, None, None].expand(-1, 1, x.shape[2])
        return self.projection(self.norm(x.gather(1, ends)[:, 0]))


class SwiGlu(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(dim, hidden), nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(F.silu(self.w1(x)) * self.w2(x))


class VisionBlock(nn.Module):
    def __init__(self, config: DinoTxtConfig) -> None:
        super().__init__()
        dim = config.image_dim
        self.attention_norm, self.attention = nn.LayerNorm(dim), Attention(dim, config.vision_heads)
        self.mlp_norm, self.mlp = nn.LayerNorm(dim), SwiGlu(dim, config.vision_hidden)
        self.attention_scale, self.mlp_scale = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention_scale * self.attention(self.attention_norm(x))
        return x + self.mlp_scale * self.mlp(self.mlp_norm(x))


class VisionHead(nn.Module):
    """Blocks and a LayerNorm on all tokens of the frozen backbone."""

    def __init__(self, config: DinoTxtConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.vision_blocks))
        self.norm = nn.LayerNorm(config.image_dim)

    def forward(self, cls: Tensor, registers: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """cls: batch, dim; registers, patches: batch, tokens, dim. CLS and patches, aligned with text."""
        x = torch.cat([cls[:, None], registers, patches], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x[:, 0], x[:, 1 + registers.shape[1] :]


class LogitScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.zeros(1))


class DinoTxtModel(PreTrainedModel):
    """Text encoder, vision head and temperature, with CLIP's method names."""

    config_class = DinoTxtConfig
    main_input_name = "input_ids"

    def __init__(self, config: DinoTxtConfig) -> None:
        super().__init__(config)
        self.text, self.vision, self.logit_scale = TextEncoder(config), VisionHead(config), LogitScale()
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Weights come from the folder: there is nothing to initialise."""

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """batch, features; not normalised. pooling=concat: the first half aligns with CLS, the last with patches."""
        if attention_mask is None:
            lengths = torch.full((len(input_ids),), input_ids.shape[1], device=input_ids.device)
        else:
            lengths = attention_mask.sum(1)
        return self.text(input_ids, lengths)

    def get_image_features(self, cls: Tensor, registers: Tensor, patches: Tensor) -> Tensor:
        """batch, features; not normalised."""
        return self._pool(*self.vision(cls, registers, patches))

    def get_patch_features(self, cls: Tensor, registers: Tensor, patches: Tensor) -> Tensor:
        """batch, patches, dim; not normalised; compare with the last `dim` of the text features."""
        return self.vision(cls, registers, patches)[1]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        cls: Tensor,
        registers: Tensor,
        patches: Tensor,
    ) -> DinoTxtOutput:
        """Cosines of every image with every caption, times the learned temperature."""
        aligned = self.vision(cls, registers, patches)
        images = F.normalize(self._pool(*aligned), dim=-1)
        texts = F.normalize(self.get_text_features(input_ids, attention_mask), dim=-1)
        logits = self.logit_scale.log.exp() * images @ texts.T
        return DinoTxtOutput(logits, logits.T, texts, images, F.normalize(aligned[1], dim=-1))

    def _pool(self, cls: Tensor, patches: Tensor) -> Tensor:
        mean = patches.mean(1)
        return {"cls": cls, "mean": mean, "concat": torch.cat([cls, mean], dim=-1)}[self.config.pooling]
