"""The gradient of the global loss on a model's parameters, in one pass or, for batches that do not fit, in two.

Two passes (GradCache, arXiv:2101.06983): encode all parts without a graph, take the loss's gradient with respect to
the features, then encode each part again and send its features' gradient through. The result is that of one pass; the
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
from train.model import DinoTxt, Features
from train.shuffle import mix


def backward(model: DinoTxt, parts: list[Batch], config: LossConfig, seed: int) -> tuple[Float32[Tensor, ""], Features]:
    """Add the gradient of the global loss to the parameters; the loss, and this rank's features without a graph."""
    world = dist.get_world_size()  # FSDP averages gradients over ranks; ours are to be summed
    group = dist.group.WORLD if world > 1 else None
    if len(parts) == 1:
        features = _encode(model, parts[0], mix(seed, 0))
        loss = global_loss(*features, config, group)
        (loss * world).backward()
        return loss.detach(), Features(*(tensor.detach() for tensor in features))
    with torch.no_grad():
        encoded = [_encode(model, part, mix(seed, index)) for index, part in enumerate(parts)]
    images, texts = (torch.cat([getattr(part, name) for part in encoded]) for name in ("images", "texts"))
    leaves = Features(*(tensor.requires_grad_() for tensor in (images, texts, encoded[0].scale)))
    loss = global_loss(*leaves, config, group)
    loss.backward()
    sizes = [len(part.keys) for part in parts]
    assert leaves.scale.grad is not None
    pieces = zip(leaves.images.grad.split(sizes), leaves.texts.grad.split(sizes), strict=True)  # type: ignore[union-attr]
    for index, (part, (d_images, d_texts)) in enumerate(zip(parts, pieces, strict=True)):
        features = _encode(model, part, mix(seed, index))
        product = (features.images * d_images).sum() + (features.texts * d_texts).sum()
        (world * (product + features.scale * leaves.scale.grad / len(parts))).backward()
    return loss.detach(), Features(*(leaf.detach() for leaf in leaves))


def _encode(model: DinoTxt, part: Batch, seed: int) -> Features:
    torch.manual_seed(seed)  # drop path: the same rows in both passes, and after a resume
    return model(*part.to(model.logit_scale.log.device).inputs())


def clip_gradients(model: DinoTxt, clip_norm: float, replicas: int) -> Float32[Tensor, ""]:
    """Scale the gradient to at most this global norm (0: leave it); its norm before.

    On the local shards: through DTensor the same takes ten times as long for a small model.
    """
    gradients = [
        p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad for p in model.parameters() if p.grad is not None
    ]
    squares = torch.stack(torch._foreach_norm(gradients)).square().sum()  # an empty shard has norm 0
    dist.all_reduce(squares)
    norm = (squares / replicas).sqrt()
    if clip_norm:
        torch._foreach_mul_(gradients, (clip_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm
