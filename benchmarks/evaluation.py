"""Retrieval recall against CLIP_benchmark, and segmentation maps against the protocol written out.

Both start from features: what is timed is what evaluation adds to the encoder. Each contender runs
in a process of its own, so that its peak memory is its own, and results are compared.
clip_benchmark is left out where it is not installed (benchmarks/peers.txt has its version); it
needs no other package for this.

    python -m benchmarks.evaluation
    python -m benchmarks.evaluation --tasks recall --images 100000 --contenders ours
"""

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import tyro
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from benchmarks.cost import UNITS, Cost, alone, cost_of, device_name
from evaluate.retrieval import RECALL_AT, recall_tallies
from evaluate.windows import sliding_argmax, starts

CPU = torch.device("cpu")
PEER_BATCH = 64  # CLIP_benchmark's default batch size, which its recall goes by
SHORT_SIDE = 512
LONG_SIDE = 683
WINDOW = 384
STRIDE = 192
PATCHES = 28
"""Patches along a side of a window: 384 px rounded up to whole patches of 14."""


@dataclass(frozen=True)
class EvaluationBenchmarkConfig:
    """What is timed."""

    tasks: tuple[str, ...] = ("recall", "segmentation")
    """Which of the two."""
    contenders: tuple[str, ...] = ("ours", "peer")
    """Which to run."""
    images: int = 5000
    """Images of the retrieval set."""
    captions_each: int = 5
    """Captions per image."""
    dim: int = 512
    """Width of the features."""
    classes: int = 150
    """Classes of the segmentation set."""
    outputs: tuple[int, int] = (900, 1200)
    """Height and width of the mask, px."""
    repeats: int = 1
    """Timed passes of each contender; the quickest counts."""
    threads: int = 1
    """Threads of torch."""


def main(config: EvaluationBenchmarkConfig) -> None:
    """Print one line per task and contender, with the ratio of CPU seconds to ours and what
    agrees.
    """
    print(f"{device_name(CPU)}, {config.threads} threads")
    for task in config.tasks:
        first: tuple[Cost, object] | None = None
        for contender in config.contenders:
            if (
                task == "recall"
                and contender == "peer"
                and not importlib.util.find_spec("clip_benchmark")
            ):
                print("recall        clip_benchmark is not installed")
                continue
            name, cost, result = alone(measure, config, task, contender)
            first = first or (cost, result)
            print(
                f"{task:13s} {name:24s} {cost.seconds:9.3f} {UNITS['cpu']} {cost.peak_mb:8.0f} MB  "
                f"ratio {cost.seconds / first[0].seconds:6.2f}  {_agreement(first[1], result)}",
                flush=True,
            )


def measure(
    config: EvaluationBenchmarkConfig, task: str, contender: str
) -> tuple[str, Cost, object]:
    """Name of the contender, cost of its quickest pass beyond the features, and its result."""
    torch.set_num_threads(config.threads)
    result: list[object] = []
    if task == "recall":
        name, run = _recall(config, contender)
    else:
        name, run = _segmentation(config, contender)
    cost = cost_of(lambda: result.__setitem__(slice(None), [run()]), config.repeats, CPU)
    return name, cost, result[0]


def _agreement(ours: object, theirs: object) -> str:
    if isinstance(ours, np.ndarray) and isinstance(theirs, np.ndarray):
        return f"{100 * (ours == theirs).mean():.3f} % of the pixels as ours"
    assert isinstance(ours, dict)
    assert isinstance(theirs, dict)
    return f"recalls differ by at most {max(abs(ours[name] - theirs[name]) for name in ours):.1e}"


