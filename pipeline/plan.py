"""What a run would do, before it does it: steps and what is cached, tensor sizes, FLOP, bytes,
GPU-hours.

Every estimate is arithmetic from pipeline/costs.py and says what it assumes; durations are those of
earlier runs. Only `--measure` times anything: reading and the backbone, in pipeline/measure.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from curation.encoders.config import backbone_flop, geometry_of
from curation.shards.codec import STORED_TYPES, Dtype
from curation.shards.schema import Content, EmbeddingSpec
from pipeline.costs import (
    ADAMW_BYTES,
    PaperModel,
    gpu_hours,
)
from pipeline.curation_costs import curation_table
from pipeline.graph import build_steps, draw_steps, resolve_backbone
from pipeline.inputs import check_inputs, is_leakage_off
from pipeline.recipes import Recipe
from pipeline.record import Record
from pipeline.runner import pending
from pipeline.step import Output, Step, in_order
from pipeline.store import Store
from train.flop import TRAINING, head_flop, text_flop

SUSTAINED_TFLOPS = 400.0  # bf16 on one H100
CAPTION_TOKENS = 20.0  # mean of a web caption with end-of-text
PADDED_TOKENS = 77.0


def print_plan(
    recipe: Recipe,
    store: Store,
    console: Console,
    force: Sequence[str] = (),
    only: Sequence[str] = (),
    rows: int = 0,
    is_measured: bool = False,
) -> list[str]:
    """Print the plan; the problems that keep what the recipe names from running. Reads records,
    starts nothing.

    `rows`: pairs of the pool where no record tells. When it is to be measured, reading and the
    backbone are timed on this machine, which takes some seconds.
    """
    console.print(f"[b]{recipe.name}[/b]: {escape(recipe.description)}\n")
    pool_rows = rows
    problems = []

    try:
        recipe = resolve_backbone(recipe)
        problems = _problems(recipe)
        if problems:
            raise ValueError("\n".join(problems))
        steps = in_order(build_steps(recipe))
        if is_leakage_off(recipe):
            console.print(
                "[yellow]data.leakage is off: evaluation images may be trained on[/yellow]\n"
            )
        console.print(_steps_table(steps, store, pending(steps, store, force, only)))
        embedded = next((store.record(step) for step in steps if step.label == "embed"), None)
        pool_rows = rows or (int(embedded.summary.get("rows", 0)) if embedded else 0)
    except (ValueError, OSError) as error:
        console.print(f"[yellow]cannot run yet:[/yellow] {escape(str(error))}\n", soft_wrap=True)
        console.print(_names_table(in_order(draw_steps(recipe))))

    full = stored_spec(recipe, "tokens", "float16")
    model = PaperModel(recipe.train.model, recipe.tokenizer.vocab_size, full.dim)
    console.print(_sizes_table(recipe, model, full))
    console.print(_arithmetic_table(recipe, model, full, pool_rows))

    if pool_rows:
        console.print(_storage_table(recipe, pool_rows))
        clustered_dim = (
            0 if recipe.data.metadata else recipe.embed.captions.dim
        )  # entries are sought in the words
        console.print(curation_table(recipe.curate, pool_rows, full.dim, clustered_dim))
    if is_measured:
        from pipeline.measure import print_rates  # torch, and the backbone itself

        print_rates(recipe.embed, store.workspace, console)

    return problems


def _problems(recipe: Recipe) -> list[str]:
    """What keeps a recipe from running: all of it, so that one look is enough."""
    problems = list[str]()
    for check in (build_steps, check_inputs):
        try:
            check(recipe)
        except (ValueError, OSError) as error:
            problems += str(error).splitlines()
    return problems


def stored_spec(recipe: Recipe, content: Content, dtype: Dtype) -> EmbeddingSpec:
    """What a content keeps of the tokens that the recipe's backbone gives for one image."""
    geometry = geometry_of(recipe.embed.backbone)
    grid = min(
        recipe.embed.grid, *geometry.grid
    )  # contents that the recipe does not use are shown as well
    return EmbeddingSpec.for_content(geometry, content, grid, dtype=dtype)


def _names_table(steps: Sequence[Step]) -> Table:
    """The steps and what they take, where no fingerprint can be had yet."""
    table = Table("step", "takes", title="Steps", title_justify="left", box=None)
    for step in steps:
        table.add_row(
            step.label, escape(", ".join(_taken(source) for source in step.inputs.values()))
        )
    return table


def _taken(source: Output | Path) -> str:
    if isinstance(source, Output):
        return source.step.label
    return "--data.pairs, not set yet" if source == Path() else str(source)


def _steps_table(steps: Sequence[Step], store: Store, todo: Sequence[Step]) -> Table:
    table = Table("step", "output", "state", "took", title="Steps", title_justify="left", box=None)
    latest: dict[str, Record] = {record.label: record for record in store.records()}
    for step in steps:
        done = store.record(step)
        before = latest.get(step.label)
        begun = "continues" if store.partial(step).exists() else "to run"
        state = begun if step in todo else "done" if done else "left out"
        recorded = done or before
        took = f"{recorded.seconds:.1f} s" if recorded else ""
        table.add_row(
            step.label,
            store.folder(step).name,
            state,
            took if done else f"{took} last time" if took else "",
        )

    return table


