"""The frozen backbone of dino.txt: images to CLS, registers and patches.

This file is part of the exported folder. Vision transformers come from the transformers library;
the small convolutional backbone is written out here. A folder can hold the weights of its backbone,
or name them: then they are downloaded from the hub, by revision, and verified.
"""

import hashlib
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel


def build_backbone(config: dict, num_registers: int) -> nn.Module:
    """The backbone that `backbone_config` of a vision config describes, with empty weights."""
    if config["model_type"] == "efficientnet_lite":
        return EfficientNetLite(config)
    return TransformerBackbone(config, num_registers)


class TransformerBackbone(nn.Module):
    """A vision transformer of the transformers library."""

    def __init__(self, config: dict, num_registers: int) -> None:
        super().__init__()
        self.num_registers = num_registers
        self.model = AutoModel.from_config(AutoConfig.for_model(**config))
        # The library resamples DINOv2's position embeddings in another way than DINOv2's own code.
        if config["model_type"] == "dinov2":
            self.model.embeddings.interpolate_pos_encoding = self._positions

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """CLS (batch, dim), registers and patches (batch, tokens, dim; patches row by row)."""
        tokens = self.model(pixel_values=pixel_values).last_hidden_state
        first_patch = 1 + self.num_registers
        return tokens[:, 0], tokens[:, 1:first_patch], tokens[:, first_patch:]

    def _positions(self, embeddings: Tensor, height: int, width: int) -> Tensor:
        """Position embeddings for the image's grid of patches, resampled as in DINOv2's own code.

        That code passes the factor (size + 0.1) / source to the bicubic resampling. The 0.1 keeps
        rounding from giving one row or column less, and shifts the sampled positions a little.
        """
        positions = self.model.embeddings.position_embeddings
        side = math.isqrt(positions.shape[1])
        rows = height // self.model.config.patch_size
        columns = width // self.model.config.patch_size
        if (rows, columns) == (side, side):
            return positions

        grid = positions[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
        factors = ((rows + 0.1) / side, (columns + 0.1) / side)
        grid = F.interpolate(grid, scale_factor=factors, mode="bicubic").flatten(2).transpose(1, 2)
        return torch.cat((positions[:, :1], grid.to(positions.dtype)), dim=1)


class Convolution(nn.Module):
    """A convolution with bias; at stride 2 it pads one more on the far side, as TensorFlow does."""

    def __init__(self, sizes: list[int], has_relu: bool) -> None:
        super().__init__()
        dim_in, dim_out, kernel, stride, groups = sizes
        self.weight = nn.Parameter(torch.zeros(dim_out, dim_in // groups, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(dim_out))
        self.stride = stride
        self.groups = groups
        self.has_relu = has_relu

    def forward(self, x: Tensor) -> Tensor:
        far = self.weight.shape[-1] // 2
        near = far if self.stride == 1 else far - 1
        x = F.conv2d(
            F.pad(x, [near, far, near, far]),
            self.weight,
            self.bias,
            self.stride,
            groups=self.groups,
        )
        return F.relu6(x) if self.has_relu else x


class InvertedResidual(nn.Module):
    """Expand, depthwise, project; the input is added if it has the shape of the output."""

    def __init__(self, layers: list[list[int]], has_residual: bool) -> None:
        super().__init__()
        last = len(layers) - 1
        self.has_residual = has_residual
        self.layers = nn.Sequential(
            *(Convolution(sizes, has_relu=i < last) for i, sizes in enumerate(layers))
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.has_residual else self.layers(x)


class EfficientNetLite(nn.Module):
    """A small convolutional backbone: CLS is the maximum over patches; there are no registers."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        self.stem = Convolution(config["stem"], has_relu=True)
        blocks = (
            InvertedResidual(block["layers"], block["has_residual"]) for block in config["blocks"]
        )
        self.blocks = nn.Sequential(*blocks)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = self.blocks(self.stem(pixel_values))
        return (
            maps.amax(dim=(2, 3)),
            maps.new_zeros(len(maps), 0, maps.shape[1]),
            maps.flatten(2).transpose(1, 2),
        )


def referenced_weights(reference: dict, config: Any) -> dict[str, Tensor]:
    """Weights of a public backbone, downloaded from the hub.

    ValueError if their sha256 differs from the reference's.
    """
    from huggingface_hub import hf_hub_download

    file = Path(
        hf_hub_download(reference["repository"], reference["file"], revision=reference["revision"])
    )
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()

    if digest != reference["sha256"]:
        raise ValueError(
            f"{file} has sha256 {digest[:12]}, this model was trained on "
            f"{reference['sha256'][:12]}: the backbone must be that one; remove the file from the "
            "hub's cache and load again"
        )

    return AutoModel.from_pretrained(file.parent, config=config).state_dict()
