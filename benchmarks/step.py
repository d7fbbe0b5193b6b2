"""The whole training step: stored tokens, packed captions and the tiled loss against the usual
step.

The reference has the frozen backbone in the loop, captions padded to 77 and the loss on all logits
at once; it is made of the same torch modules, and what is trained is sharded and compiled alike, so
that only the design differs; the frozen backbone is never compiled. The sizes without flags are for
a CPU: they keep the paper's proportions of arithmetic (backbone 162, caption of 77 tokens 73, head
13 GFLOP forward) with ViT-S/14 for ViT-L/14. Weights are random. Both see the same pairs, and their
first losses must agree. Pixels of the reference are in memory: decoding them is not counted.

    python -m benchmarks.step dataset_flickr8k.json --batch-size 64
    python -m benchmarks.step captions.txt --device cuda --backbone dinov2-vitl14-reg --text-width 1280 \\
        --text-layers 24 --vision-blocks 2 --batch-size 256 --parallel.dtype bfloat16 --parallel.compile
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import tyro
from torch import Tensor, nn

from benchmarks.cost import UNITS, Cost, alone, cost_of, peak_mb
from benchmarks.loss import full_logits
from benchmarks.text_step import padded, read_captions
from curation.encoders.backbone import random_backbone
from curation.encoders.config import BackboneConfig, backbone_flop, geometry_of
from curation.shards.manifest import Manifest, write_manifest
from curation.shards.reader import EmbeddingShards
from curation.shards.schema import CLS, HASHES, PATCHES, REGISTERS, EmbeddingSpec
from curation.shards.selection import write_selection
from curation.shards.writer import write_shard
from train.attention import unpack
from train.batch import Batch
from train.config import (
    LossConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    TextConfig,
    TokenizerConfig,
    TrainConfig,
    VisionConfig,
)
from train.data import Pairs
from train.flop import TRAINING, captions_flop, head_flop, peak_tflops, text_flop
from train.gradients import backward, clip_gradients
from train.model import DinoTxt
from train.optim import make_optimizer
from train.parallel import parallelize
from train.tokenizer import load_tokenizer, train_tokenizer

LOSS_TOLERANCE = {
    "float32": 1e-3,
    "bfloat16": 1e-2,
}  # stored tokens are float16, the live ones as the backbone runs
IMAGE_SIZE = 224
WARM_UP = 3  # steps that are not timed


@dataclass(frozen=True)
class StepConfig:
    """What is timed."""

    captions: tyro.conf.Positional[Path]
    """Text file with one caption a line, or a Karpathy JSON: real lengths."""
    batch_size: int = 64
    """Pairs a step."""
    text_width: int = 512
    """Width of the text encoder; one head for every 64."""
    text_layers: int = 12
    """Blocks of the text encoder; 12 of width 512 stand to ViT-S/14 as 24 of 1280 to ViT-L/14."""
    vision_blocks: int = 1
    """Blocks of the head; one stands to ViT-S/14 as two do to ViT-L/14."""
    context: int = 77
    """What captions are padded to by the reference."""
    backbone: str = "dinov2-vits14-reg"
    """The frozen encoder."""
    device: str = "cpu"
    """cpu or cuda."""
    parallel: ParallelConfig = field(default_factory=lambda: ParallelConfig(dtype="float32"))
    """Number format of both; compilation and recomputation of what both train."""
    contenders: tuple[str, ...] = ("ours", "reference")
    """Which to run."""
    repeats: int = 3
    """Timed steps of each; the quickest counts."""
    threads: int = 1
    """Threads of torch."""

    def model(self) -> ModelConfig:
        """Without drop path, which would save both alike a share of the head at random."""
        text = TextConfig(
            self.text_width, self.text_layers, max(1, self.text_width // 64), self.context
        )
        return ModelConfig(text, VisionConfig(blocks=self.vision_blocks, drop_path=0.0))


class Timing(NamedTuple):
    """Of the quickest step; the first loss; forward and backward FLOP of a step."""

    cost: Cost
    loss: float
    flop: float


def load_backbone(config: StepConfig) -> nn.Module:
    """The frozen encoder with random weights, in the number format of the run."""
    backbone = random_backbone(BackboneConfig(config.backbone, image_size=IMAGE_SIZE))
    return backbone.encoder.to(config.device, getattr(torch, config.parallel.dtype))


def pixels_of(config: StepConfig) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(config.batch_size, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    return pixels.to(config.device, getattr(torch, config.parallel.dtype))


@torch.no_grad()
def prepare(config: StepConfig, folder: Path) -> None:
    """Shards with the backbone's tokens of all images, captions and the vocabulary."""
    torch.set_num_threads(config.threads)
    texts = read_captions(config.captions)
    backbone = load_backbone(config)
    train_tokenizer(TokenizerConfig(vocab_size=8192), iter(texts[:200_000])).save(folder)
    picks = np.random.default_rng(0).permutation(len(texts))[: config.batch_size]
    parts = [backbone(pixels) for pixels in pixels_of(config).split(16)]
    cls, registers, patches = (
        torch.cat(tokens).float().cpu() for tokens in zip(*parts, strict=True)
    )
    geometry = geometry_of(BackboneConfig(config.backbone, image_size=IMAGE_SIZE))
    rows = config.batch_size
    size = geometry.dim, geometry.num_registers, geometry.grid
    spec = EmbeddingSpec(
        config.backbone, "d", "random", IMAGE_SIZE, *size, "tokens", "float16", "", 0
    )
    columns = {
        "key": [str(row) for row in range(rows)],
        "source": ["random"] * rows,
        "captions": [[texts[pick]] for pick in picks],
        CLS: cls[:, None].numpy(),
        REGISTERS: registers.numpy(),
        PATCHES: patches.numpy(),
        "thumbnail": [b""] * rows,
        **dict.fromkeys(HASHES, np.arange(rows, dtype=np.uint64)),
    }
    write_manifest(
        folder, Manifest(spec, (write_shard(folder / "shard-00000.arrow", spec, [columns]),))
    )
    write_selection(folder, EmbeddingShards(folder), np.arange(rows))


