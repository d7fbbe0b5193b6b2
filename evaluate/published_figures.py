"""Published figures beside ours, in percent: ViT-L models at 576 tokens, whose protocols are the
defaults here.

Source: "DINOv2 Meets Text" (arXiv:2412.16334) as evaluated again in the report of DINOv3
(arXiv:2508.10104, table 16).
"""

from typing import NamedTuple

MODELS = ("dino.txt ViT-L/14", "dino.txt on DINOv3 ViT-L/16", "CLIP ViT-L/14", "SigLIP 2 ViT-L/16")
FIGURES: tuple[tuple[str, str, tuple[float, ...]], ...] = (
    ("imagenet", "top1", (81.6, 82.3, 76.6, 83.1)),
    ("imagenet-a", "top1", (83.2, 85.4, 77.5, 84.3)),
    ("imagenet-r", "top1", (88.8, 93.0, 89.0, 95.7)),
    ("objectnet-113", "top1", (74.5, 80.5, 72.3, 84.4)),
    ("coco", "image_to_text_r1", (62.5, 63.7, 57.9, 71.4)),
    ("coco", "text_to_image_r1", (45.0, 45.6, 37.1, 55.3)),
    ("ade20k", "miou", (19.2, 24.7, 6.0, 10.8)),
    ("cityscapes", "miou", (27.4, 36.9, 11.5, 16.3)),
)
"""(known set, metric, the figure of each of MODELS)."""


class Published(NamedTuple):
    """One published figure."""

    model: str
    metric: str
    value: float
    """Percent."""


def published_rows(kind: str) -> list[Published]:
    """The published figures of a known set, by its name in results."""
    return [
        Published(model, metric, value)
        for name, metric, values in FIGURES
        if name == kind
        for model, value in zip(MODELS, values, strict=True)
    ]
