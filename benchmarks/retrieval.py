"""From files to recall: a retrieval set in CLIP_benchmark's own layout, through the same open_clip
model, here and in CLIP_benchmark.

Weights are random and the same on both sides: what is timed does not depend on them. Each contender
runs in a process of its own; the model is built before the clock starts.

    python -m benchmarks.retrieval FOLDER
"""

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from benchmarks.cost import Cost, alone, cost_of, device_name
from evaluate.openclip import OpenClipEncoder
from evaluate.retrieval import RECALL_AT, retrieve
from evaluate.sets.known import open_retrieval
from evaluate.vectors import SetVectors
from evaluate.views import UNCUT

CPU = torch.device("cpu")


@dataclass(frozen=True)
class RetrievalBenchmarkConfig:
    """What is timed."""

    folder: Annotated[Path, tyro.conf.Positional]
    """A retrieval set of CLIP_benchmark: test/0.tar, test/nshards.txt, dataset_type.txt."""
    model: str = "ViT-B-32"
    """Architecture of open_clip."""
    contenders: tuple[str, ...] = ("ours", "peer", "peer with autocast")
    """Which to run; CLIP_benchmark computes in bfloat16 unless told not to."""
    batch_size: int = 64
    """Images per batch."""
    workers: int = 1
    """Loading processes of CLIP_benchmark: no more than the set has tars."""
    threads: int = 2
    """Threads of torch."""


def main(config: RetrievalBenchmarkConfig) -> None:
    """Print one line per contender, with the ratio of its seconds to ours and how far recalls
    differ.
    """
    print(f"{device_name(CPU)}, {config.threads} threads, {config.model}, float32")
    first: tuple[float, dict[str, float]] | None = None
    for contender in config.contenders:
        name, cost, images, recalls = alone(measure, config, contender)
        first = first or (cost.wall_s, recalls)
        apart = max(abs(first[1][metric] - recalls[metric]) for metric in recalls)
        print(
            f"{name:34s} {cost.wall_s:8.1f} s  {images / cost.wall_s:7.1f} images/s  "
            f"{cost.peak_mb:6.0f} MB  ratio {cost.wall_s / first[0]:5.2f}  "
            f"recalls differ by at most {apart:.1e}",
            flush=True,
        )


def measure(
    config: RetrievalBenchmarkConfig, contender: str
) -> tuple[str, Cost, int, dict[str, float]]:
    """Name, cost, number of images, and recalls."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    result: dict[str, float] = {}

    if contender == "ours":
        name = "ours"
        run = _ours(config, OpenClipEncoder(config.model, ""))
    else:
        version = importlib.metadata.version("clip-benchmark")
        is_autocast = contender.endswith("autocast")
        name = f"clip_benchmark {version}" + (", autocast" if is_autocast else "")
        run = _peer(config, is_autocast)

    cost = cost_of(lambda: result.update(run()), 1, CPU)
    return name, cost, len(open_retrieval(config.folder).images), result


def _ours(
    config: RetrievalBenchmarkConfig, encoder: OpenClipEncoder
) -> Callable[[], dict[str, float]]:
    def run() -> dict[str, float]:
        dataset = open_retrieval(config.folder)
        vectors = SetVectors(encoder, dataset, (), UNCUT, config.batch_size)
        tallies = retrieve(dataset, vectors.texts(), vectors.images()).tallies
        names = [f"{way}_r{k}" for way in ("text_to_image", "image_to_text") for k in RECALL_AT]
        return {name: tallies[name].value for name in names}

    return run


def _peer(config: RetrievalBenchmarkConfig, is_autocast: bool) -> Callable[[], dict[str, float]]:
    """What clip_benchmark's command line does between loading the model and printing."""
    import open_clip
    from clip_benchmark.datasets.builder import build_wds_dataset
    from clip_benchmark.metrics.zeroshot_retrieval import evaluate
    from torch.utils.data import DataLoader

    model, _, transform = open_clip.create_model_and_transforms(config.model)
    model.eval()
    tokenizer = open_clip.get_tokenizer(config.model)

    def run() -> dict[str, float]:
        dataset = build_wds_dataset("wds", transform, data_dir=str(config.folder))
        loader = DataLoader(
            dataset.batched(config.batch_size),
            batch_size=None,
            num_workers=config.workers,
            multiprocessing_context="fork",
        )
        ks = list(RECALL_AT)
        recalls = evaluate(model, loader, tokenizer, "cpu", amp=is_autocast, recall_k_list=ks)
        names = {"text_to_image": "image", "image_to_text": "text"}
        return {
            f"{way}_r{k}": recalls[f"{name}_retrieval_recall@{k}"]
            for way, name in names.items()
            for k in ks
        }

    return run


if __name__ == "__main__":
    main(tyro.cli(RetrievalBenchmarkConfig))
