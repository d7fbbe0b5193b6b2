"""The whole training step on CPU: stored tokens, packed captions and the tiled loss against the usual step.

The reference has the frozen backbone in the loop, captions padded to 77 and the loss on all logits at once; it is made
of the same torch modules, so that only the design differs. Sizes keep the paper's proportions of arithmetic (backbone
162, caption of 77 tokens 73, head 13 GFLOP forward) with ViT-S/14 for ViT-L/14; weights are random. Both see the same
pairs, and their first losses must agree. Pixels of the reference are in memory: decoding them is not counted.

    python -m benchmarks.step dataset_flickr8k.json --batch-size 64
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import tyro
from torch import Tensor

from benchmarks.loader import alone
from benchmarks.loss import full_logits
from benchmarks.text_step import padded, read_captions
from curation import dinov2
from curation.backbone import BackboneConfig, geometry_of
from curation.schema import CLS, HASHES, PATCHES, REGISTERS, EmbeddingSpec
from curation.selection import write_selection
from curation.shards import EmbeddingShards, Manifest, write_manifest, write_shard
from train.attention import unpack
from train.batch import Batch
from train.data import Pairs
from train.flop import TRAINING, backbone_flop, captions_flop, head_flop, text_flop
from train.gradients import backward, clip_gradients
from train.loss import LossConfig
from train.model import DinoTxt, ModelConfig, TextConfig, VisionConfig
from train.optim import OptimConfig, make_optimizer
from train.shuffle import ShuffleConfig
from train.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer

BACKBONE = "dinov2-vits14-reg"
LOSS_TOLERANCE = 1e-3  # stored tokens are float16, the live ones float32


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
    repeats: int = 3
    """Timed steps of each; the quickest counts."""
    threads: int = 1
    """Threads of torch."""

    def model(self) -> ModelConfig:
        """Without drop path, which would save both alike a share of the head at random."""
        text = TextConfig(self.text_width, self.text_layers, max(1, self.text_width // 64), self.context)
        return ModelConfig(text, VisionConfig(blocks=self.vision_blocks, drop_path=0.0))


class Timing(NamedTuple):
    """Of the quickest step in seconds; the first loss; forward and backward FLOP of a step."""

    cpu_s: float
    wall_s: float
    loss: float
    flop: float


def load_backbone() -> dinov2.Dinov2:
    """ViT-S/14 with registers, random weights."""
    architecture = dinov2.MODELS[BACKBONE]
    return dinov2.build(architecture, dinov2.hub_names(dinov2.random_state(architecture))).eval()


def pixels_of(config: StepConfig) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(config.batch_size, 3, 224, 224, generator=generator)


@torch.no_grad()
def prepare(config: StepConfig, folder: Path) -> None:
    """Shards with the backbone's tokens of all images, captions and the vocabulary."""
    torch.set_num_threads(config.threads)
    texts, backbone = read_captions(config.captions), load_backbone()
    train_tokenizer(TokenizerConfig(vocab_size=8192), iter(texts[:200_000])).save(folder)
    picks = np.random.default_rng(0).permutation(len(texts))[: config.batch_size]
    parts = [backbone(pixels) for pixels in pixels_of(config).split(16)]
    cls, registers, patches = (torch.cat(tokens) for tokens in zip(*parts, strict=True))
    geometry, rows = geometry_of(BackboneConfig(BACKBONE, image_size=224)), config.batch_size
    size = geometry.dim, geometry.num_registers, geometry.grid
    spec = EmbeddingSpec(BACKBONE, "d", "random", 224, *size, "tokens", "float16", "", 0)
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
    write_manifest(folder, Manifest(spec, (write_shard(folder / "shard-00000.arrow", spec, [columns]),)))
    write_selection(folder, EmbeddingShards(folder), np.arange(rows))


def measure(config: StepConfig, folder: Path, is_ours: bool) -> Timing:
    """Read a batch, forward, loss, backward, clip, AdamW."""
    torch.set_num_threads(config.threads)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    words = load_tokenizer(folder)
    pairs = Pairs(folder, folder, words, config.context, 0.0, 0, ShuffleConfig(), "draw")
    torch.manual_seed(0)
    model = DinoTxt(config.model(), words.vocab_size, pairs.spec.dim).train()
    optimizer = make_optimizer(model, OptimConfig())
    step = our_step(model) if is_ours else reference_step(config, model)
    timed, losses = [], []
    for index in range(1 + config.repeats):  # the first is not timed
        wall, cpu = time.perf_counter(), time.process_time()
        batch = pairs.batch(index, config.batch_size)
        losses.append(float(step(batch)))
        clip_gradients(model, 1.0, 1)
        optimizer.step()
        optimizer.zero_grad()
        timed.append((time.process_time() - cpu, time.perf_counter() - wall))
    return Timing(*min(timed[1:]), losses[0], flop_of(config, model, batch, is_ours))


def our_step(model: DinoTxt) -> Callable[[Batch], Tensor]:
    return lambda batch: backward(model, [batch], LossConfig(), 0)[0]


def reference_step(config: StepConfig, model: DinoTxt) -> Callable[[Batch], Tensor]:
    """The backbone sees the pixels of the batch's pairs; its captions are padded."""
    backbone, pixels = load_backbone(), pixels_of(config)

    def step(batch: Batch) -> Tensor:
        with torch.no_grad():
            tokens = backbone(pixels[[int(key) for key in batch.keys]])
        images, texts, scale = model(padded(unpack(batch.captions), config.context), *tokens)
        loss = full_logits(images, texts, scale)
        loss.backward()
        return loss.detach()

    return step


def flop_of(config: StepConfig, model: DinoTxt, batch: Batch, is_ours: bool) -> float:
    """FLOP of one step by arithmetic, without the loss and the optimizer."""
    tokens = sum(stored.values.shape[1] for stored in batch.vision)
    head, pairs = head_flop(model, tokens), config.batch_size
    if is_ours:
        return TRAINING * (captions_flop(model, batch.captions.groups) + pairs * head)
    seen = backbone_flop(BackboneConfig(BACKBONE, image_size=224))
    assert seen is not None
    return pairs * (seen + TRAINING * (text_flop(model, config.context) + head))


def main(config: StepConfig) -> None:
    """Print a line for each, and the ratio beside the one that the arithmetic allows."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        alone(prepare, config, folder)
        ours, reference = alone(measure, config, folder, True), alone(measure, config, folder, False)
    for name, timing in (("ours", ours), ("reference", reference)):
        pairs = config.batch_size
        print(
            f"{name:10s} {timing.cpu_s:7.2f} cpu-s {timing.wall_s:7.2f} s a step of {pairs} pairs"
            f"{pairs / timing.cpu_s:8.2f} pairs/cpu-s {pairs / timing.wall_s:8.2f} pairs/s"
            f"{timing.flop / pairs / 1e9:7.1f} GFLOP a pair, {timing.flop / timing.cpu_s / 1e9:.0f} GFLOP/cpu-s"
            f"   loss {timing.loss:.5f}"
        )
    assert abs(ours.loss - reference.loss) < LOSS_TOLERANCE * reference.loss, "the two steps do not do the same work"
    print(
        f"ours: {reference.cpu_s / ours.cpu_s:.2f} times the pairs a CPU second, {reference.wall_s / ours.wall_s:.2f} "
        f"times a second; the arithmetic allows {reference.flop / ours.flop:.2f}"
    )


if __name__ == "__main__":
    main(tyro.cli(StepConfig))
