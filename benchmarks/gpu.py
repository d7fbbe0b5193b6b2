"""Everything that only a GPU can tell: the GPU tests, then step, loss, attention, embedding and
k-means.

The result of each part is written to one JSON file as soon as it is there. A run that was
interrupted continues with the parts that are missing; parts of another commit or device run again.
At its end the command prints the table for docs/benchmarks.md. `--tiny` runs every part on the CPU
with tiny sizes, to test the command.

    python -m benchmarks.gpu [--out gpu.json] [--parts step loss]
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import torch
import tyro

from benchmarks import attention, loss, step
from benchmarks.attention import AttentionConfig
from benchmarks.cost import alone, device_name
from benchmarks.loss import LossBenchmarkConfig
from benchmarks.step import StepConfig
from cluster.files import write_atomic
from curation.clusters.nearest import Assigner
from curation.clusters.vectors import to_unit
from curation.config import EmbedConfig
from curation.encoders.config import BackboneConfig
from pipeline.measure import measure as measure_rates
from train.config import ParallelConfig
from train.flop import peak_tflops

ROOT = Path(__file__).resolve().parent.parent
WORDS = "a dog on the beach two children play with red ball in snow man"
MEAN_WORDS = 10.8  # per caption, as in Flickr8k

Value = float | str | None
Result = Mapping[str, Value]


@dataclass(frozen=True)
class GpuConfig:
    """What runs, and where the results go."""

    out: Path = Path("gpu.json")
    """File that receives the results, part by part."""
    parts: tuple[str, ...] = ("tests", "step", "loss", "attention", "embed", "kmeans")
    """Which parts to run."""
    captions: Path | None = None
    """Text file with one caption per line, or a Karpathy JSON: real lengths. None: lengths are
    drawn.
    """
    tiny: bool = False
    """Run on the CPU with tiny sizes, to test this command."""

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.tiny else "cuda")


def main(config: GpuConfig) -> int:
    """Run the parts that are missing. The exit code is 1 if one failed."""
    unknown = sorted(set(config.parts) - PARTS.keys())
    if unknown:
        raise SystemExit(f"there is no part {unknown[0]!r}: the parts are {', '.join(PARTS)}")
    if not config.tiny and not torch.cuda.is_available():
        raise SystemExit(
            "torch finds no GPU here: run this on a machine with one, or with --tiny on the CPU"
        )

    results = read_results(config)
    for part in config.parts:
        if "error" in results["parts"].get(part, {"error": ""}):
            print(f"\n== {part}", flush=True)
            results["parts"][part] = run_part(config, part)
            write_atomic(config.out, json.dumps(results, indent=1) + "\n")

    print(
        f"\n{results['device']}, torch {results['torch']}, commit {results['commit']}; all "
        f"results: {config.out}\n"
    )
    print(table(results["parts"]))

    return int(any("error" in result for result in results["parts"].values()))


def read_results(config: GpuConfig) -> dict:
    """The results of an earlier run of this commit on this device; without one, an empty set."""
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    header = {
        "device": device_name(config.device),
        "torch": torch.__version__,
        "commit": subprocess.run(
            describe, capture_output=True, text=True, check=False
        ).stdout.strip(),
    }
    earlier = json.loads(config.out.read_text()) if config.out.is_file() else {}
    is_same = all(earlier.get(name) == value for name, value in header.items())

    return earlier if is_same else {**header, "parts": {}}


def run_part(config: GpuConfig, part: str) -> dict[str, Value]:
    """The numbers of a part with its time; a failure becomes the field `error`."""
    started_s = time.monotonic()
    try:
        result = dict(PARTS[part](config))
    except Exception as error:
        # A part that fails must not lose the others; the error is its result.
        print(f"{part} failed: {error}")
        result = {"error": f"{type(error).__name__}: {error}"}
    return {
        **result,
        "took_s": round(time.monotonic() - started_s, 1),
        "finished": datetime.now(UTC).isoformat(),
    }


def run_tests(config: GpuConfig) -> Result:
    """`pytest -m gpu`."""
    files = sorted(map(str, ROOT.glob("tests/*/test_*_on_gpu.py")))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        *files[: 1 if config.tiny else None],
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-500:]
    print(last)
    if done.returncode:
        raise RuntimeError(f"pytest ended with {done.returncode}: {last}")

    return {"summary": last}


def run_step(config: GpuConfig) -> Result:
    """The whole training step at the paper's size, against the usual step: pairs per second and
    MFU.
    """
    sizes = StepConfig(
        captions_file(config),
        batch_size=384,
        text_width=1280,
        text_layers=24,
        vision_blocks=2,
        backbone="dinov2-vitl14-reg",
        device="cuda",
        parallel=ParallelConfig(dtype="bfloat16", compile=True),
        repeats=8,
    )

    if config.tiny:
        sizes = StepConfig(
            sizes.captions,
            batch_size=2,
            text_width=64,
            text_layers=1,
            backbone="random-vit",
            repeats=1,
        )

    timings = step.compare(sizes)
    large = (
        {} if config.tiny else step.compare(replace(sizes, batch_size=1536, contenders=("ours",)))
    )

    result: dict[str, Value] = {}

    for name, size, timing in (
        *((name, sizes.batch_size, timing) for name, timing in timings.items()),
        *((name, 1536, timing) for name, timing in large.items()),
    ):
        label = f"{name}, {size} pairs"
        result[f"{label}: pairs/s"] = size / timing.cost.wall_s
        result[f"{label}: MB"] = timing.cost.peak_mb
        peak = None if config.tiny else peak_tflops(torch.cuda.get_device_name())
        result[f"{label}: MFU"] = timing.flop / timing.cost.seconds / 1e12 / peak if peak else None

    result["times the reference"] = timings["reference"].cost.wall_s / timings["ours"].cost.wall_s
    return result


def run_loss(config: GpuConfig) -> Result:
    """The contrastive loss by tiles against full logits, B = 16,384."""
    sizes = LossBenchmarkConfig(16384, 512, repeats=5, device="cuda")
    if config.tiny:
        sizes = LossBenchmarkConfig(
            64, 16, repeats=1, contenders=("reference float32", "ours float32")
        )
    rows = loss.compare(sizes)
    times = {f"{name}: ms": 1e3 * row.seconds for name, row in rows.items()}
    return times | {f"{name}: MB": row.peak_mb for name, row in rows.items()}


def run_attention(config: GpuConfig) -> Result:
    """Attention over packed captions: our kernel, torch's varlen kernel, xformers, padding."""
    sizes = AttentionConfig(captions_file(config))
    if config.tiny:
        sizes = replace(
            sizes, batch_size=8, heads=1, repeats=1, passes=1, vocab_size=300, device="cpu"
        )
    return {f"{name}: ms": row for name, row in alone(attention.compare, sizes).items()}


