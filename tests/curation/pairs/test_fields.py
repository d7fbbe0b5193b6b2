"""Which fields are the image and the caption: known names, values, settings, and errors that name
the candidates.
"""

from typing import Any

import pytest

from curation.pairs.config import SourceConfig
from curation.pairs.fields import FieldsError, resolve_fields
from curation.pairs.values import captions_in, image_name, values_at

TALK = [
    {"from": "human", "value": "<image>\nDescribe."},
    {"from": "gpt", "value": "a cat"},
    {"from": "gpt", "value": "x"},
]


def chosen(record: dict[str, Any], **options: str) -> tuple[str, list[str]]:
    """(image field, captions) of a record."""
    fields = resolve_fields("x", list(record), [record], SourceConfig(**options))
    return fields.image, captions_in(record, fields.captions)


@pytest.mark.parametrize(
    ("record", "image", "captions"),
    [
        ({"file_name": "a.jpg", "prompt": "a cat"}, "file_name", ["a cat"]),
        ({"URL": "http://x/a.jpg", "image": "a.jpg", "TEXT": "a cat"}, "image", ["a cat"]),
        ({"image": "a.jpg", "blip_caption": "a cat", "width": 5}, "image", ["a cat"]),
        (
            {"image": "a.jpg", "caption_0": "a cat", "caption_1": "one cat"},
            "image",
            ["a cat", "one cat"],
        ),
        ({"picture": "x/a.PNG", "text": "a cat"}, "picture", ["a cat"]),
        ({"pixels": b"...", "text": "a cat"}, "pixels", ["a cat"]),
        ({"photo": {"bytes": b"...", "path": None}, "alt-text": "a cat"}, "photo", ["a cat"]),
        ({"id": "1", "image": "a.jpg", "conversations": TALK}, "image", ["a cat"]),
        ({"image_id": "00ab", "caption_str": "a cat", "width": 5}, "image_id", ["a cat"]),
        (
            {"image": "a.jpg", "texts": [["alt", "a cat"], ["title", "one cat"]]},
            "image",
            ["a cat", "one cat"],
        ),
        (
            {"image": "a.jpg", "sentences": [{"raw": "a cat"}, "one cat"]},
            "image",
            ["a cat", "one cat"],
        ),
        (
            {
                "image": "a.jpg",
                "messages": [{"role": "assistant", "content": [{"type": "text", "text": "a cat"}]}],
            },
            "image",
            ["a cat"],
        ),
    ],
)
def test_fields_are_told_by_known_names_and_values(
    record: dict, image: str, captions: list[str]
) -> None:
    assert chosen(record) == (image, captions)


@pytest.mark.parametrize(
    ("setting", "captions"),
    [
        ("talk.1.value", ["a cat"]),
        ("c_*", ["one", "two"]),
        ("inner.deep", ["three"]),
        ("C_1", ["two"]),
    ],
)
def test_a_setting_is_a_name_a_path_or_a_pattern_and_comes_first(
    setting: str, captions: list[str]
) -> None:
    record = {
        "image": "a.jpg",
        "caption": "no",
        "talk": TALK,
        "c_0": "one",
        "c_1": "two",
        "inner": {"deep": "three"},
    }
    assert chosen(record, caption_column=setting) == ("image", captions)
    assert chosen(record | {"other": "b.jpg"}, image_column="other")[0] == "other"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"image": "a.jpg", "short_caption": "x", "long_caption": "y"},
            "several caption columns .*short_caption, long",
        ),
        (
            {"one": "a.jpg", "two": "b.jpg", "text": "x"},
            r"several image columns \(one, two\).*source\.image-column",
        ),
        (
            {"image": "a.jpg", "width": 5},
            r"no caption column .*its columns: image, width.*caption-column",
        ),
        (
            {"url": "http://x/a.jpg", "caption": "x", "key": "0"},
            "no image column .*url holds addresses.*img2dataset",
        ),
    ],
)
def test_what_cannot_be_told_names_the_candidates_and_the_flag(record: dict, message: str) -> None:
    with pytest.raises(FieldsError, match=message):
        chosen(record)


@pytest.mark.parametrize(
    "setting", ["image_column", "caption_column", "key_column", "split_column"]
)
def test_a_setting_that_names_no_field_is_an_error(setting: str) -> None:
    with pytest.raises(FieldsError, match=r"'nothing'.*its columns: image, caption"):
        chosen({"image": "a.jpg", "caption": "x"}, **{setting: "nothing"})


def test_paths_go_through_objects_and_lists() -> None:
    record = {"a": {"b": [{"c": 1}, {"c": 2}]}, "a.b": "whole"}
    assert values_at(record, "a.b") == ["whole"]
    assert values_at(record, "a.b.1.c") == [2]
    assert values_at(record, "a.x") == values_at(record, "x.y") == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (" a.jpg ", ("a.jpg", "name")),
        ("a.jpg#12", ("a.jpg", "name")),
        ("file:///x/a.jpg", ("/x/a.jpg", "name")),
        (["a.jpg"], ("a.jpg", "name")),
        ({"path": "a.jpg"}, ("a.jpg", "name")),
        (17, ("17", "name")),
        ("https://x.org/a.jpg", ("https://x.org/a.jpg", "address")),
        (["a.jpg", "b.jpg"], ("", "none")),
        (None, ("", "none")),
    ],
)
def test_names_of_images_in_their_several_forms(value: object, expected: tuple[str, str]) -> None:
    assert image_name(value) == expected


def test_a_column_of_sentences_is_the_caption_whatever_its_name() -> None:
    first = [
        {"file_name": f"{number}.jpg", "label": "cat", "additional_feature": "a cat on a mat"}
        for number in (1, 2)
    ]
    names = list(first[0])
    assert resolve_fields("metadata.csv", names, first, SourceConfig()).captions == (
        "additional_feature",
    )

    two = [{**record, "other": "a mat below a cat"} for record in first]
    with pytest.raises(
        FieldsError, match=r"several columns of sentences \(additional_feature, other\)"
    ):
        resolve_fields("metadata.csv", [*names, "other"], two, SourceConfig())