def _sizes_table(recipe: Recipe, model: PaperModel, full: EmbeddingSpec) -> Table:
    embed = recipe.embed
    train = recipe.train
    kept = stored_spec(recipe, embed.content, embed.dtype)
    feature = model.feature_dim
    trained = model.num_weights
    table = Table("tensor", "shape", "size", title="\nSizes", title_justify="left", box=None)
    batch = train.batch_size
    side = embed.backbone.image_size

    for name, shape, bytes_each in (
        ("image", (batch, 3, side, side), 4),
        ("backbone tokens", (batch, full.num_image_tokens, full.dim), 2),
        (
            f"stored tokens ({embed.content}, {embed.dtype})",
            (batch, kept.num_image_tokens, kept.dim),
            STORED_TYPES[embed.dtype].itemsize,
        ),
        ("packed captions", (int(batch * CAPTION_TOKENS), train.model.text.width), 2),
        ("image and text features", (2, batch, feature), 4),
        ("logits, never held whole", (batch, batch), 4),
        ("trained weights with AdamW state", (trained,), ADAMW_BYTES),
    ):
        table.add_row(
            name,
            " x ".join(f"{length:,}" for length in shape),
            human_bytes(math.prod(shape) * bytes_each),
        )

    table.add_row("text encoder", f"{model.text_weights:,} weights", "")
    table.add_row("vision head", f"{model.head_weights:,} weights", "")
    return table


@dataclass(frozen=True)
class StepCost:
    """FLOP per pair of one training step."""

    backbone: float
    text: float
    head: float

    @property
    def total(self) -> float:
        return self.backbone + self.text + self.head


def _arithmetic_table(recipe: Recipe, model: PaperModel, full: EmbeddingSpec, rows: int) -> Table:
    """Training as it is usually done, as the recipe does it, and, where tokens are stored,
    embedding `rows` pairs.
    """
    is_live = recipe.train.live.enabled
    kept = full if is_live else stored_spec(recipe, recipe.embed.content, recipe.embed.dtype)
    backbone = backbone_flop(recipe.embed.backbone)
    reference = StepCost(
        backbone,
        TRAINING * text_flop(model, PADDED_TOKENS),
        TRAINING * head_flop(model, full.num_image_tokens),
    )
    ours = StepCost(
        backbone if is_live else 0.0,
        TRAINING * text_flop(model, CAPTION_TOKENS),
        TRAINING * head_flop(model, kept.num_image_tokens),
    )
    models = 1 + len(recipe.compare)
    pairs = recipe.train.batch_size * recipe.train.num_steps * models
    seen = (
        f"{recipe.train.num_steps:,} steps of {recipe.train.batch_size:,}"
        + f", {models} models" * (models > 1)
    )
    title = (
        f"\nArithmetic: {pairs / 1e6:,.2f} M pairs seen ({seen}); assumed: {CAPTION_TOKENS:.0f} "
        f"tokens a caption, {SUSTAINED_TFLOPS:.0f} TFLOP/s a GPU"
    )
    columns = ("step", "backbone", "text", "head", "GFLOP a pair", "total FLOP", "GPU-hours")
    table = Table(*columns, title=title, title_justify="left", box=None)
    embedding = StepCost(0.0 if is_live else backbone * (1 + recipe.views), 0.0, 0.0)
    lines = [
        ("live backbone, padded to 77", reference, pairs),
        (f"{'live backbone' if is_live else 'stored tokens'}, packed captions", ours, pairs),
        (f"embedding {rows:,} pairs, once", embedding, rows),
    ]

    for name, cost, times in lines if rows and embedding.total else lines[:2]:
        cells = [f"{part / 1e9:,.3g}" for part in (cost.backbone, cost.text, cost.head, cost.total)]
        total = cost.total * times
        table.add_row(name, *cells, f"{total:.3g}", f"{gpu_hours(total, SUSTAINED_TFLOPS):,.3g}")

    whole = reference.total * pairs / (ours.total * pairs + embedding.total * rows)
    table.add_row("ratio", "", "", "", f"{reference.total / ours.total:.1f}", f"{whole:.1f}", "")
    return table


def _storage_table(recipe: Recipe, rows: int) -> Table:
    """Disk for each way to store, and the read rate below which a GPU would rather recompute."""
    rate = SUSTAINED_TFLOPS * 1e12 / backbone_flop(recipe.embed.backbone)
    title = f"\nStore or recompute: {rows:,} pairs"
    columns = ("content", "bytes a pair", "all", "reading beats recomputing above")
    table = Table(*columns, title=title, title_justify="left", box=None)
    ways: tuple[tuple[Content, Dtype], ...] = (
        ("pooled", "float16"),
        ("grid", "int8"),
        ("grid", "float16"),
        ("tokens", "int8"),
        ("tokens", "float16"),
    )

    for content, dtype in ways:
        size = stored_spec(recipe, content, dtype).row_bytes()
        mark = " (chosen)" if (content, dtype) == (recipe.embed.content, recipe.embed.dtype) else ""
        limit = f"{human_bytes(size * rate)}/s a GPU"
        table.add_row(f"{content} {dtype}{mark}", f"{size:,}", human_bytes(size * rows), limit)

    return table


def human_bytes(count: float | int) -> str:
    """1234567 -> '1.2 MB'."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} PB" if count < 999.5 else f"{count:,.0f} PB"
