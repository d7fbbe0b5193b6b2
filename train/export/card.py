"""The model card of an exported folder: the model, its use, provenance, scores and limits."""

import json
from collections.abc import Sequence

from curation.encoders.backbone import Backbone
from train.export.subject import Facts, Score, Subject

# Names in the hub's own list of licenses; a license that is not in the list is "other" there.
LICENSE_NAMES = {"Apache-2.0": "apache-2.0"}


def model_card(subject: Subject, backbone: Backbone) -> str:
    """README.md of a Hugging Face folder."""
    return "\n".join(
        (
            *_front_matter(backbone),
            *_introduction(backbone),
            *_usage(backbone),
            *_provenance(subject, backbone),
            *_scores(subject.facts.scores),
            *_limits(subject, backbone),
        )
    )


def _front_matter(backbone: Backbone) -> list[str]:
    """The YAML header that the hub reads. The folder holds the backbone, so its license applies."""
    license_name = LICENSE_NAMES.get(backbone.family.license, "other")
    repository = backbone.family.members[backbone.name].hub_name
    lines = ["---", "library_name: transformers", "pipeline_tag: zero-shot-image-classification"]
    lines += [f"license: {license_name}"]
    if license_name == "other":
        lines += [f"license_name: {json.dumps(backbone.family.license)}"]
    if repository:
        lines += [f"base_model: {repository}"]
    return [*lines, "---", ""]


def _introduction(backbone: Backbone) -> list[str]:
    return [
        "# dino.txt",
        "",
        "A text encoder and a vision head, aligned on top of a frozen backbone "
        f"({backbone.description}), after",
        '"DINOv2 Meets Text" (arXiv:2412.16334). It compares images, and their patches, with words.',
        "",
    ]


def _usage(backbone: Backbone) -> list[str]:
    side = backbone.geometry.image_size
    return [
        "## Use",
        "",
        "```python",
        "from PIL import Image",
        "from transformers import AutoModel, AutoProcessor",
        "",
        'model = AutoModel.from_pretrained("FOLDER", trust_remote_code=True).eval()',
        'processor = AutoProcessor.from_pretrained("FOLDER", trust_remote_code=True)',
        'image = Image.open("photo.jpg")',
        'inputs = processor(text=["a dog", "a cat"], images=image, padding=True, return_tensors="pt")',
        "probabilities = model(**inputs).logits_per_image.softmax(-1)",
        "```",
        "",
        '`pipeline("zero-shot-image-classification", model="FOLDER", trust_remote_code=True)` works as well.',
        f"Images are center squares of {side} pixels. `get_patch_features(pixel_values)` gives "
        "one vector per patch of",
        f"{backbone.geometry.patch_size} pixels, for images of any size that is a multiple of it.",
        "",
    ]


def _provenance(subject: Subject, backbone: Backbone) -> list[str]:
    facts = subject.facts
    spec = subject.loaded.spec
    rows = [
        ("backbone", backbone.description),
        ("backbone's license", backbone.family.license),
        ("backbone's sha256", spec.digest or "not recorded"),
        ("training data", _data(facts)),
        (
            "selection",
            f"sha256 {facts.selection_sha256}" if facts.selection_sha256 else "not recorded",
        ),
        (
            "image tokens in training",
            f"{spec.content}, {spec.grid[0]} x {spec.grid[1]} patches, {spec.dtype}",
        ),
        *((name.replace("_", " "), value) for name, value in facts.source.items()),
    ]

    return [
        "## Made from",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
        "",
    ]


def _data(facts: Facts) -> str:
    if facts.num_pairs is None:
        return facts.data or "not recorded"
    return f"{facts.num_pairs:,} pairs selected from {facts.data or 'a pool that is not recorded'}"


def _scores(scores: Sequence[Score]) -> list[str]:
    if not scores:
        return ["## Scores", "", "None recorded.", ""]
    lines = ["## Scores", "", "Percent, ranks excepted, with 95 % confidence intervals.", ""]
    lines += ["| evaluation set | metric | score | interval | protocol |", "|---|---|---|---|---|"]
    for score in scores:
        cells = (score.evaluation_set, score.metric, score.value, score.interval, score.protocol)
        # A bar in a cell would end it.
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*lines, ""]


def _limits(subject: Subject, backbone: Backbone) -> list[str]:
    lines = ["## Limits", ""]
    if backbone.family.source == "package":
        lines.append(
            "- The backbone is a small convolutional stand-in that was supervised on ImageNet "
            "labels. It is not a DINOv2, and its scores say nothing about one."
        )
    if backbone.family.source == "seed":
        lines.append(
            "- The backbone has random weights: this model is a test, and its scores mean nothing."
        )

    lines += [
        f"- Captions have at most {subject.loaded.model.config.text.context} tokens; longer ones "
        "are cut.",
        "- It knows what its training pairs show and say, and repeats their errors and biases.",
        f"- The backbone's license ({backbone.family.license}) holds for this folder, too.",
        "",
    ]

    return lines
