"""A recipe as steps: from pairs to scores, once per arm.

Arms differ in one thing, the selection: the curated one, and others for comparison. The parts that
they share (pool, embeddings, evaluation sets) are built once. Models from elsewhere are only
scored.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from cluster.storage import kind_of
from curation.choice.config import OFF, DuplicatesConfig, LeakageConfig
from curation.config import CurateConfig
from curation.encoders.config import CaptionConfig
from curation.encoders.resolve import resolve
from curation.pairs.config import SourceConfig
from evaluate.config import ImagesConfig
from pipeline.inputs import (
    IMAGE_TASKS,
    OPEN_CLIP,
    backbone_of,
    check_named,
    evaluation_files,
    evaluation_sets,
    is_leakage_off,
    is_scored_only,
    other_labels,
    split_name,
    unscored_sets,
    user_data,
)
from pipeline.recipes import ComparedArm, Recipe
from pipeline.step import Output, RunOf, Step, in_order
from train.config import TrainConfig

POOL = RunOf("curation.quickstart.pool")
EMBED = RunOf("curation.embed")
IMAGES = RunOf("evaluate.images")
CURATE = RunOf("curation.curate")
TOKENIZER = RunOf("train.tokenizer")
TRAIN = RunOf("train.train")
EVALUATE = RunOf("evaluate.evaluate")
REPORT = RunOf("evaluate.report")


def resolve_backbone(recipe: Recipe, level: int = logging.DEBUG) -> Recipe:
    """The recipe with its backbone's name, and the digest and path of its weights.

    This is done once, before anything runs. The choice is logged at `level`.
    """
    backbone = resolve(recipe.embed.backbone, level)
    if backbone.weights:  # workers run in other folders: the path must be absolute
        backbone = replace(backbone, weights=str(Path(backbone.weights).expanduser().resolve()))
    return replace(
        recipe,
        embed=replace(recipe.embed, backbone=backbone),
        evaluate=replace(recipe.evaluate, backbone=backbone),
    )


def build_steps(recipe: Recipe) -> list[Step]:
    """The steps of a recipe. ValueError or FileNotFoundError if something it names is missing."""
    check_named(recipe)
    steps = draw_steps(recipe)
    for step in in_order(steps):
        for path in step.inputs.values():
            if isinstance(path, Path) and not kind_of(path):
                remedy = "name an existing path, or remove it from the recipe"
                raise FileNotFoundError(
                    f"{path} does not exist, and {step.label} needs it: {remedy}"
                )
    return steps


def draw_steps(recipe: Recipe) -> list[Step]:
    """The steps of a recipe, whether or not its data exist."""
    if is_scored_only(recipe):
        return _scored_only(recipe)

    # The quickstart draws its own pairs and evaluation sets; other recipes read the user's.
    pool_step = Step("pool", "pool", POOL, recipe.emoji, runs_beside=True) if recipe.emoji else None
    pairs = Output(pool_step, "train") if pool_step else user_data(recipe, recipe.data.pairs)
    embeddings = Step("embed", "embed", EMBED, recipe.embed, {"source": pairs})
    leakage = _leakage(recipe, pool_step)
    datasets = _datasets(recipe, pool_step)
    further = _images(recipe, pairs)
    arms = [_arm(recipe, "", embeddings, leakage, datasets, further)]

    for name in recipe.compare:
        arms.append(
            _arm(
                replace(recipe, curate=ARMS[name](recipe.curate)),
                f"@{name}",
                embeddings,
                leakage,
                datasets,
                further,
            )
        )

    arms += [
        [_other(recipe, name, label, datasets)] for name, label in other_labels(recipe).items()
    ]

    # The page reads every step; an input's name is an argument of `run`, which allows no @.
    shown = {
        step.label.replace("@", "_"): Output(step)
        for step in (embeddings, *(step for arm in arms for step in arm))
    }
    page = Step("report", "report", REPORT, recipe.report, shown, runs_beside=True)

    return [embeddings, *(step for arm in arms for step in arm), page]


def _scored_only(recipe: Recipe) -> list[Step]:
    """Scores of models from elsewhere, and the report; nothing is embedded or trained."""
    datasets = _datasets(recipe, None)
    scores = [_other(recipe, name, label, datasets) for name, label in other_labels(recipe).items()]
    shown = {step.label.replace("@", "_"): Output(step) for step in scores}
    return [*scores, Step("report", "report", REPORT, recipe.report, shown, runs_beside=True)]


def _arm(
    recipe: Recipe,
    suffix: str,
    embeddings: Step,
    leakage: Mapping[str, Output],
    datasets: Mapping[str, Output | Path],
    further: Mapping[str, Output | Path],
) -> list[Step]:
    """Selection, tokenizer and model of one arm, and its scores if there is an evaluation set."""
    rows = Output(embeddings)
    entries = {"metadata": user_data(recipe, recipe.data.metadata)} if recipe.data.metadata else {}
    scores = {"scores": user_data(recipe, recipe.curate.scores)} if recipe.curate.scores else {}
    chosen_by: dict[str, Output | Path] = {"embeddings": rows, **leakage, **entries, **scores}
    curate_step = Step("curate", f"curate{suffix}", CURATE, recipe.curate, chosen_by)
    selected = {"embeddings": rows, "selection": Output(curate_step)}
    tokenizer_step = Step(
        "tokenizer", f"tokenizer{suffix}", TOKENIZER, recipe.tokenizer, selected, runs_beside=True
    )
    trained_on = {**selected, "tokenizer": Output(tokenizer_step), **further}
    train_step = Step("train", f"train{suffix}", TRAIN, _train_config(recipe), trained_on)
    if not datasets:
        return [curate_step, tokenizer_step, train_step]

    scored = {"model": Output(train_step, "model"), **datasets, **evaluation_files(recipe)}
    return [
        curate_step,
        tokenizer_step,
        train_step,
        Step("evaluate", f"evaluate{suffix}", EVALUATE, recipe.evaluate, scored),
    ]


def _other(recipe: Recipe, name: str, label: str, datasets: Mapping[str, Output | Path]) -> Step:
    """Scores of a model from elsewhere."""
    datasets = {**datasets, **evaluation_files(recipe)}
    if name.startswith(OPEN_CLIP):
        config = replace(recipe.evaluate, open_clip=name.removeprefix(OPEN_CLIP))
        return Step("evaluate", f"evaluate@{label}", EVALUATE, config, datasets)
    model = user_data(recipe, name)
    config = replace(recipe.evaluate, backbone=backbone_of(model, recipe.evaluate.backbone))
    return Step("evaluate", f"evaluate@{label}", EVALUATE, config, {"model": model, **datasets})


def _images(recipe: Recipe, pairs: Output | Path) -> dict[str, Output | Path]:
    """Further inputs of training: the raw pairs, or the embeddings of further views."""
    if recipe.train.live.enabled:
        return {"source": pairs}

    # Curation uses the first embeddings only: further views need neither caption vectors nor
    # thumbnails.
    config = replace(recipe.embed, captions=CaptionConfig(), thumbnail_px=0)
    return {
        f"view_{view:03d}": Output(
            Step("embed", f"embed@view{view}", EMBED, replace(config, view=view), {"source": pairs})
        )
        for view in range(1, recipe.views + 1)
    }


def _train_config(recipe: Recipe) -> TrainConfig:
    """The train config; a live backbone reads the pairs with the embed step's settings."""
    if not recipe.train.live.enabled:
        return recipe.train
    embed = recipe.embed
    weights = embed.backbone.weights
    live = replace(
        recipe.train.live, source=embed.source, precision=embed.precision, weights=weights
    )
    return replace(recipe.train, live=live)


