"""Causal attention over packed captions: laid end to end, without padding.

Captions are sorted by length, so that those of equal length form one contiguous block. On a CPU,
each block is a view and takes one `scaled_dot_product_attention`. On a GPU, one kernel takes the
whole pack: ours (train/attention_kernels.py), torch's or that of xformers. The text encoder is
causal and pools at end-of-text, so packing changes no feature.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from itertools import groupby
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from train.config import AttentionChoice

MOST_CAPTIONS = 65_535
"""Captions that the kernels of torch and xformers take at once: each is a step on the second axis of
a CUDA grid, which has no more.
"""
TRITON_WIDTHS = (16, 32, 64, 128)
"""Channels per head that our kernel supports: Triton's blocks are powers of two."""


@dataclass(frozen=True)
class Packed:
    """Captions laid end to end, the shortest first."""

    tokens: Int64[Tensor, " n"]
    positions: Int64[Tensor, " n"]
    """Position of each token in its caption, from 0."""
    ends: Int64[Tensor, " b"]
    """Index in `tokens` of each caption's end-of-text, in the caller's order of captions."""
    starts: Int32[Tensor, " s"]
    """Index in `tokens` where each packed caption starts, and the number of tokens at the end."""
    groups: tuple[tuple[int, int], ...]
    """Runs of equal length as (number of captions, tokens per caption), in packed order."""

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


PackedAttention = Callable[[Tensor, Packed], Tensor]
"""Queries, keys and values "n 3 h d" and their layout to the output of attention, "n h d"."""


def pack(captions: Sequence[Sequence[int]]) -> Packed:
    """Lay token lists end to end, sorted by length (stable). ValueError if one of them is empty.

    The captions [5, 6, 1], [7, 1] and [8, 1], with end-of-text 1, become

        tokens     7 1 8 1 5 6 1
        positions  0 1 0 1 0 1 2
        starts     0 2 4 7
        ends       6 1 3            the first caption of the caller is the last of the pack
        groups     (2, 2), (1, 3)   two captions of 2 tokens, then one of 3
    """
    lengths = np.array([len(caption) for caption in captions])
    if not len(lengths) or lengths.min() < 1:
        raise ValueError(
            f"caption {int(lengths.argmin()) if len(lengths) else 0} has no token: each needs its "
            "end-of-text"
        )

    order = np.argsort(lengths, kind="stable")
    packed_lengths = lengths[order]
    starts = np.concatenate([[0], np.cumsum(packed_lengths)])
    tokens = np.fromiter(
        (token for row in order for token in captions[row]), np.int64, int(starts[-1])
    )

    # Packed caption i is the caller's caption order[i], and its last token is the one before the
    # next start: the assignment through `order` puts the ends back in the caller's order.
    ends = np.empty(len(lengths), np.int64)
    ends[order] = starts[1:] - 1

    # A token's index in the pack, minus the start of its caption, is its position in the caption.
    positions = np.arange(starts[-1]) - np.repeat(starts[:-1], packed_lengths)

    # The starts are int32, the type that flash kernels require of sequence offsets.
    return Packed(
        torch.from_numpy(tokens),
        torch.from_numpy(positions),
        torch.from_numpy(ends),
        torch.from_numpy(starts.astype(np.int32)),
        tuple((len(list(run)), int(length)) for length, run in groupby(packed_lengths)),
    )


def unpack(packed: Packed) -> list[list[int]]:
    """The token lists that were packed, in the caller's order."""
    tokens = packed.tokens.tolist()

    # Positions count from 0, so the position of a caption's last token is its length minus 1.
    lengths = (packed.positions[packed.ends] + 1).tolist()
    return [
        tokens[end + 1 - length : end + 1]
        for end, length in zip(packed.ends.tolist(), lengths, strict=True)
    ]


@torch.compiler.disable  # the choice of a kernel is no code for a compiler
def packed_attention(
    qkv: Float[Tensor, "n 3 h d"], layout: Packed, choice: AttentionChoice = "auto"
) -> Float[Tensor, "n h d"]:
    """Causal attention within each packed caption."""
    case = Case(qkv.device.type, qkv.shape[-1], qkv.dtype == torch.float32, installed_kernels())
    return choose_attention(choice, case)(qkv, layout)


@dataclass(frozen=True)
class Case:
    """What the choice of a kernel depends on."""

    device: str
    """cpu or cuda."""
    width: int
    """Channels per head."""
    is_float32: bool
    installed: frozenset[str]
    """Kernels whose package could be imported."""


@cache
def installed_kernels() -> frozenset[str]:
    """Kernels whose package could be imported in this process."""
    return frozenset(kernel for kernel, package in PACKAGES.items() if _is_installed(package))


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a dotted name, the parent package is missing
        return False


def choose_attention(choice: AttentionChoice, case: Case) -> PackedAttention:
    """The kernel for a configured name.

    ValueError, listing the names that are possible, if it is not installed or cannot run here.
    """
    if choice == "auto":
        choice = "grouped" if why_not("triton", case) else "triton"

    problem = why_not(choice, case)
    if problem:
        possible = ", ".join(["auto", *(name for name in KERNELS if not why_not(name, case))])
        raise ValueError(
            f"train.parallel.attention is {choice}, but {problem}; possible here: {possible}"
        )

    return KERNELS[choice]


