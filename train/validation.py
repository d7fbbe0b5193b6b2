"""Loss and retrieval on held-out pairs, the same for any number of ranks."""

import math
from collections.abc import Mapping

import torch
import torch.distributed as dist
from jaxtyping import Float32
from torch import Tensor

from train.batch import split
from train.config import HeldOutMetric, TrainConfig
from train.data import Pairs
from train.live import EncodeImages, identity
from train.loss import global_loss
from train.model import DinoTxt, PairFeatures

ACCURACY_ROWS = 512  # bounds the logits of `batch_accuracy` to 1 MB, whatever the batch


def score(numbers: Mapping[str, float], metric: HeldOutMetric) -> float:
    """How good a validation is, higher is better; minus infinity without a value of the metric."""
    if metric not in numbers:
        return -math.inf
    return -numbers[metric] if metric == "val_loss" else numbers[metric]


@torch.no_grad()
def validate(
    model: DinoTxt,
    pairs: Pairs,
    config: TrainConfig,
    device: torch.device,
    encode_images: EncodeImages = identity,
) -> dict[str, float]:
    """Validation loss, and recall at 1 in both directions among the held-out pairs.

    Empty if fewer than two pairs are held out. All ranks call it and get the same numbers.
    """
    num_rows = min(config.val_rows, len(pairs.val_places))
    if num_rows < 2:
        return {}

    share = -(-num_rows // dist.get_world_size())  # rounded up: ranks gather equal sizes
    start = dist.get_rank() * share
    parts = split(pairs.val_batch(start, start + share), config.micro_batch)
    model.eval()
    encoded = [model(*encode_images(part).to(device).inputs()) for part in parts]
    model.train()

    # The shares of the last ranks may reach past the end, where the last pair is repeated: cut
    # there. After that every rank holds all features, so the loss needs no group.
    images = _gather(torch.cat([part.images for part in encoded]))[:num_rows]
    texts = _gather(torch.cat([part.texts for part in encoded]))[:num_rows]
    loss = global_loss(images, texts, encoded[0].scale, config.loss)

    return {"val_loss": float(loss), **recall_at_1(images, texts), "val_rows": float(num_rows)}


def _gather(local: Float32[Tensor, "b d"]) -> Float32[Tensor, "n d"]:
    parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, local.contiguous())
    return torch.cat(parts)


def recall_at_1(images: Float32[Tensor, "n d"], texts: Float32[Tensor, "n d"]) -> dict[str, float]:
    """Share of images whose own text is nearest, and of texts whose own image is nearest."""
    logits = images @ texts.T
    own = torch.arange(len(logits), device=logits.device)
    return {
        "val_image_to_text_r1": float((logits.argmax(1) == own).float().mean()),
        "val_text_to_image_r1": float((logits.argmax(0) == own).float().mean()),
    }


def batch_accuracy(features: PairFeatures) -> float:
    """Share of this rank's first 512 images whose own text is the nearest of these pairs' texts."""
    images = features.images[:ACCURACY_ROWS]
    texts = features.texts[:ACCURACY_ROWS]
    return recall_at_1(images, texts)["val_image_to_text_r1"]
