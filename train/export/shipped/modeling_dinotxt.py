"""dino.txt for `AutoModel.from_pretrained(folder, trust_remote_code=True)`.

This file is part of the exported folder. It needs only torch and transformers, and shares no code
with training: it pads captions and writes attention out, and so is an independent implementation of
the architecture (arXiv:2412.16334). Pixels go through the frozen backbone and the vision head.
Captions go through a causal text encoder, whose feature is read at end-of-text.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from .backbone_dinotxt import build_backbone, referenced_weights
from .configuration_dinotxt import DinoTxtConfig, DinoTxtTextConfig, DinoTxtVisionConfig


@dataclass
class DinoTxtOutput(ModelOutput):
    """The result of a forward pass; every embedding has unit norm.

    logits_per_image: images, captions; text_embeds and image_embeds: batch, projection_dim;
    patch_embeds: batch, patches, hidden_size.
    """

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    text_embeds: Tensor | None = None
    image_embeds: Tensor | None = None
    patch_embeds: Tensor | None = None


class Attention(nn.Module):
    """Multi-head self-attention with one product for queries, keys and values."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: batch, tokens, dim; mask: tokens, tokens, added to the scores."""
        batch, length, dim = x.shape
        head_dim = dim // self.heads

        # Each: batch, heads, tokens, head_dim.
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, head_dim).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) * head_dim**-0.5
        if mask is not None:
            scores = scores + mask
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, dim))


class TextMlp(nn.Module):
    """Two linear layers with the exact (erf) GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class TextBlock(GradientCheckpointingLayer):
    """Pre-norm causal transformer block."""

    def __init__(self, config: DinoTxtTextConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, config.num_attention_heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = TextMlp(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), mask)
        return x + self.mlp(self.mlp_norm(x))


class TextEncoder(nn.Module):
    """Causal transformer; the feature of a caption is its projected end-of-text token."""

    def __init__(self, config: DinoTxtTextConfig, projection_dim: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.position_embedding = nn.Parameter(torch.zeros(config.max_position_embeddings, width))
        self.blocks = nn.ModuleList(TextBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, projection_dim, bias=False)

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Features, not normalized: batch, projection_dim.

        input_ids: batch, tokens, padded on the right; lengths: tokens per caption, including
        end-of-text.
        """
        length = input_ids.shape[1]
        x = self.token_embedding(input_ids) + self.position_embedding[:length]

        # A token attends to itself and to those before it. So padding on the right changes nothing.
        place = torch.arange(length, device=x.device)
        hidden = place[None, :] > place[:, None]
        mask = torch.zeros(length, length, dtype=x.dtype, device=x.device).masked_fill(
            hidden, -torch.inf
        )
        for block in self.blocks:
            x = block(x, mask)

        # gather wants an index per channel: the position of end-of-text, repeated.
        ends = (lengths - 1)[:, None, None].expand(-1, 1, x.shape[2])
        return self.projection(self.norm(x.gather(1, ends)[:, 0]))


def find_captions(
    input_ids: Tensor, attention_mask: Tensor | None, config: DinoTxtTextConfig
) -> tuple[Tensor, Tensor]:
    """Token ids moved to the left edge, and tokens per caption, wherever the padding is.

    The attention mask marks the start of a caption. Without a mask, it starts at begin-of-text, or,
    in a vocabulary without one, at the first token that is not end-of-text, which is also the
    padding. It ends with the first end-of-text from its start on. With end-of-text 1, both
    [1, 1, 7, 8, 1] and [7, 8, 1, 1, 1] are the caption [7, 8, 1]. ValueError if a caption has no
    end-of-text.
    """
    length = input_ids.shape[1]
    place = torch.arange(length, device=input_ids.device)
    is_end = input_ids == config.eos_token_id

    if attention_mask is not None:
        is_start = attention_mask.bool()
    elif config.bos_token_id is not None:
        is_start = input_ids == config.bos_token_id
    else:
        is_start = ~is_end

    # argmax gives the first maximum: the first start, or 0 without any, as in an empty caption.
    start = is_start.int().argmax(1)

    is_last = is_end & (place >= start[:, None])

    if not torch.compiler.is_compiling() and not is_last.any(1).all():
        rows = (~is_last.any(1)).nonzero()[:, 0].tolist()
        raise ValueError(
            f"captions {rows[:5]} have no end-of-text token ({config.eos_token_id}): its place "
            "holds their feature; encode them with the tokenizer of this folder, and cut them "
            "with truncation=True"
        )

    lengths = is_last.int().argmax(1) - start + 1

    # Shift each row to the left by its start; past the end, the last token fills up.
    source = (start[:, None] + place).clamp(max=length - 1)
    return input_ids.gather(1, source), lengths


