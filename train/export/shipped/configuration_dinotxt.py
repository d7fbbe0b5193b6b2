"""Sizes of dino.txt under the names that transformers uses.

This file is part of the exported folder.
"""

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig


class DinoTxtTextConfig(PretrainedConfig):
    """Sizes of the text encoder, and the ids of its special tokens."""

    model_type = "dinotxt_text"

    def __init__(
        self,
        vocab_size: int = 4096,
        hidden_size: int = 384,
        num_hidden_layers: int = 6,
        num_attention_heads: int = 6,
        max_position_embeddings: int = 77,
        eos_token_id: int = 1,
        bos_token_id: int | None = None,
        **others: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.max_position_embeddings = max_position_embeddings
        super().__init__(**others)
        self.eos_token_id = eos_token_id
        self.bos_token_id = bos_token_id


class DinoTxtVisionConfig(PretrainedConfig):
    """The frozen backbone, the format of its tokens, and the sizes of the head on them."""

    model_type = "dinotxt_vision"

    def __init__(
        self,
        hidden_size: int = 384,
        num_hidden_layers: int = 2,
        num_attention_heads: int = 6,
        intermediate_size: int = 1024,
        pooling: str = "concat",
        content: str = "tokens",
        num_registers: int = 4,
        backbone_registers: int = 4,
        grid: Sequence[int] = (16, 16),
        image_size: int = 224,
        patch_size: int = 14,
        backbone_config: dict | None = None,
        backbone_reference: dict | None = None,
        **others: Any,
    ) -> None:
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.pooling = pooling
        self.content = content
        self.num_registers = num_registers
        self.backbone_registers = backbone_registers
        self.grid = list(grid)
        self.image_size = image_size
        self.patch_size = patch_size
        self.backbone_config = backbone_config or {}
        self.backbone_reference = backbone_reference
        super().__init__(**others)


class DinoTxtConfig(PretrainedConfig):
    """Text and vision configs, and the fields that CLIP's config has, under the same names."""

    model_type = "dinotxt"
    sub_configs = {"text_config": DinoTxtTextConfig, "vision_config": DinoTxtVisionConfig}  # noqa: RUF012

    def __init__(
        self,
        text_config: Any = None,
        vision_config: Any = None,
        projection_dim: int = 768,
        logit_scale_init_value: float = 2.6592,
        **others: Any,
    ) -> None:
        is_text = isinstance(text_config, DinoTxtTextConfig)
        is_vision = isinstance(vision_config, DinoTxtVisionConfig)
        self.text_config = text_config if is_text else DinoTxtTextConfig(**(text_config or {}))
        self.vision_config = (
            vision_config if is_vision else DinoTxtVisionConfig(**(vision_config or {}))
        )
        self.projection_dim = projection_dim
        self.logit_scale_init_value = logit_scale_init_value
        super().__init__(**others)
