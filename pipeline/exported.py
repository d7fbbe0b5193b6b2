"""The inputs of an export: a model of a recipe or a folder, its backbone, and its card's facts."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from cluster.files import sha256_file
from curation.encoders.backbone import Backbone, load_backbone
from curation.encoders.config import BackboneConfig, geometry_of
from curation.shards.schema import EmbeddingSpec
from curation.shards.selection import SELECTION, read_selection
from evaluate.results import flat_rows, read_results
from evaluate.tables import METRIC_NAMES, shown
from pipeline.recipes import Recipe
from pipeline.step import Step, in_order
from pipeline.store import Store
from train.export.folder import LoadedModel
from train.export.published import read_model
from train.export.subject import BackboneForm, Facts, Score, Subject
from train.loop import MODEL

FORMS = get_args(BackboneForm)


def folder_subject(recipe: Recipe, folder: Path, options: Namespace) -> Subject:
    """The model of a folder, with the backbone that it names.

    Published weights name no backbone: they get the recipe's, if its width fits.
    """
    weights = sorted(path for path in folder.glob("*") if path.suffix in (".safetensors", ".pth"))
    loaded = read_model(folder)
    facts = Facts(source={path.name: sha256_file(path) for path in weights})
    return _subject(recipe, loaded, facts, options)


def step_subject(
    recipe: Recipe, steps: Sequence[Step], step: Step, store: Store, options: Namespace
) -> Subject:
    """The model of a finished train step, with the selection and the scores of its arm."""
    folder = store.folder(step)
    source = {"recipe": recipe.name, "step": step.label, "fingerprint": folder.name}

    # "train@uncurated" belongs to "curate@uncurated" and "evaluate@uncurated".
    arm = step.label.removeprefix("train")
    by_label = {each.label: each for each in in_order(steps)}

    facts = Facts(
        source=source,
        data="the recipe's own emoji" if recipe.emoji else Path(recipe.data.pairs).name,
        scores=_scores(store, by_label.get(f"evaluate{arm}")),
    )
    selection = store.folder(by_label[f"curate{arm}"])

    if (selection / SELECTION).is_file():
        digest = sha256_file(selection / SELECTION)
        facts = replace(
            facts, num_pairs=len(read_selection(selection).rows), selection_sha256=digest
        )

    return _subject(recipe, read_model(folder / MODEL), facts, options)


def _scores(store: Store, step: Step | None) -> tuple[Score, ...]:
    """The scores of the arm's evaluate step; none when it has not run."""
    if step is None or store.record(step) is None:
        return ()
    return read_scores(store.folder(step))


def read_scores(folder: Path) -> tuple[Score, ...]:
    """The scores in an evaluation's folder, without the sets that could not be scored."""
    rows = [row for result in read_results(folder) for row in flat_rows(result) if not row["error"]]
    return tuple(
        Score(
            evaluation_set=row["set"],
            metric=METRIC_NAMES.get(row["metric"], row["metric"]),
            value=shown(row["metric"], row["value"]),
            interval=f"{shown(row['metric'], row['low'])} to {shown(row['metric'], row['high'])}",
            protocol=row["protocol"],
        )
        for row in rows
    )


def _subject(recipe: Recipe, loaded: LoadedModel, facts: Facts, options: Namespace) -> Subject:
    spec = loaded.spec
    ours = recipe.embed.backbone

    # Published weights do not name their backbone; the width is all that can be compared.
    if not spec.backbone and geometry_of(ours).dim == spec.dim:
        named = EmbeddingSpec.for_content(
            geometry_of(ours),
            "tokens",
            0,
            backbone=ours.name,
            digest=ours.digest,
            description=spec.description,
        )
        loaded = loaded._replace(spec=named)

    form: BackboneForm = options.backbone or "copy"
    if form not in FORMS:
        raise ValueError(
            f"--backbone {form}: one of {', '.join(FORMS)} is needed; leave it out for a copy"
        )

    subject = Subject(loaded, facts=facts, backbone_form=form, has_int8=options.int8)
    try:
        return replace(subject, backbone=_backbone(loaded.spec, ours))
    except (FileNotFoundError, ValueError) as error:
        return replace(subject, problem=str(error))


def _backbone(spec: EmbeddingSpec, ours: BackboneConfig) -> Backbone:
    """The backbone that a model was trained on, on the CPU.

    FileNotFoundError or ValueError if it is not named or cannot be loaded.
    """
    if not spec.backbone:
        raise ValueError(
            f"the model does not name it, and the recipe's backbone, {ours.name}, does not have "
            f"its width, {spec.dim}"
        )

    # The recipe's weights serve only if they are the same bytes; otherwise they are looked up.
    weights = ours.weights if spec.digest == ours.digest else ""
    return load_backbone(BackboneConfig(spec.backbone, weights, spec.digest, spec.image_size)).cpu()