def why_not(kernel: str, case: Case) -> str:
    """Why a kernel cannot be used; empty if it can."""
    if kernel == "grouped":
        return ""
    if case.device != "cuda":
        return "it runs on GPUs only"
    if kernel not in case.installed:
        return f"{PACKAGES[kernel]} is not installed, which comes with {SOURCES[kernel]}"
    if kernel == "triton" and case.width not in TRITON_WIDTHS:
        return (
            f"heads have {case.width} channels, and it needs {', '.join(map(str, TRITON_WIDTHS))}"
        )
    if kernel == "varlen" and case.is_float32:
        return "it does not support float32"

    return ""


@torch.compiler.disable  # a compiler would make code for the groups of each batch
def grouped_attention(qkv: Float[Tensor, "n 3 h d"], layout: Packed) -> Float[Tensor, "n h d"]:
    """One call of torch per run of captions of equal length; works on any device.

    On a CPU it computes in float32 even for bfloat16 input, because torch's bfloat16 kernel is six
    times slower on captions of ten tokens.
    """
    if qkv.device.type == "cpu" and qkv.dtype != torch.float32:
        return grouped_attention(qkv.float(), layout).to(qkv.dtype)

    sizes = [count * length for count, length in layout.groups]
    outputs = []
    for (count, length), group in zip(layout.groups, qkv.split(sizes), strict=True):
        if length == 1:
            # A single token attends to itself with weight 1: its output is its value, number 2 of
            # (query, key, value).
            outputs.append(group[:, 2])
            continue

        # As all captions of a group have one length, the tokens become an axis of their own. These
        # are three views, "captions heads tokens channels"; nothing is copied.
        q, k, v = group.unflatten(0, (count, length)).transpose(1, 3).unbind(2)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        outputs.append(attended.transpose(1, 2).flatten(0, 1))

    return torch.cat(outputs)


def triton_attention(qkv: Float[Tensor, "n 3 h d"], layout: Packed) -> Float[Tensor, "n h d"]:
    """Our own Triton kernel, written for captions of a few tokens."""
    from train import attention_kernels  # needs Triton, which only a torch for GPUs brings along

    return attention_kernels.attend(qkv, layout.starts)


@torch.compiler.disable  # as that of the groups
def varlen_attention(qkv: Float[Tensor, "n 3 h d"], layout: Packed) -> Float[Tensor, "n h d"]:
    """Torch's kernel for sequences of any length."""
    _check_count("varlen", layout)
    from torch.nn.attention.varlen import varlen_attn  # not in every torch that is supported

    query, key, value = qkv.unbind(1)
    longest = layout.groups[-1][1]  # groups are sorted by length
    causal = (-1, 0)  # attention window: all tokens before, none after
    attended = varlen_attn(
        query, key, value, layout.starts, layout.starts, longest, longest, window_size=causal
    )
    assert isinstance(attended, Tensor)
    return attended


@torch.compiler.disable  # as that of the groups
def xformers_attention(qkv: Float[Tensor, "n 3 h d"], layout: Packed) -> Float[Tensor, "n h d"]:
    """The kernel of xformers, with a mask of one causal block per caption."""
    _check_count("xformers", layout)
    from xformers.ops import memory_efficient_attention  # optional, in the extra `gpu`

    # xformers wants a batch axis: the pack is one sequence, and the mask keeps captions apart.
    query, key, value = qkv[None].unbind(2)
    return memory_efficient_attention(
        query, key, value, attn_bias=xformers_mask(layout, qkv.device)
    )[0]


def _check_count(kernel: str, layout: Packed) -> None:
    """ValueError for more captions than the kernels of torch and xformers take at once."""
    count = len(layout.starts) - 1
    if count > MOST_CAPTIONS:
        raise ValueError(
            f"train.parallel.attention is {kernel}, which takes at most {MOST_CAPTIONS:,} captions "
            f"at once on a GPU, and there are {count:,}: use triton or auto, or set "
            "train.micro_batch"
        )


def xformers_mask(layout: Packed, device: torch.device) -> Any:
    """The mask under which a token attends to the tokens of its own caption, up to itself."""
    from xformers.ops.fmha.attn_bias import BlockDiagonalCausalMask

    lengths = [length for count, length in layout.groups for _ in range(count)]
    return BlockDiagonalCausalMask.from_seqlens(lengths, device=device)


KERNELS: dict[str, PackedAttention] = {
    "grouped": grouped_attention,
    "triton": triton_attention,
    "varlen": varlen_attention,
    "xformers": xformers_attention,
}
PACKAGES = {"triton": "triton", "varlen": "torch.nn.attention.varlen", "xformers": "xformers"}
SOURCES = {"triton": "a torch for GPUs", "varlen": "torch 2.10", "xformers": "the extra gpu"}