def _uncurated(config: CurateConfig) -> CurateConfig:
    """Every pair of the pool; only leakage is still removed, so that scores are comparable."""
    every_pair = DuplicatesConfig(alike=OFF, captions="drop")
    return replace(config, method="none", duplicates=every_pair, scores=None, min_score=None)


def _leaky(config: CurateConfig) -> CurateConfig:
    """The same curation without the removal of leakage; shows by how much that inflates scores."""
    return replace(config, leakage=LeakageConfig(alike=OFF))


ARMS: dict[ComparedArm, Callable[[CurateConfig], CurateConfig]] = {
    "uncurated": _uncurated,
    "leaky": _leaky,
}


def _leakage(recipe: Recipe, pool: Step | None) -> dict[str, Output]:
    """Embeddings of the evaluation images that the pool is compared with, by input name.

    They are those of every set that is scored, and of the further sets in `data.leakage`; none if
    `data.leakage` is off.
    """
    if is_leakage_off(recipe):
        return {}

    # The comparison needs global features, and hashes of crops and bordered forms as well; the
    # report shows thumbnails.
    embedding = replace(
        recipe.embed, source=SourceConfig(), content="pooled", thumbnail_px=48, hash_forms=True
    )
    sets = {**_datasets(recipe, pool), **unscored_sets(recipe)}

    steps = {}

    for name, data in sets.items():
        task, variant = split_name(name) if name not in unscored_sets(recipe) else (None, "")
        if task == "similarity":  # it has no images
            continue
        config = ImagesConfig(embedding, task, variant, recipe.evaluate.split)
        steps[f"leakage_{name}"] = Output(
            Step("images", f"images@{name}", IMAGES, config, {"source": data}, runs_beside=True)
        )

    return steps


def _datasets(recipe: Recipe, pool: Step | None) -> dict[str, Output | Path]:
    """Evaluation sets by task."""
    return (
        {task: Output(pool, f"{task}.tar") for task in IMAGE_TASKS}
        if pool
        else dict(evaluation_sets(recipe))
    )
