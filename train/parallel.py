"""Compilation, activation checkpointing, sharding: in this order, and nowhere else.

FSDP2 shards each block by itself; on one rank the model is one piece. The logit scale is sharded by
itself in float32, because bfloat16 would round it. FSDP averages gradients over ranks, so a loss
whose gradients must be summed is multiplied by the number of ranks.
"""

import torch
import torch.distributed as dist
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from cluster.machine import settled_precision
from train.attention import Case, choose_attention, installed_kernels
from train.config import ParallelConfig
from train.model import Attention, DinoTxt

CHECKPOINT_PREFIX = "_checkpoint_wrapped_module."


def parallelize(model: DinoTxt, config: ParallelConfig, device: torch.device) -> DinoTxt:
    """Change the model in place to run on all ranks of the default process group; returns it."""
    dtype = getattr(torch, settled_precision(config.dtype))
    text = model.text.config
    case = Case(device.type, text.width // text.heads, dtype == torch.float32, installed_kernels())
    attention = choose_attention(config.attention, case)
    for module in model.text.modules():
        if isinstance(module, Attention):
            module.packed = attention

    for stack in (model.text.blocks, model.vision.blocks):
        for index, block in enumerate(stack):
            if config.compile:
                block.compile()  # in place: the names of parameters stay

            # Around the compiled block, so that what is recomputed is compiled, too.
            if config.recompute_blocks:
                stack[index] = checkpoint_wrapper(block)

    mesh = _mesh(config.replicas, device)

    # Parameters are gathered in the dtype of products, and gradients are reduced in float32. Inputs
    # are not cast: the residual stream stays float32.
    policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )

    # On one rank there is nothing to shard, and a hook on every block would only cost time.
    blocks = (*model.text.blocks, *model.vision.blocks) if mesh.size() > 1 else ()

    for block in blocks:
        fully_shard(
            block, mesh=mesh, mp_policy=policy, reshard_after_forward=config.reshard_after_forward
        )

    # Inner modules first: a module's group holds the parameters that no inner group has. The
    # backward pass starts with the outer group, so it stays gathered after the forward pass.
    fully_shard(model.logit_scale, mesh=mesh, mp_policy=MixedPrecisionPolicy())
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    return model


def _mesh(replicas: int, device: torch.device) -> DeviceMesh:
    """All ranks in one row (FSDP), or one row per replica (HSDP)."""
    world = dist.get_world_size()
    if replicas == 1:
        return init_device_mesh(device.type, (world,))
    return init_device_mesh(
        device.type, (replicas, world // replicas), mesh_dim_names=("replicate", "shard")
    )


def plain_name(name: str) -> str:
    """A parameter's name in the single-device model, without the prefixes of wrappers."""
    return name.replace(CHECKPOINT_PREFIX, "").replace("_orig_mod.", "")
