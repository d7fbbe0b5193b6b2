"""Prompt templates.

`IMAGENET` holds the 80 templates of CLIP (Radford et al. 2021, arXiv:2103.00020; openai/CLIP, MIT
license). `EMOJI` is for drawings and pictograms, whose captions are names and keywords rather than
sentences.
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

DATA = Path(__file__).parent / "sets" / "data"

IMAGENET = (
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
)

EMOJI = (
    "{}",
    "a {}",
    "an emoji of {}",
    "a drawing of {}",
    "an icon of {}",
    "the symbol for {}",
)

PLAIN = ("{}",)

TEMPLATES: dict[str, tuple[str, ...]] = {"imagenet": IMAGENET, "emoji": EMOJI, "plain": PLAIN}
AUTO = "auto"
TEMPLATES_INPUT = "templates"
"""The name that a file of templates has among the inputs of the step evaluate."""
SLOT = "{}"


class Prompts(NamedTuple):
    """Templates, and what a result calls them."""

    name: str
    templates: tuple[str, ...]

    def describe(self) -> str:
        """The protocol of class embeddings, for results."""
        return f"{self.name}: {len(self.templates)} templates, mean of unit vectors, unit norm"


def choose_prompts(wanted: str, own: str | tuple[str, ...], file: Path | None = None) -> Prompts:
    """The prompts of a set whose own are a list or the name of one; `wanted` names others, or
    `file` holds them.
    """
    if file is not None:
        return Prompts(f"file {file.name}", read_templates(file))
    if wanted == AUTO and not isinstance(own, str):
        return Prompts("the set's own", own)
    name = str(own) if wanted == AUTO else wanted
    return Prompts(name, named_templates()[name])


@cache
def named_templates() -> dict[str, tuple[str, ...]]:
    """Templates by name: those above, and the published ones of other sets."""
    listed = json.loads((DATA / "templates.json").read_text())
    return TEMPLATES | {
        name: tuple(texts) for name, texts in listed.items() if isinstance(texts, list)
    }


def read_templates(file: Path) -> tuple[str, ...]:
    """One template per line of a text file, with {} (or {c}) where the name goes."""
    lines = tuple(
        line.strip().replace("{c}", SLOT) for line in file.read_text().splitlines() if line.strip()
    )
    bad = [line for line in lines if line.count(SLOT) != 1]
    if bad or not lines:
        what = f"the template {bad[0]!r}" if bad else "no template"
        raise ValueError(
            f"{file} has {what}: one template per line is required, each with one {{}} where the "
            "name goes; correct it"
        )
    return lines


def fill(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every name in every template, name by name."""
    return [template.replace(SLOT, name) for name in names for template in templates]