def _recall(
    config: EvaluationBenchmarkConfig, contender: str
) -> tuple[str, Callable[[], Mapping[str, float]]]:
    """Captions are noisy copies of their images."""
    generator = torch.Generator().manual_seed(0)
    owners = np.repeat(np.arange(config.images), config.captions_each)
    images = normalize(torch.randn(config.images, config.dim, generator=generator), dim=-1)
    captions = torch.randn(len(owners), config.dim, generator=generator).mul_(
        2 / config.dim**0.5 * 3
    )
    captions = normalize(captions.add_(images[owners]), dim=-1)

    if contender == "ours":
        some = slice(8 * config.captions_each)
        recall_tallies(images[:8], captions[some], owners[some])  # compiles
        return "ours", lambda: _our_recalls(images, captions, owners)

    version = importlib.metadata.version("clip-benchmark")
    return f"clip_benchmark {version}", lambda: _peer_recalls(images, captions, owners)


def _our_recalls(
    images: Float[Tensor, "n d"], captions: Float[Tensor, "m d"], owners: Int64[np.ndarray, " m"]
) -> dict[str, float]:
    tallies = recall_tallies(images, captions, owners)
    return {name: tally.value for name, tally in tallies.items() if tally.statistic == "mean"}


def _peer_recalls(
    images: Float[Tensor, "n d"], captions: Float[Tensor, "m d"], owners: Int64[np.ndarray, " m"]
) -> dict[str, float]:
    """What clip_benchmark does after encoding, in its own functions."""
    from clip_benchmark.metrics.zeroshot_retrieval import batchify, recall_at_k

    scores = captions @ images.T
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(scores)), torch.from_numpy(owners)] = True

    recalls = {}

    for k in RECALL_AT:
        to_image = batchify(recall_at_k, scores, positive, PEER_BATCH, "cpu", k=k)
        to_text = batchify(recall_at_k, scores.T, positive.T, PEER_BATCH, "cpu", k=k)
        recalls[f"text_to_image_r{k}"] = float((to_image > 0).float().mean())
        recalls[f"image_to_text_r{k}"] = float((to_text > 0).float().mean())

    return recalls


def _segmentation(
    config: EvaluationBenchmarkConfig, contender: str
) -> tuple[str, Callable[[], np.ndarray]]:
    """One image of 512 x 683 px in windows of 384 px, from the cosines of its patches."""
    size = (SHORT_SIDE, LONG_SIDE)
    tops, lefts = (starts(side, WINDOW, STRIDE) for side in size)
    generator = torch.Generator().manual_seed(0)
    cosines = (
        torch.rand(len(tops), len(lefts), PATCHES, PATCHES, config.classes, generator=generator)
        * 0.4
    )

    if contender == "ours":

        def run() -> np.ndarray:
            return sliding_argmax(
                cosines, (tops, lefts), (WINDOW, WINDOW), size, config.outputs, 1.0
            )

        run()  # compiles
        return "ours", run

    return "the protocol, written out", lambda: _written_out(cosines, tops, lefts, config.outputs)


def _written_out(
    cosines: Float[Tensor, "tops lefts h w classes"],
    tops: list[int],
    lefts: list[int],
    out: tuple[int, int],
) -> Int64[np.ndarray, "height width"]:
    """Sum of soft-maxes of up-sampled windows, mean, up-sampled to the mask, arg-max: all classes
    in full.
    """
    total = torch.zeros(cosines.shape[-1], SHORT_SIDE, LONG_SIDE)
    seen = torch.zeros(SHORT_SIDE, LONG_SIDE)
    for row, top in enumerate(tops):
        for column, left in enumerate(lefts):
            window = cosines[row, column].permute(2, 0, 1)[None].contiguous()
            up = interpolate(window, size=(WINDOW, WINDOW), mode="bilinear", align_corners=False)[0]
            total[:, top : top + WINDOW, left : left + WINDOW] += up.softmax(0)
            seen[top : top + WINDOW, left : left + WINDOW] += 1

    total /= seen
    return (
        interpolate(total[None], size=out, mode="bilinear", align_corners=False)[0]
        .argmax(0)
        .numpy()
    )


if __name__ == "__main__":
    main(tyro.cli(EvaluationBenchmarkConfig))
