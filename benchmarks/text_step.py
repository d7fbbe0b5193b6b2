"""Forward and backward of the text encoder on real caption lengths: packed, padded to the context,
in 8 length buckets.

All contenders run the same encoder on the same captions, each in a process of its own, so that its
peak memory is its own. The captions come from a text file (one a line) or a Karpathy JSON; the
vocabulary is trained on them.

    python -m benchmarks.text_step captions.txt --width 1280 --layers 2 --batch-size 256
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro

from benchmarks.cost import UNITS, Cost, alone, cost_of
from train.attention import Packed, pack
from train.config import TextConfig, TokenizerConfig
from train.model import TextEncoder
from train.tokenizer import train_tokenizer

FEATURE_DIM = 512
NUM_BUCKETS = 8


@dataclass(frozen=True)
class TextStepConfig:
    """What is timed."""

    captions: tyro.conf.Positional[Path]
    """Text file with one caption a line, or a Karpathy JSON."""
    width: int = 1280
    """Width of the encoder; one head for every 64."""
    layers: int = 2
    """Blocks."""
    batch_size: int = 256
    """Captions a step."""
    context: int = 77
    """What captions are padded to by the reference."""
    repeats: int = 3
    """Timed steps of each contender; the quickest counts."""
    dtype: str = "float32"
    """float32 or bfloat16."""
    threads: int = 1
    """Threads of torch."""
    device: str = "cpu"
    """cpu or cuda."""


def read_captions(path: Path) -> list[str]:
    """Captions of a text file or of a Karpathy JSON."""
    if path.suffix != ".json":
        return [line for line in path.read_text().splitlines() if line.strip()]
    images = json.loads(path.read_text())["images"]
    return [sentence["raw"] for image in images for sentence in image["sentences"]]


def padded(captions: Sequence[list[int]], length: int) -> Packed:
    """The captions all padded to one length, as a pack; their features are still those of their
    ends.
    """
    layout = pack([caption + [0] * (length - len(caption)) for caption in captions])
    ends = torch.tensor([row * length + len(caption) - 1 for row, caption in enumerate(captions)])
    return replace(layout, ends=ends)


def buckets(captions: Sequence[list[int]]) -> list[Packed]:
    """Equal shares of the captions by length, each padded to its longest."""
    order = np.argsort([len(caption) for caption in captions], kind="stable")
    shares = [[captions[row] for row in share] for share in np.array_split(order, NUM_BUCKETS)]
    return [padded(share, max(map(len, share))) for share in shares]


def measure(config: TextStepConfig, batches: list[Packed]) -> Cost:
    """What the quickest step costs beyond the encoder and one small step."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    device = torch.device(config.device)
    size = TextConfig(config.width, config.layers, max(1, config.width // 64), config.context)
    encoder = TextEncoder(size, 8192, FEATURE_DIM).to(device, getattr(torch, config.dtype))
    batches = [batch.to(device) for batch in batches]
    encoder(pack([[1, 1]]).to(device)).sum().backward()

    def step() -> None:
        for batch in batches:
            encoder(batch).sum().backward()

    return cost_of(step, config.repeats, device)


def main(config: TextStepConfig) -> None:
    """Print one line a contender."""
    texts = read_captions(config.captions)
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=8192), iter(texts[:200_000]))
    picks = np.random.default_rng(0).permutation(len(texts))[: config.batch_size]
    captions = tokenizer.encode([texts[pick] for pick in picks], config.context)
    mean = np.mean([len(caption) for caption in captions])
    longest = max(map(len, captions))
    contenders: dict[str, Callable[[], list[Packed]]] = {
        "packed": lambda: [pack(captions)],
        f"padded to {config.context}": lambda: [padded(captions, config.context)],
        f"padded to longest ({longest})": lambda: [padded(captions, longest)],
        f"{NUM_BUCKETS} buckets": lambda: buckets(captions),
    }
    print(
        f"{len(captions)} captions of {mean:.1f} tokens: {config.context / mean:.2f} times fewer "
        "than padded"
    )
    times: dict[str, float] = {}

    for name, make in contenders.items():
        cost = alone(measure, config, make())
        times[name], unit = cost.seconds, UNITS[config.device]
        ratio = cost.seconds / times["packed"]
        rate = len(captions) / cost.seconds
        line = (
            f"{name:24s} {cost.seconds:8.3f} {unit} {rate:8.0f} captions/{unit} "
            f"{cost.peak_mb:8.0f} MB  {ratio:5.2f} x packed"
        )
        print(line, flush=True)


if __name__ == "__main__":
    main(tyro.cli(TextStepConfig))
