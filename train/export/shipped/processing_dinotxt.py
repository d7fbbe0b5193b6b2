"""Images to pixel values in the format of training.

This file is part of the exported folder and needs only numpy, Pillow, torch and transformers. The
largest square in the center of an image is resized to the model's side in one step (bicubic), and
standardized.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor


class DinoTxtImageProcessor(BaseImageProcessor):
    """PIL images, arrays or tensors, one or many, to pixel_values."""

    model_input_names = ["pixel_values"]  # noqa: RUF012  # transformers reads it from the class

    def __init__(
        self,
        size: dict | None = None,
        crop_size: dict | None = None,
        image_mean: tuple[float, ...] = (0.485, 0.456, 0.406),
        image_std: tuple[float, ...] = (0.229, 0.224, 0.225),
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.size = dict(size or {"shortest_edge": 224})
        self.crop_size = dict(crop_size or {"height": 224, "width": 224})
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    def __call__(self, images: Any, *args: Any, **options: Any) -> BatchFeature:  # type: ignore[override]
        return self.preprocess(images, *args, **options)

    def preprocess(
        self, images: Any, return_tensors: str | None = "pt", **options: Any
    ) -> BatchFeature:
        """One image, a list or a batch of them, to pixel_values: batch, 3, height, width."""
        many = (
            images
            if isinstance(images, list | tuple)
            else list(images)
            if _is_batch(images)
            else [images]
        )
        pixels = torch.stack([self._pixels(_as_image(image)) for image in many])

        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def _pixels(self, image: Image.Image) -> torch.Tensor:
        width, height = image.size
        side = min(width, height)
        left = (width - side) / 2
        top = (height - side) / 2
        size = (self.crop_size["width"], self.crop_size["height"])

        # Crop and resize at once: `box` may have fractions of pixels, and nothing is rounded.
        square = image.resize(
            size, Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
        )
        values = torch.from_numpy(np.array(square, dtype=np.float32)) / 255.0
        standardized = (values - torch.tensor(self.image_mean)) / torch.tensor(self.image_std)

        return standardized.permute(2, 0, 1).contiguous()


def _is_batch(images: Any) -> bool:
    return isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4


def _as_image(image: Any) -> Image.Image:
    """An upright RGB image, rotated by its EXIF orientation.

    Arrays and tensors hold bytes, or floats from 0 to 1, with channels first or last.
    """
    if isinstance(image, Image.Image):
        return ImageOps.exif_transpose(image).convert("RGB")

    values = image.cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    if values.ndim == 3 and values.shape[0] in (1, 3) and values.shape[2] not in (1, 3):
        values = values.transpose(1, 2, 0)
    if values.dtype != np.uint8:
        values = (values * 255).round().clip(0, 255).astype(np.uint8)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]

    return Image.fromarray(values).convert("RGB")
