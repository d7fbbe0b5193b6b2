"""A recipe as YAML: out and in again, strictly."""

import dataclasses
import itertools
import typing

import pytest

from cluster.identity import identity
from cluster.site import SiteConfig
from pipeline.presets import PRESETS
from pipeline.recipe_file import ConfigError, dump_recipe, field_docs, load_recipe
from pipeline.recipes import Recipe


@pytest.mark.parametrize("name", PRESETS)
def test_recipe_survives_yaml(name: str) -> None:
    assert load_recipe(dump_recipe(PRESETS[name]), "x.yaml") == PRESETS[name]


def test_numbers_may_be_written_as_flags_are() -> None:
    text = dump_recipe(PRESETS["quickstart"])
    assert "    lr: 0.002\n" in text
    written = text.replace("    lr: 0.002\n", "    lr: 2e-3\n", 1)
    assert load_recipe(written, "x.yaml") == PRESETS["quickstart"]


@pytest.mark.parametrize("name", PRESETS)
def test_recipe_has_an_identity(name: str) -> None:
    assert identity(PRESETS[name])


@pytest.mark.parametrize("whole", [Recipe, SiteConfig])
def test_every_field_and_section_is_documented(whole: type) -> None:
    """The words under a field are what --help and the YAML file show."""

    def undocumented(owner: type, where: str) -> list[str]:
        # Python writes a docstring of its own where a dataclass has none: its signature.
        missing = [where] if str(owner.__doc__).startswith(f"{owner.__name__}(") else []
        docs = field_docs(owner)

        for item in dataclasses.fields(owner):
            name = f"{where}.{item.name}"
            # A section that may be absent has the type SectionConfig | None.
            kinds = [item.type, *typing.get_args(item.type)]
            sections = [
                kind for kind in kinds if isinstance(kind, type) and dataclasses.is_dataclass(kind)
            ]
            if not sections and not docs.get(item.name):
                missing.append(name)
            missing += itertools.chain(*(undocumented(kind, name) for kind in sections))

        return missing

    assert undocumented(whole, whole.__name__) == []


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (
            "  batch_size: 512",
            "  batch_sizes: 512",
            "unknown key 'batch_sizes': did you mean 'batch_size'",
        ),
        ("  batch_size: 512", "  batch_size: many", "batch_size is 'many': it must be of type int"),
        ("  content: pooled", "  content: all", "content is 'all': it must be one of"),
        ("name: quickstart\n", "", "incomplete"),
        ("train:", "train: [", "is not YAML"),
        ("    lr: 0.002\n", "    lr: quick\n", "lr is 'quick': it must be of type float"),
        ("views: 0\n", "views: 1\nviews: 2\n", "the key 'views' occurs twice"),
    ],
)
def test_wrong_files_are_refused_by_name(old: str, new: str, complaint: str) -> None:
    text = dump_recipe(PRESETS["quickstart"])
    assert old in text
    with pytest.raises(ConfigError, match=complaint):
        load_recipe(text.replace(old, new, 1), "mine.yaml")
