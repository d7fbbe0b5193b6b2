"""Attention over packed captions on a GPU, forward and backward: ours, torch's varlen kernel,
xformers, and padding.

All start from the one product of queries, keys and values and end with its gradient, as in a block;
the captions have real lengths. What cannot run here is said so.

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

from benchmarks.cost import cost_of, device_name
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


@dataclass(frozen=True)
class AttentionConfig:
    """What is timed."""

    captions: tyro.conf.Positional[Path]
    """Text file with one caption per line, or a Karpathy JSON."""
    batch_size: int = 1024
    """Captions."""
    heads: int = 20
    """Heads of 64 channels."""
    context: int = 77
    """What captions are padded to."""
    repeats: int = 5
    """Timed runs; the quickest counts."""
    passes: int = 20
    """Passes per run."""
    vocab_size: int = 8192
    """Pieces of the vocabulary that is trained on the captions."""
    device: str = "cuda"
    """cuda; cpu only shows that the benchmark runs."""


def padded(qkv: Tensor, _: Packed) -> Tensor:
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # b t 3 h d to b h t d
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def compare(config: AttentionConfig) -> dict[str, float | str]:
    """Print one line per contender. Milliseconds of a pass forward and backward, or why it cannot
    run here.
    """
    texts = read_captions(config.captions)
    device = torch.device(config.device)
    tokenizer = train_tokenizer(
        TokenizerConfig(vocab_size=config.vocab_size), iter(texts[:200_000])
    )
    picks = np.random.default_rng(0).permutation(len(texts))[: config.batch_size]
    layout = pack(tokenizer.encode([texts[pick] for pick in picks], config.context)).to(device)

    contenders: dict[str, Callable[[Tensor, Packed], Tensor]] = {
        "ours": packed_attention,
        "torch varlen_attn": varlen_attention,
        "xformers": xformers_attention,
        "one SDPA per length": grouped_attention,
        f"SDPA padded to {config.context}": padded,
    }
    print(f"{config.batch_size} captions, {len(layout.tokens)} tokens, {device_name(device)}")

    rows: dict[str, float | str] = {}

    for name, attend in contenders.items():
        shape = (config.batch_size, config.context) if attend is padded else (len(layout.tokens),)
        qkv = torch.randn(
            *shape, 3, config.heads, 64, device=device, dtype=torch.bfloat16, requires_grad=True
        )

        def run(attend: Callable[[Tensor, Packed], Tensor] = attend, qkv: Tensor = qkv) -> None:
            for _ in range(config.passes):
                attended = attend(qkv, layout)
                torch.autograd.grad(attended, qkv, attended.detach())

        try:
            milliseconds = 1e3 * cost_of(run, config.repeats, device).seconds / config.passes
        except (ImportError, NotImplementedError, RuntimeError) as error:
            rows[name] = f"cannot run: {str(error).splitlines()[0][:200]}"
            print(f"{name:20s} {rows[name]}")
            continue

        rows[name] = milliseconds
        print(
            f"{name:20s} {milliseconds:8.3f} ms  {milliseconds / float(rows['ours']):6.2f} x ours"
        )

    return rows


if __name__ == "__main__":
    compare(tyro.cli(AttentionConfig))
