"""Attention over packed captions on a GPU, forward and backward: ours, torch's varlen kernel, xformers, and padding.

All start from the one product of queries, keys and values and end with its gradient, as in a block; the captions have
real lengths. What cannot run here is said so.

    python -m benchmarks.attention dataset_flickr8k.json --batch-size 1024
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from benchmarks.cost import cost_of
from benchmarks.text_step import read_captions
from train.attention import (
    Packed,
    grouped_attention,
    pack,
    packed_attention,
    varlen_attention,
    xformers_attention,
)
from train.config import TokenizerConfig
from train.tokenizer import train_tokenizer

PASSES = 20


@dataclass(frozen=True)
class AttentionConfig:
    """What is timed."""

    captions: tyro.conf.Positional[Path]
    """Text file with one caption a line, or a Karpathy JSON."""
    batch_size: int = 1024
    """Captions."""
    heads: int = 20
    """Heads of 64 channels."""
    context: int = 77
    """What captions are padded to."""
    repeats: int = 5
    """Timed runs of 20 passes; the quickest counts."""


def padded(qkv: Tensor, _: Packed) -> Tensor:
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # b t 3 h d to b h t d
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def main(config: AttentionConfig) -> None:
    """Print one line a contender."""
    texts, device = read_captions(config.captions), torch.device("cuda")
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=8192), iter(texts[:200_000]))
    picks = np.random.default_rng(0).permutation(len(texts))[: config.batch_size]
    layout = pack(tokenizer.encode([texts[pick] for pick in picks], config.context)).to(device)
    contenders: dict[str, Callable[[Tensor, Packed], Tensor]] = {
        "ours": packed_attention,
        "torch varlen_attn": varlen_attention,
        "xformers": xformers_attention,
        "one SDPA a length": grouped_attention,
        f"SDPA padded to {config.context}": padded,
    }
    print(f"{config.batch_size} captions, {len(layout.tokens)} tokens, {torch.cuda.get_device_name()}")
    first = 0.0
    for name, attend in contenders.items():
        shape = (config.batch_size, config.context) if attend is padded else (len(layout.tokens),)
        qkv = torch.randn(*shape, 3, config.heads, 64, device=device, dtype=torch.bfloat16, requires_grad=True)

        def run(attend: Callable[[Tensor, Packed], Tensor] = attend, qkv: Tensor = qkv) -> None:
            for _ in range(PASSES):
                attended = attend(qkv, layout)
                torch.autograd.grad(attended, qkv, attended.detach())

        try:
            seconds = cost_of(run, config.repeats, device).seconds / PASSES
        except (ImportError, NotImplementedError) as error:
            print(f"{name:20s} cannot run: {str(error).splitlines()[0]}")
            continue
        first = first or seconds
        print(f"{name:20s} {1e3 * seconds:8.3f} ms  {seconds / first:6.2f} x ours")


if __name__ == "__main__":
    main(tyro.cli(AttentionConfig))
