"""Pairs, evaluation sets and models that the user names, as files, checked before anything runs.

A bare name is looked up beside the pairs. Sets are named after their file stems, models after their
folders.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.storage import absolute, kind_of
from cluster.words import nearest
from curation.encoders.config import BackboneConfig
from evaluate.image_lists import list_images
from evaluate.prompts import AUTO, TEMPLATES_INPUT, named_templates, read_templates
from evaluate.sets.kinds import IMAGE_TASKS, TASKS, Task, split_name
from evaluate.sets.known import (
    open_classification,
    open_retrieval,
    open_segmentation,
    open_similarity,
    tasks_of,
)
from evaluate.wordnet import WORDNET_INPUT, check_wordnet
from pipeline.recipes import Recipe
from train.export.names import CONFIG, is_model

OPEN_CLIP = "open_clip:"
LEAKAGE_OFF = "off"


def check_named(recipe: Recipe) -> None:
    """ValueError for a recipe without pairs, or with models that are none or cannot be scored."""
    if not recipe.emoji and not recipe.data.pairs and not is_scored_only(recipe):
        raise ValueError(
            f"recipe {recipe.name} has no pairs: set --data.pairs to a folder, tar, Parquet "
            "folder or caption JSON (the README's 'Your own data' shows each)"
        )
    if recipe.others and not recipe.emoji and not evaluation_sets(recipe):
        raise ValueError(
            f"others: {recipe.others[0]} cannot be scored, because recipe {recipe.name} has no "
            "evaluation set: at least one is needed; set "
            f"--{', --'.join(f'data.{task}' for task in TASKS)}, or remove the model"
        )

    for name in recipe.others:
        _check_other(recipe, name)


def is_scored_only(recipe: Recipe) -> bool:
    """Whether a recipe only scores models from elsewhere: it has models and sets, but no pairs."""
    has_sets = any(getattr(recipe.data, task) for task in TASKS)
    return not recipe.emoji and not recipe.data.pairs and bool(recipe.others) and has_sets


def named_sets(names: Sequence[str]) -> dict[Task, tuple[str, ...]]:
    """The sets of `--set [TASK:]PATH[@VARIANT]` by task.

    ValueError if the files fit no task, or several, and none is named.
    """
    sets: dict[Task, list[str]] = {task: [] for task in TASKS}
    for name in names:
        task, colon, path = name.partition(":")
        if colon and task in TASKS:
            sets[task].append(path)  # type: ignore[index]  # one of TASKS
            continue

        # A path may itself contain an @: it names a variant only if the whole is no path.
        whole = Path(name)
        tasks = tasks_of(whole if kind_of(whole) else Path(name.rpartition("@")[0] or name))
        if len(tasks) != 1:
            found = f"can be a set for {' and '.join(tasks)}" if tasks else "is no known set"
            raise ValueError(
                f"--set {name}: it {found}; name the task before it: "
                + ", ".join(f"--set {each}:{name}" for each in tasks or TASKS)
            )
        sets[tasks[0]].append(name)

    return {task: tuple(paths) for task, paths in sets.items()}


def _check_other(recipe: Recipe, name: str) -> None:
    if name.startswith(OPEN_CLIP):
        # Imported here, because it imports torch, which other recipes need not wait for.
        from evaluate.openclip import check_architecture

        check_architecture(name.split(":")[1])
    elif not is_model(user_data(recipe, name)):
        raise ValueError(
            f"others: {name} is no model: a folder with config.json and model.safetensors, a "
            "folder with published dino.txt weights (*head*.pth, *text*.pth), or "
            "open_clip:ARCHITECTURE:WEIGHTS is needed; correct the path"
        )


def check_inputs(recipe: Recipe) -> None:
    """Open everything that a recipe names and that steps would read hours later.

    ValueError lists all that cannot be read.
    """
    # If models are only scored, a set that cannot be read costs no training: its error becomes a
    # row of the results, and all other sets are scored.
    checks = [check_scores, check_evaluation_files]
    if not is_scored_only(recipe):
        checks.insert(0, check_evaluation)

    problems = []
    for check in checks:
        try:
            check(recipe)
        except (ValueError, OSError) as error:
            problems.append(str(error))

    if problems:
        raise ValueError("\n".join(problems))


def check_evaluation(recipe: Recipe) -> None:
    """Open every evaluation set that will be used, as evaluation does after training.

    It reads the names of images, and no pixels but some masks. ValueError lists all problems.
    """
    sets: Mapping[str, Path] = {} if recipe.emoji else evaluation_sets(recipe)
    names = IMAGE_TASKS if recipe.emoji else tuple(sets)
    for name in recipe.evaluate.sets:
        if name not in names:
            raise ValueError(
                f"evaluate.sets: there is no evaluation set {name!r}{nearest(name, names)}; it "
                f"must be one of the sets of recipe {recipe.name}: "
                f"{', '.join(names) or 'it has none'}; correct or remove it"
            )

    problems = []
    for name, path in sets.items():
        try:
            if not recipe.evaluate.sets or name in recipe.evaluate.sets:
                _open(name, path, recipe.evaluate.split)
            elif not is_leakage_off(recipe):
                task, variant = split_name(name)
                if task != "similarity":  # it has no images to look for in the pool
                    list_images(task, variant, path, recipe.evaluate.split)
        except (ValueError, OSError) as error:
            problems.append(f"{name}: {error}")

    for path in unscored_sets(recipe).values():
        try:
            list_images(None, "", path, recipe.evaluate.split)
        except (ValueError, OSError) as error:
            problems.append(f"data.leakage: {error}")

    if problems:
        raise ValueError("\n".join(problems))


def check_evaluation_files(recipe: Recipe) -> None:
    """Read the templates, and see whether WordNet is complete, as evaluation does after training."""
    files = evaluation_files(recipe)
    if TEMPLATES_INPUT in files:
        read_templates(files[TEMPLATES_INPUT])
    if WORDNET_INPUT in files:
        check_wordnet(files[WORDNET_INPUT])


def check_scores(recipe: Recipe) -> None:
    """Read the score file, if there is one, as curation does after embedding."""
    if recipe.curate.scores:
        # Imported here, because it imports numba, which other recipes need not wait for.
        from curation.choice.scores import read_scores

        read_scores(user_data(recipe, recipe.curate.scores))


def _open(name: str, path: Path, split: str) -> None:
    """Read the names of a set, and check some of its masks."""
    task, variant = split_name(name)
    if task == "classification":
        open_classification(path, variant)
    elif task == "retrieval":
        open_retrieval(path, split, variant)
    elif task == "similarity":
        open_similarity(path, variant)
    else:
        open_segmentation(path, variant)


def evaluation_sets(recipe: Recipe) -> dict[str, Path]:
    """The user's evaluation sets by name: "task_stem", or "task_stem@variant"."""
    return {
        f"{task}_{stem}": path
        for task in TASKS
        for stem, path in by_stem(recipe, getattr(recipe.data, task)).items()
    }