def cut_captions(
    input_ids: Tensor, lengths: Tensor, config: DinoTxtTextConfig
) -> tuple[Tensor, Tensor]:
    """Captions cut to the context, with end-of-text as their last token.

    A warning says how many were cut.
    """
    context = config.max_position_embeddings
    if input_ids.shape[1] <= context:
        return input_ids, lengths

    is_long = lengths > context
    if is_long.any():
        warnings.warn(
            f"{int(is_long.sum())} captions have more than {context} tokens and are cut: this "
            "text encoder takes no more; shorten them",
            stacklevel=3,
        )

    input_ids = input_ids[:, :context].clone()
    input_ids[is_long, -1] = config.eos_token_id
    return input_ids, lengths.clamp(max=context)


class SwiGlu(nn.Module):
    """w3(silu(w1 x) * (w2 x)), a gated MLP."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden)
        self.w2 = nn.Linear(dim, hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(F.silu(self.w1(x)) * self.w2(x))


class VisionBlock(GradientCheckpointingLayer):
    """Pre-norm block with LayerScale on all tokens of an image."""

    def __init__(self, config: DinoTxtVisionConfig) -> None:
        super().__init__()
        dim = config.hidden_size
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, config.num_attention_heads)
        self.attention_scale = nn.Parameter(torch.ones(dim))
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = SwiGlu(dim, config.intermediate_size)
        self.mlp_scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention_scale * self.attention(self.attention_norm(x))
        return x + self.mlp_scale * self.mlp(self.mlp_norm(x))


class VisionHead(nn.Module):
    """Blocks and a LayerNorm on the tokens of the frozen backbone."""

    def __init__(self, config: DinoTxtVisionConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, cls: Tensor, registers: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """CLS and patches, aligned with text.

        cls: batch, dim; registers and patches: batch, tokens, dim.
        """
        x = torch.cat([cls[:, None], registers, patches], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x[:, 0], x[:, 1 + registers.shape[1] :]


class LogitScale(nn.Module):
    """The learned temperature: the logarithm of the factor on the cosines."""

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.full((1,), initial))


class DinoTxtModel(PreTrainedModel):
    """Frozen backbone, vision head, text encoder and temperature, with the methods of CLIPModel."""

    config_class = DinoTxtConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True

    def __init__(self, config: DinoTxtConfig) -> None:
        super().__init__(config)
        vision = config.vision_config
        self.text = TextEncoder(config.text_config, config.projection_dim)
        self.vision = VisionHead(vision)
        self.logit_scale = LogitScale(config.logit_scale_init_value)
        self.backbone = build_backbone(
            vision.backbone_config, vision.backbone_registers
        ).requires_grad_(False)

        # The folder then has no backbone weights: `from_pretrained` loads them afterwards.
        if vision.backbone_reference:
            self._keys_to_ignore_on_load_missing = [r"^backbone\."]
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: all weights come from the folder."""

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        """The model of a folder; a backbone that it only names is downloaded and verified."""
        # With output_loading_info=True, transformers returns the model and a dict.
        loaded = super().from_pretrained(*arguments, **options)
        model: Any = loaded[0] if isinstance(loaded, tuple) else loaded
        reference = model.config.vision_config.backbone_reference
        if reference:
            model.backbone.model.load_state_dict(
                referenced_weights(reference, model.backbone.model.config)
            )
            model.backbone.to(model.dtype)
        return loaded

    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **others: Any
    ) -> Tensor:
        """Text features, not normalized: batch, projection_dim.

        With pooling=concat, the first half is aligned with CLS and the second half with patches.
        """
        ids, lengths = find_captions(input_ids, attention_mask, self.config.text_config)
        return self.text(*cut_captions(ids, lengths, self.config.text_config))

    def get_image_features(self, pixel_values: Tensor, **others: Any) -> Tensor:
        """Image features, not normalized: batch, projection_dim.

        pixel_values: batch, 3, height, width; both sides are multiples of the patch size.
        """
        return self._pool(*self.vision(*self._tokens(pixel_values, is_dense=False)))

    def get_patch_features(self, pixel_values: Tensor, **others: Any) -> Tensor:
        """Features of all patches, row by row, not normalized: batch, patches, hidden_size.

        Compare them with the last hidden_size channels of the text features.
        """
        return self.vision(*self._tokens(pixel_values, is_dense=True))[1]

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_loss: bool | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> DinoTxtOutput | tuple:
        """Unit-norm embeddings, and cosines of every image with every caption as logits.

        The logits are multiplied by the learned temperature; with input_ids or pixel_values alone,
        there are none.
        """
        if input_ids is None and pixel_values is None:
            raise ValueError("neither input_ids nor pixel_values: at least one of them is needed")

        texts = images = patches = logits = None
        if input_ids is not None:
            texts = F.normalize(self.get_text_features(input_ids, attention_mask), dim=-1)
        if pixel_values is not None:
            aligned_cls, aligned_patches = self.vision(*self._tokens(pixel_values, is_dense=False))
            images = F.normalize(self._pool(aligned_cls, aligned_patches), dim=-1)
            patches = F.normalize(aligned_patches, dim=-1)
        if texts is not None and images is not None:
            logits = self.logit_scale.log.exp() * images @ texts.T

        output = DinoTxtOutput(
            loss=self._loss(logits) if return_loss else None,
            logits_per_image=logits,
            logits_per_text=None if logits is None else logits.T,
            text_embeds=texts,
            image_embeds=images,
            patch_embeds=patches,
        )

        return output.to_tuple() if return_dict is False else output

    def _loss(self, logits: Tensor | None) -> Tensor:
        """Mean cross-entropy of both directions; image i belongs to caption i."""
        if logits is None:
            raise ValueError(
                "return_loss without input_ids or without pixel_values: both are needed"
            )
        labels = torch.arange(len(logits), device=logits.device)
        return (
            F.cross_entropy(logits.float(), labels) + F.cross_entropy(logits.T.float(), labels)
        ) / 2

    def _tokens(self, pixel_values: Tensor, is_dense: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The backbone's tokens in the format of the head's training; dense: with all patches."""
        config = self.config.vision_config
        with torch.no_grad():
            cls, registers, patches = self.backbone(pixel_values.to(self.logit_scale.log.dtype))

        registers = registers[:, : config.num_registers]
        if is_dense or config.content == "tokens":
            return cls, registers, patches

        # Training averaged the patches into a grid: patches become a map again, and the map a grid.
        height = pixel_values.shape[2] // config.patch_size
        maps = patches.transpose(1, 2).unflatten(2, (height, -1))
        return (
            cls,
            registers,
            F.adaptive_avg_pool2d(maps, tuple(config.grid)).flatten(2).transpose(1, 2),
        )

    def _pool(self, cls: Tensor, patches: Tensor) -> Tensor:
        mean = patches.mean(1)
        return {"cls": cls, "mean": mean, "concat": torch.cat([cls, mean], dim=-1)}[
            self.config.vision_config.pooling
        ]
