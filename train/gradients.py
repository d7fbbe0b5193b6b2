"""The gradient of the global loss with respect to the parameters, in one pass or in two.

Two passes serve batches that do not fit in memory (GradCache, arXiv:2101.06983): encode all parts
without a graph, compute the gradient of the loss with respect to the features, then encode each
part again and propagate the gradient of its features. The result is the same as in one pass; the
cost is one more forward pass.
"""

import torch
import torch.distributed as dist
from jaxtyping import Float32
from torch import Tensor
from torch.distributed.tensor import DTensor

from train.batch import Batch
from train.config import LossConfig
from train.loss import global_loss
from train.model import DinoTxt, PairFeatures
from train.shuffle import mix


def backward(
    model: DinoTxt, parts: list[Batch], config: LossConfig, seed: int
) -> tuple[Float32[Tensor, ""], PairFeatures]:
    """Add the gradient of the global loss to the parameters.

    Returns the loss over all ranks and this rank's features, both without a graph.
    """
    # FSDP averages gradients over ranks, but those of the loss must be summed: multiply by the
    # number of ranks.
    world = dist.get_world_size()
    group = dist.group.WORLD if world > 1 else None

    if len(parts) == 1:
        features = _encode(model, parts[0], mix(seed, 0))
        loss = global_loss(*features, config, group)
        (loss * world).backward()
        return loss.detach(), PairFeatures(*(tensor.detach() for tensor in features))

    # First pass: encode all parts without a graph, and compute the gradient of the loss with
    # respect to their features.
    with torch.no_grad():
        encoded = [_encode(model, part, mix(seed, index)) for index, part in enumerate(parts)]

    leaves = PairFeatures(
        torch.cat([part.images for part in encoded]).requires_grad_(),
        torch.cat([part.texts for part in encoded]).requires_grad_(),
        encoded[0].scale.requires_grad_(),
    )
    loss = global_loss(*leaves, config, group)
    loss.backward()
    assert leaves.images.grad is not None
    assert leaves.texts.grad is not None
    assert leaves.scale.grad is not None

    # Second pass: for each part, the inner product of its features with their gradient g. Its
    # gradient with respect to the features is g again, and autograd carries it to the parameters.
    sizes = [len(part.keys) for part in parts]
    d_images = leaves.images.grad.split(sizes)
    d_texts = leaves.texts.grad.split(sizes)

    for index, part in enumerate(parts):
        features = _encode(model, part, mix(seed, index))
        product = (features.images * d_images[index]).sum() + (
            features.texts * d_texts[index]
        ).sum()

        # Every part has the scale in its graph, so each adds its share of the scale's gradient.
        (world * (product + features.scale * leaves.scale.grad / len(parts))).backward()

    return loss.detach(), PairFeatures(*(leaf.detach() for leaf in leaves))


def _encode(model: DinoTxt, part: Batch, seed: int) -> PairFeatures:
    torch.manual_seed(seed)  # drop path: the same rows in both passes, and after a resume
    return model(*part.to(model.logit_scale.log.device).inputs())


def clip_gradients(model: DinoTxt, clip_norm: float | None, replicas: int) -> Float32[Tensor, ""]:
    """Scale the gradient to at most this global norm (None: no scaling); returns the norm before.

    It works on the local shards: for a small model, the same through DTensor takes ten times as
    long.
    """
    gradients = [
        p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad
        for p in model.parameters()
        if p.grad is not None
    ]

    # Squares add up over shards, and an empty shard adds 0. Each replica holds all shards, so the
    # sum over all ranks counts them `replicas` times.
    squares = torch.stack(torch._foreach_norm(gradients)).square().sum()
    dist.all_reduce(squares)
    norm = (squares / replicas).sqrt()

    # The factor stays on the device: no host waits for it, and below the limit it is 1.
    if clip_norm is not None:
        torch._foreach_mul_(gradients, (clip_norm / (norm + 1e-6)).clamp(max=1.0))

    return norm