def evaluation_files(recipe: Recipe) -> dict[str, Path]:
    """What evaluation reads beside the sets: the file of prompt templates, if evaluate.templates names
    no known list, and the folder of WordNet.
    """
    files = {}
    name = recipe.evaluate.templates
    if name != AUTO and name not in named_templates():
        files[TEMPLATES_INPUT] = user_data(recipe, name)
    if recipe.evaluate.segmentation.wordnet is not None:
        files[WORDNET_INPUT] = user_data(recipe, recipe.evaluate.segmentation.wordnet)
    return files


def unscored_sets(recipe: Recipe) -> dict[str, Path]:
    """The sets of `data.leakage` that are not evaluated, by file stem."""
    if recipe.emoji or is_leakage_off(recipe):
        return {}
    scored = set(evaluation_sets(recipe).values())
    return {
        stem: path
        for stem, path in by_stem(recipe, recipe.data.leakage).items()
        if path not in scored
    }


def is_leakage_off(recipe: Recipe) -> bool:
    """Whether evaluation images may be trained on (`--data.leakage off`)."""
    return recipe.data.leakage == (LEAKAGE_OFF,)


def by_stem(recipe: Recipe, names: Sequence[str]) -> dict[str, Path]:
    """User data by file stem; where two have the same stem, by folder and stem."""
    located = [_with_variant(recipe, name) for name in dict.fromkeys(names)]
    short = [f"{path.stem}{variant}" for path, variant in located]
    long = [f"{absolute(path).parent.name}-{path.stem}{variant}" for path, variant in located]
    return dict(zip(_told_apart(short, long), (path for path, _ in located), strict=True))


def _with_variant(recipe: Recipe, name: str) -> tuple[Path, str]:
    """The path of a set, and its variant with the @: PATH@20 gives (PATH, "@20")."""
    base, at, variant = name.rpartition("@")
    path = user_data(recipe, name)
    return (user_data(recipe, base), at + variant) if base and not kind_of(path) else (path, "")


def other_labels(recipe: Recipe) -> dict[str, str]:
    """The models from elsewhere, each with its label: the folder's name, or the architecture.

    A label that two models share is made longer: by the folder above, or the weights.
    """
    names = list(dict.fromkeys(recipe.others))
    words = [
        name.split(":")[1:]
        if name.startswith(OPEN_CLIP)
        else absolute(user_data(recipe, name)).parts[:-3:-1]
        for name in names
    ]

    return dict(
        zip(
            names,
            _told_apart([each[0] for each in words], ["-".join(each) for each in words]),
            strict=True,
        )
    )


def _told_apart(short: Sequence[str], long: Sequence[str]) -> list[str]:
    """The short names, or long ones where short ones are equal. ValueError if both are equal."""
    names = [long[index] if short.count(name) > 1 else name for index, name in enumerate(short)]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"two sets or models would both be called {name!r}: names must be unique; rename "
                "a folder"
            )
    return names


def backbone_of(model: Path, ours: BackboneConfig) -> BackboneConfig:
    """The backbone that a model of ours was trained on; for published weights, the recipe's."""
    if not (model / CONFIG).is_file():
        return ours
    spec = json.loads((model / CONFIG).read_text()).get("spec")
    if not spec:
        raise ValueError(
            f"others: {model / CONFIG} does not say what the model was trained on: name a folder "
            "that the train step or `export --format safetensors` wrote"
        )
    weights = ours.weights if spec["digest"] == ours.digest else ""
    return BackboneConfig(spec["backbone"], weights, spec["digest"], spec["image_size"])


def user_data(recipe: Recipe, name: str) -> Path:
    """The path of user data: the name itself, or a file of that name beside `pairs`."""
    beside = Path(recipe.data.pairs).parent / name
    return beside if kind_of(beside) else Path(name)
