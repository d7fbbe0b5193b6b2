"""The paper's ablation on photographs: which image feature, how many head blocks, curated or not;
and what smaller stored contents cost.

Each arm is the flickr8k recipe with a few fields changed, all in one workspace, so that what arms
share is made once and a second run only prints. Backbone EfficientNet-Lite0 at 160 px, 5 x 5
patches: a stand-in, whose CLS is the maximum of its patches (curation/encoders/efficientnet.py), so
that it carries what their mean does not. One seed, the same steps for all.

    python -m benchmarks.ablation --pairs data/flickr8k.tar [--steps 100] [--workspace ablation]
"""

import argparse
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cluster.session import session
from curation.encoders.config import BackboneConfig
from evaluate.config import SegmentationConfig
from evaluate.tables import percent
from pipeline.graph import build_steps, resolve_backbone
from pipeline.presets import FLICKR8K
from pipeline.recipes import Recipe
from pipeline.runner import run_steps
from pipeline.step import in_order
from pipeline.store import Store
from pipeline.tracking import Tracking
from train.config import VisionConfig

COLUMNS = {
    "text → image R@1": ("retrieval_flickr8k", "text_to_image_r1"),
    "R@10": ("retrieval_flickr8k", "text_to_image_r10"),
    "image → text R@1": ("retrieval_flickr8k", "image_to_text_r1"),
    "Imagenette top-1": ("classification_imagenette", "top1"),
    "CamVid mIoU": ("segmentation_camvid", "miou"),
}
PAPER = (
    "ViT-L/14, ImageNet / COCO text to image / ADE20K (arXiv:2412.16334): CLS alone 78.8 / 30.2 "
    "/ 8.3, concat 79.2 / 34.7 / 18.2, two head blocks 79.7 / 42.1 / 20.4 (batch 65 k), image "
    "curation 81.4 / 45.4 / 20.6 (wider text)"
)


def main() -> None:
    """Run what is missing, then print one table."""
    options = _options()
    logging.getLogger().setLevel(logging.WARNING)
    console = Console()
    store = Store(options.workspace)
    table = Table(
        "arm", *COLUMNS, title=f"{options.steps} steps of {options.batch_size}, %", caption=PAPER
    )
    base = base_recipe(options)

    with session():
        for name, recipe in arms(base):
            steps = [step for step in build_steps(recipe) if step.name != "report"]
            run_steps(
                steps,
                store,
                console,
                lambda recipe=recipe: Tracking(store.workspace, "ablation", recipe, {}),
            )
            for step in in_order(steps):
                if step.name == "evaluate":
                    results = json.loads((store.folder(step) / "results.json").read_text())
                    suffix = (
                        "uncurated" if "@" in step.label else "curated" if recipe.compare else ""
                    )
                    table.add_row(f"{name} {suffix}", *_cells(results))

    console.print(table)


def base_recipe(options: argparse.Namespace) -> Recipe:
    """All tokens in float16, concat, two blocks."""
    backbone = BackboneConfig(name="efficientnet-lite0", image_size=160)
    sets = {"classification": ("imagenette.tar",), "segmentation": ("camvid.tar",)}
    recipe = replace(
        FLICKR8K,
        name="ablation",
        data=replace(FLICKR8K.data, pairs=options.pairs, **sets),
        embed=replace(FLICKR8K.embed, backbone=backbone, content="tokens"),
        curate=replace(FLICKR8K.curate, share=0.8),
        train=replace(
            FLICKR8K.train,
            batch_size=options.batch_size,
            num_steps=options.steps,
            val_every=options.steps,
        ),
        evaluate=replace(
            FLICKR8K.evaluate,
            backbone=backbone,
            segmentation=SegmentationConfig(short_side=320, window=160, stride=160),
            bootstrap_samples=100,
        ),
        compare=("uncurated",),
    )

    return resolve_backbone(recipe)


def arms(base: Recipe) -> Iterator[tuple[str, Recipe]]:
    """Names and recipes."""
    for pooling in ("concat", "cls", "mean"):
        for blocks in (0, 1, 2):
            vision = VisionConfig(blocks=blocks, pooling=pooling)
            yield f"{pooling}, {blocks} blocks", with_head(base, vision)

    for content, dtype, blocks in (
        ("tokens", "int8", 2),
        ("grid", "float16", 2),
        ("pooled", "float16", 0),
    ):
        stored = replace(
            base, compare=(), embed=replace(base.embed, content=content, dtype=dtype, grid=2)
        )
        yield (
            f"concat, {blocks} blocks, stored as {content} {dtype}",
            with_head(stored, VisionConfig(blocks=blocks)),
        )


def with_head(recipe: Recipe, vision: VisionConfig) -> Recipe:
    return replace(
        recipe, train=replace(recipe.train, model=replace(recipe.train.model, vision=vision))
    )


def _cells(results: list[dict]) -> list[str]:
    metrics = {result["set"]: result["metrics"] for result in results}
    return [percent(metrics[benchmark][metric]["value"]) for benchmark, metric in COLUMNS.values()]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pairs",
        required=True,
        help="Flickr8k in Karpathy's format, the evaluation tars beside it",
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--workspace", type=Path, default=Path("ablation"))

    return parser.parse_args()


if __name__ == "__main__":
    main()
