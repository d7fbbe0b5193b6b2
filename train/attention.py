"""Packed variable-length causal attention: captions laid end to end, no padding anywhere.

Captions are packed sorted by length, so that those of equal length are one contiguous block: on CPU a block is a view
and one `scaled_dot_product_attention`; on GPU the whole pack is one block-diagonal causal call of xformers or of
torch's `varlen_attn`. The text encoder is causal and pools at end-of-text, so that packing changes no feature.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32, Int64
from torch import Tensor


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

    @property
    def max_length(self) -> int:
        return max(length for _, length in self.groups)

    def to(self, device: torch.device | str) -> "Packed":
        """The same pack with its tensors on a device."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return Packed(move(self.tokens), move(self.positions), move(self.ends), move(self.starts), self.groups)


def pack(captions: Sequence[Sequence[int]], capacity: int = 0) -> Packed:
    """Lay token lists end to end, sorted by length (stable).

    With a capacity the pack always holds that many tokens: the rest is captions of one token that nothing reads,
    which gives static shapes to a compiled model.
    """
    lengths = np.array([len(caption) for caption in captions])
    if not len(lengths) or lengths.min() < 1:
        raise ValueError(
            f"caption {int(lengths.argmin()) if len(lengths) else 0} has no token: each needs its end-of-text"
        )
    filler = max(0, capacity - int(lengths.sum())) if capacity else 0
    if capacity and lengths.sum() > capacity:
        raise ValueError(f"{lengths.sum()} tokens in a pack of capacity {capacity}: raise it or lower the batch size")
    order = np.argsort(lengths, kind="stable")
    packed_lengths = np.concatenate([np.ones(filler, np.int64), lengths[order]])
    starts = np.concatenate([[0], np.cumsum(packed_lengths)])
    tokens = np.fromiter((token for row in order for token in captions[row]), np.int64, int(lengths.sum()))
    ends = np.empty(len(lengths), np.int64)
    ends[order] = starts[filler + 1 :] - 1
    positions = np.arange(starts[-1]) - np.repeat(starts[:-1], packed_lengths)
    groups = tuple((len(list(run)), int(length)) for length, run in groupby(packed_lengths))
    return Packed(
        torch.from_numpy(np.concatenate([np.zeros(filler, np.int64), tokens])),
        torch.from_numpy(positions),
        torch.from_numpy(ends),
        torch.from_numpy(starts.astype(np.int32)),
        groups,
    )


def unpack(packed: Packed) -> list[list[int]]:
    """The token lists that were packed, in the caller's order."""
    tokens, lengths = packed.tokens.tolist(), (packed.positions[packed.ends] + 1).tolist()
    return [tokens[end + 1 - length : end + 1] for end, length in zip(packed.ends.tolist(), lengths, strict=True)]


def packed_attention(
    query: Float[Tensor, "n h d"], key: Float[Tensor, "n h d"], value: Float[Tensor, "n h d"], layout: Packed
) -> Float[Tensor, "n h d"]:
    """Causal attention within each packed caption."""
    if query.device.type != "cuda":
        return grouped_attention(query, key, value, layout.groups)
    if importlib.util.find_spec("xformers") is not None:
        return _xformers_attention(query, key, value, layout)
    return _varlen_attention(query, key, value, layout)


def grouped_attention(
    query: Float[Tensor, "n h d"],
    key: Float[Tensor, "n h d"],
    value: Float[Tensor, "n h d"],
    groups: tuple[tuple[int, int], ...],
) -> Float[Tensor, "n h d"]:
    """Causal attention, one call for each run of equal-length captions; works on any device.

    In float32 on CPU, also for bfloat16 input: torch's bfloat16 kernel is six times slower on captions of ten tokens.
    """
    if query.device.type == "cpu" and query.dtype != torch.float32:
        in_full = grouped_attention(query.float(), key.float(), value.float(), groups)
        return in_full.to(query.dtype)
    sizes = [count * length for count, length in groups]
    outputs = []
    for (count, length), q, k, v in zip(groups, query.split(sizes), key.split(sizes), value.split(sizes), strict=True):
        if length == 1:
            outputs.append(v)
            continue
        q, k, v = (x.unflatten(0, (count, length)).transpose(1, 2) for x in (q, k, v))  # b h t d
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


def _xformers_attention(
    query: Float[Tensor, "n h d"], key: Float[Tensor, "n h d"], value: Float[Tensor, "n h d"], layout: Packed
) -> Float[Tensor, "n h d"]:
    from xformers.ops import memory_efficient_attention
    from xformers.ops.fmha.attn_bias import BlockDiagonalCausalMask

    lengths = [length for count, length in layout.groups for _ in range(count)]
    mask = BlockDiagonalCausalMask.from_seqlens(lengths, device=query.device)
    return memory_efficient_attention(query[None], key[None], value[None], attn_bias=mask)[0]


def _varlen_attention(
    query: Float[Tensor, "n h d"], key: Float[Tensor, "n h d"], value: Float[Tensor, "n h d"], layout: Packed
) -> Float[Tensor, "n h d"]:
    from torch.nn.attention.varlen import varlen_attn

    if query.dtype == torch.float32:  # the flash kernels know half precision only
        return grouped_attention(query, key, value, layout.groups)
    longest = layout.max_length
    attended = varlen_attn(query, key, value, layout.starts, layout.starts, longest, longest, window_size=(-1, 0))
    assert isinstance(attended, Tensor)
    return attended
