"""A run as a plan: steps and their state, tensor sizes, FLOP, bytes and GPU-hours.

Every estimate is arithmetic and states its assumptions; durations come from earlier runs. Only
`--measure` times anything: reading and the backbone, in pipeline/measure.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.storage import kind_of
from curation.encoders.config import backbone_flop, geometry_of
from curation.pairs.sources import check, open_source
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

SUSTAINED_TFLOPS = 400.0  # bfloat16 on one H100
CAPTION_TOKENS = 20.0  # mean length of a web caption with end-of-text
PADDED_TOKENS = 77.0  # CLIP's context, to which captions are usually padded


def print_plan(
    recipe: Recipe,
    store: Store,
    console: Console,
    force: Sequence[str] = (),
    only: Sequence[str] = (),
    rows: int = 0,
    is_measured: bool = False,
) -> list[str]:
    """Print the plan; returns the problems that keep the recipe from running.

    It reads records and starts nothing. `rows` is the number of pairs in the pool, for a pool that
    is not embedded yet. With `is_measured`, reading and the backbone are timed on this machine,
    which takes some seconds.
    """
    console.print(f"[b]{escape(recipe.name)}[/b]: {escape(recipe.description)}\n")
    pool_rows = rows
    problems = []

    try:
        recipe = resolve_backbone(recipe)
        problems = _problems(recipe, store)
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

        # With metadata, captions are searched for its entries instead of being clustered.
        clustered_dim = 0 if recipe.data.metadata else recipe.embed.captions.dim
        console.print(curation_table(recipe.curate, pool_rows, full.dim, clustered_dim))
    if is_measured:
        from pipeline.measure import print_rates  # torch, and the backbone itself

        print_rates(recipe.embed, store.workspace, console)

    return problems


def _problems(recipe: Recipe, store: Store) -> list[str]:
    """Everything that keeps a recipe from running, so that one look is enough."""
    problems = list[str]()
    for look in (build_steps, check_inputs, partial(_check_unread_pairs, store)):
        try:
            look(recipe)
        except (ValueError, OSError) as error:
            problems += [line for line in str(error).splitlines() if line not in problems]
    return problems


def _check_unread_pairs(store: Store, recipe: Recipe) -> None:
    """ValueError where the pairs are still to be embedded, and nothing could be read of them."""
    embed = next((step for step in draw_steps(recipe) if step.name == "embed"), None)
    source = embed.inputs["source"] if embed else None
    if embed and isinstance(source, Path) and kind_of(source) and not store.record(embed):
        check(recipe.embed.source, open_source(recipe.embed.source, source))


def stored_spec(recipe: Recipe, content: Content, dtype: Dtype) -> EmbeddingSpec:
    """The format in which `content` stores the tokens of one image of the recipe's backbone."""
    geometry = geometry_of(recipe.embed.backbone)

    # Tables also show contents that the recipe does not use, whose grid may exceed the backbone's.
    grid = min(recipe.embed.grid, *geometry.grid)
    return EmbeddingSpec.for_content(geometry, content, grid, dtype=dtype)


def _names_table(steps: Sequence[Step]) -> Table:
    """The steps and their inputs, for a recipe that has no fingerprints yet."""
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
    """The steps with the folder, state and duration of each."""
    table = Table("step", "output", "state", "took", title="Steps", title_justify="left", box=None)

    # Records come oldest first, so the last one with a label is the latest. Its duration is shown
    # for a step that has yet to run with the present settings.
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

    # Shape and bytes per element: pixels and features float32, tokens and captions 16 bits.
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
    """FLOP per pair in one training step."""

    backbone: float
    text: float
    head: float

    @property
    def total(self) -> float:
        """FLOP of all parts."""
        return self.backbone + self.text + self.head


def _arithmetic_table(recipe: Recipe, model: PaperModel, full: EmbeddingSpec, rows: int) -> Table:
    """FLOP of the usual way of training, and of the recipe's.

    The usual way runs the backbone in each step and pads captions. If the recipe stores tokens, a
    third row is the embedding of `rows` pairs, which the last ratio includes.
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
    factors = (
        f"{recipe.train.num_steps:,} steps of {recipe.train.batch_size:,}"
        + f", {models} models" * (models > 1)
    )
    title = (
        f"\nArithmetic: training on {pairs / 1e6:,.2f} M pairs ({factors}); assumed: "
        f"{CAPTION_TOKENS:.0f} tokens per caption, {SUSTAINED_TFLOPS:.0f} TFLOP/s per GPU"
    )
    columns = ("step", "backbone", "text", "head", "GFLOP per pair", "total FLOP", "GPU-hours")
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

    # How many times more the usual way computes: per pair, and in all with the embedding.
    whole = reference.total * pairs / (ours.total * pairs + embedding.total * rows)
    table.add_row("ratio", "", "", "", f"{reference.total / ours.total:.1f}", f"{whole:.1f}", "")
    return table


def _storage_table(recipe: Recipe, rows: int) -> Table:
    """Disk space of each way to store, and the read rate above which storing is faster.

    A GPU runs the backbone on `rate` images per second. Reading is faster if it delivers the bytes
    of that many pairs in a second.
    """
    rate = SUSTAINED_TFLOPS * 1e12 / backbone_flop(recipe.embed.backbone)
    title = f"\nStore or recompute: {rows:,} pairs"
    columns = ("content", "bytes per pair", "all", "reading beats recomputing above")
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
        limit = f"{human_bytes(size * rate)}/s per GPU"
        table.add_row(f"{content} {dtype}{mark}", f"{size:,}", human_bytes(size * rows), limit)

    return table


def human_bytes(count: float | int) -> str:
    """Bytes with three digits and a decimal unit: 1,234,567 is '1.23 MB'."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} PB" if count < 999.5 else f"{count:,.0f} PB"