def measure(config: StepConfig, folder: Path, is_ours: bool) -> Timing:
    """Read a batch, forward, loss, backward, clip, AdamW."""
    torch.set_num_threads(config.threads)
    device = torch.device(config.device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1
    )
    words = load_tokenizer(folder)
    model_config = ModelConfig(text=TextConfig(context=config.context))
    pairs = Pairs(folder, folder, words, TrainConfig(model=model_config, holdout=0.0))
    torch.manual_seed(0)
    model = DinoTxt(config.model(), words.vocab_size, pairs.spec.dim).to(device)
    flop = flop_of(config, model, pairs.batch(0, config.batch_size), is_ours)
    parallelize(model, config.parallel, device)
    optimizer = make_optimizer(model, OptimConfig())
    gradients = our_step(config, model) if is_ours else reference_step(config, model)
    losses = []

    with pairs.batches(0, 1_000_000, config.batch_size, device=device) as batches:

        def step() -> None:
            losses.append(gradients(next(batches)))
            clip_gradients(model, 1.0, 1)
            optimizer.step()
            optimizer.zero_grad()

        for _ in range(WARM_UP):
            step()
        cost = cost_of(step, config.repeats, device)._replace(peak_mb=peak_mb(device))

    dist.destroy_process_group()
    return Timing(cost, float(losses[0]), flop)


def our_step(config: StepConfig, model: DinoTxt) -> Callable[[Batch], Tensor]:
    loss = LossConfig(dtype=config.parallel.dtype)
    return lambda batch: backward(model, [batch], loss, 0)[0]


def reference_step(config: StepConfig, model: DinoTxt) -> Callable[[Batch], Tensor]:
    """The backbone sees the pixels of the batch's pairs; its captions are padded."""
    backbone = load_backbone(config)
    pixels = pixels_of(config)

    def step(batch: Batch) -> Tensor:
        with torch.no_grad():
            tokens = backbone(pixels[[int(key) for key in batch.keys]])
        captions = padded(unpack(batch.captions), config.context).to(pixels.device)
        images, texts, scale = model(captions, *tokens)
        loss = full_logits(images, texts, scale)
        loss.backward()
        return loss.detach()

    return step


def flop_of(config: StepConfig, model: DinoTxt, batch: Batch, is_ours: bool) -> float:
    """FLOP of one step by arithmetic, without the loss and the optimizer."""
    tokens = sum(stored.values.shape[1] for stored in batch.vision)
    head = head_flop(model, tokens)
    pairs = config.batch_size
    if is_ours:
        return TRAINING * (captions_flop(model, batch.captions.groups) + pairs * head)
    seen = backbone_flop(BackboneConfig(config.backbone, image_size=IMAGE_SIZE))
    return pairs * (seen + TRAINING * (text_flop(model, config.context) + head))


def compare(config: StepConfig) -> dict[str, Timing]:
    """Print a line for each contender, and the ratio beside the one that the arithmetic allows."""
    timings: dict[str, Timing] = {}
    with tempfile.TemporaryDirectory() as temporary:
        alone(prepare, config, Path(temporary))
        for name in config.contenders:
            timings[name] = timing = alone(measure, config, Path(temporary), name == "ours")
            print(line(config, name, timing), flush=True)

    if len(timings) < 2:
        return timings

    ours = timings["ours"]
    reference = timings["reference"]
    tolerance = LOSS_TOLERANCE[config.parallel.dtype] * reference.loss
    assert abs(ours.loss - reference.loss) < tolerance, "the two steps do not do the same work"
    print(
        f"ours: {reference.cost.seconds / ours.cost.seconds:.2f} times the pairs per "
        f"{UNITS[config.device]}, {reference.cost.wall_s / ours.cost.wall_s:.2f} times per "
        f"second; the arithmetic allows {reference.flop / ours.flop:.2f}"
    )

    return timings


def line(config: StepConfig, name: str, timing: Timing) -> str:
    """What one contender took; on a GPU that is known, with its MFU."""
    cost = timing.cost
    pairs = config.batch_size
    unit = UNITS[config.device]
    rate = timing.flop / cost.seconds / 1e12
    peak = peak_tflops(torch.cuda.get_device_name()) if config.device == "cuda" else None

    return (
        f"{name:10s} {cost.seconds:7.3f} {unit} {cost.wall_s:7.3f} s a step of {pairs} pairs"
        f"{pairs / cost.seconds:9.2f} pairs/{unit} {pairs / cost.wall_s:9.2f} pairs/s"
        f"{timing.flop / pairs / 1e9:7.1f} GFLOP a pair, {rate:.3f} TFLOP/{unit}"
        + (f", {rate / peak:.1%} of the peak" if peak else "")
        + f"   {cost.peak_mb:.0f} MB   loss {timing.loss:.5f}"
    )


if __name__ == "__main__":
    compare(tyro.cli(StepConfig))
