"""Packed variable-length causal attention: captions laid end to end, no padding anywhere.

Captions are packed sorted by length, so that those of equal length are one contiguous block: on CPU a block is a view
and one `scaled_dot_product_attention`; on GPU the whole pack is one kernel (train/attention_kernels.py). The text
encoder is causal and pools at end-of-text, so that packing changes no feature.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32, Int64
from torch import Tensor

if find_spec("triton"):  # comes with a torch for GPUs
    from train import attention_kernels as kernels


@dataclass(frozen=True)
class Packed:
    """Captions laid end to end, the shortest first."""

    tokens: Int64[Tensor, " n"]
    positions: Int64[Tensor, " n"]
    """Place of each token in its caption."""
    ends: Int64[Tensor, " b"]
    """Where the end-of-text of each caption is, in the caller's order of captions."""
    starts: Int32[Tensor, " s"]
    """Where each packed caption starts, and the total at the end."""
    groups: tuple[tuple[int, int], ...]
    """Runs of equal length, as (captions, tokens each), in packed order."""

    def to(self, device: torch.device | str) -> "Packed":
        """The same pack with its tensors on a device."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return replace(
            self,
            tokens=move(self.tokens),
            positions=move(self.positions),
            ends=move(self.ends),
            starts=move(self.starts),
        )


def pack(captions: Sequence[Sequence[int]]) -> Packed:
    """Lay token lists end to end, sorted by length (stable)."""
    lengths = np.array([len(caption) for caption in captions])
    if not len(lengths) or lengths.min() < 1:
        raise ValueError(
            f"caption {int(lengths.argmin()) if len(lengths) else 0} has no token: each needs its end-of-text"
        )
    order = np.argsort(lengths, kind="stable")
    packed_lengths = lengths[order]
    starts = np.concatenate([[0], np.cumsum(packed_lengths)])
    tokens = np.fromiter((token for row in order for token in captions[row]), np.int64, int(starts[-1]))
    ends = np.empty(len(lengths), np.int64)
    ends[order] = starts[1:] - 1
    positions = np.arange(starts[-1]) - np.repeat(starts[:-1], packed_lengths)
    return Packed(
        torch.from_numpy(tokens),
        torch.from_numpy(positions),
        torch.from_numpy(ends),
        torch.from_numpy(starts.astype(np.int32)),
        tuple((len(list(run)), int(length)) for length, run in groupby(packed_lengths)),
    )


def unpack(packed: Packed) -> list[list[int]]:
    """The token lists that were packed, in the caller's order."""
    tokens, lengths = packed.tokens.tolist(), (packed.positions[packed.ends] + 1).tolist()
    return [tokens[end + 1 - length : end + 1] for end, length in zip(packed.ends.tolist(), lengths, strict=True)]


@torch.compiler.disable  # a compiler would make code for each batch's groups
def packed_attention(qkv: Float[Tensor, "n 3 h d"], layout: Packed) -> Float[Tensor, "n h d"]:
    """Causal attention within each packed caption."""
    if qkv.device.type == "cuda" and qkv.shape[-1] in kernels.WIDTHS:
        return kernels.attend(qkv, layout.starts)
    query, key, value = qkv.unbind(1)
    return grouped_attention(query, key, value, layout)


def grouped_attention(
    query: Float[Tensor, "n h d"], key: Float[Tensor, "n h d"], value: Float[Tensor, "n h d"], layout: Packed
) -> Float[Tensor, "n h d"]:
    """Causal attention, one call for each run of equal-length captions; works on any device.

    In float32 on CPU, also for bfloat16 input: torch's bfloat16 kernel is six times slower on captions of ten tokens.
    """
    if query.device.type == "cpu" and query.dtype != torch.float32:
        in_full = grouped_attention(query.float(), key.float(), value.float(), layout)
        return in_full.to(query.dtype)
    sizes = [count * length for count, length in layout.groups]
    outputs = []
    for (count, length), q, k, v in zip(
        layout.groups, query.split(sizes), key.split(sizes), value.split(sizes), strict=True
    ):
        if length == 1:
            outputs.append(v)
            continue
        q, k, v = (x.unflatten(0, (count, length)).transpose(1, 2) for x in (q, k, v))  # b h t d
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)