def run_embed(config: GpuConfig) -> Result:
    """Images per second through ViT-L/14, and whether storing its tokens pays."""
    backbone = BackboneConfig("dinov2-vitl14-reg", image_size=224)
    if config.tiny:
        backbone = BackboneConfig("random-vit", image_size=56)

    embed = EmbedConfig(backbone=backbone, content="tokens", batch_size=8 if config.tiny else 256)
    with tempfile.TemporaryDirectory() as folder:
        rates = alone(measure_rates, embed, Path(folder))

    print(
        f"backbone {rates.backbone:,.0f} images/s; reading shuffled from disk "
        f"{rates.read_disk:,.0f} pairs/s"
    )
    return {
        "backbone: images/s": rates.backbone,
        "write: pairs/s": rates.write,
        "read from disk: pairs/s": rates.read_disk,
        "storing pays from: epochs": rates.break_even_epochs
        if np.isfinite(rates.break_even_epochs)
        else None,
    }


def run_kmeans(config: GpuConfig) -> Result:
    """The nearest centroid of each row on the GPU: ours, exact, and faiss-gpu, with the share of
    the peak.
    """
    rows, dim, clusters = (2000, 32, 20) if config.tiny else (1_000_000, 1024, 10_000)
    result: dict[str, Value] = {}
    for name in ("ours, exact labels", "faiss-gpu"):
        try:
            seconds = alone(time_assignment, name, rows, dim, clusters)
        except BrokenProcessPool:  # faiss ends its process where it has no kernel for the GPU
            seconds = "its process died"

        result[f"{name}: s per pass"] = seconds
        print(f"{name:20s} {seconds} s per pass: {rows:,} x {dim}, {clusters:,} centroids")
        peak = None if config.tiny else peak_tflops(torch.cuda.get_device_name())
        if isinstance(seconds, float) and peak:
            result[f"{name}: share of the bfloat16 peak"] = (
                2.0 * rows * dim * clusters / seconds / 1e12 / peak
            )

    return result


def time_assignment(contender: str, rows: int, dim: int, clusters: int) -> float | str:
    """Seconds of the contender's second pass over the same rows, which lie in host memory."""
    if contender == "faiss-gpu" and not getattr(faiss, "get_num_gpus", int)():
        return "not installed: only faiss-cpu is"

    generator = np.random.default_rng(0)
    points = to_unit(generator.standard_normal((rows, dim), np.float32))
    centroids = points[:clusters].copy()

    run: Callable[[], object]
    if contender == "faiss-gpu":
        resources = faiss.StandardGpuResources()
        metric = faiss.METRIC_INNER_PRODUCT
        run = partial(faiss.knn_gpu, resources, points, centroids, 1, metric=metric)
    else:
        run = partial(Assigner(centroids, unit=True, engine="torch"), points)

    run()
    started_s = time.perf_counter()
    run()
    return time.perf_counter() - started_s


def captions_file(config: GpuConfig) -> Path:
    """The captions that were given, or random ones with Flickr8k's mean length."""
    if config.captions is not None:
        return config.captions

    path = Path(tempfile.gettempdir()) / "dinotxt-benchmark-captions.txt"
    draw = random.Random(0)
    words = WORDS.split()
    lengths = np.maximum(1, np.random.default_rng(0).poisson(MEAN_WORDS, 20_000))
    lines = (
        " ".join(draw.choices(words, k=int(length))) + f" {number}"
        for number, length in enumerate(lengths)
    )
    write_atomic(path, "\n".join(lines) + "\n")

    return path


def table(parts: Mapping[str, Mapping[str, Value]]) -> str:
    """The results as the rows of a Markdown table."""
    rows = ["| part | what | value |", "|---|---|---|"]
    for part, result in parts.items():
        for name, value in result.items():
            if name not in ("finished", "took_s"):
                shown = f"{value:,.4g}" if isinstance(value, float) else str(value)
                rows.append(f"| {part} | {name} | {shown} |")
    return "\n".join(rows)


PARTS: dict[str, Callable[[GpuConfig], Result]] = {
    "tests": run_tests,
    "step": run_step,
    "loss": run_loss,
    "attention": run_attention,
    "embed": run_embed,
    "kmeans": run_kmeans,
}

if __name__ == "__main__":
    sys.exit(main(tyro.cli(GpuConfig)))
