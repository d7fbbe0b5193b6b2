"""What a field of a record holds: captions, in any shape, or the name of an image."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from curation.pairs.field_names import CAPTION_FIELDS, known_names
from curation.pairs.images import IMAGE_SUFFIXES

Record = Mapping[str, object]

IMAGE_NAME = re.compile(
    rf"[^\n]*({'|'.join(map(re.escape, IMAGE_SUFFIXES))})(#\d+)?", re.IGNORECASE
)
URL = re.compile(r"(https?|ftp)://", re.IGNORECASE)
MOST_NAME_CHARS = 4096  # Linux's limit for a path; longer text is no name
ANSWERING = ("gpt", "assistant", "model", "chatgpt", "bot")


def values_at(record: object, path: str) -> list[object]:
    """The value of a record under a name or path, in a list; empty if there is none.

    A path goes through objects by name and through lists by index.

    >>> values_at({"talk": [{"value": "hello"}]}, "talk.0.value")
    ["hello"]
    """
    # A field whose name has dots comes before a path.
    if isinstance(record, Mapping) and path in record:
        return [record[path]]

    name, dot, rest = path.partition(".")
    inner: object = None
    if isinstance(record, Mapping):
        inner = record.get(name)
    elif isinstance(record, list) and name.isdigit() and int(name) < len(record):
        inner = record[int(name)]

    if inner is None:
        return []

    return values_at(inner, rest) if dot else [inner]


def captions_in(record: Record, fields: Sequence[str]) -> list[str]:
    """All texts of the caption fields, neither cleaned nor checked.

    Lists, objects and conversations are searched for texts.
    """
    return [
        text for field in fields for value in values_at(record, field) for text in _texts(value)
    ]


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for field in known_names(
            (*CAPTION_FIELDS, "raw", "value", "content", "assistant"), list(value)
        )[:1]:
            yield from _texts(value[field])
    elif isinstance(value, list) and _is_conversation(value):
        yield from _first_answer(value)
    elif isinstance(value, list):
        for item in value:
            # MetaCLIP's texts are pairs of a kind and a text: ["alt", "a cat"].
            is_kind_and_text = (
                isinstance(item, list) and len(item) == 2 and all(isinstance(x, str) for x in item)
            )
            yield from _texts(item[1] if is_kind_and_text else item)


def _is_conversation(value: list) -> bool:
    return bool(value) and all(
        isinstance(turn, Mapping) and ("from" in turn or "role" in turn) for turn in value
    )


def _first_answer(turns: list) -> Iterator[str]:
    """The first answer of the model, which is LLaVA's caption; later turns are about details."""
    for turn in turns:
        if str(turn.get("from", turn.get("role"))).lower() in ANSWERING:
            said = turn.get("value", turn.get("content"))
            # Chat formats split a turn into items of text and of images.
            if isinstance(said, list):
                said = [
                    item.get("text")
                    for item in said
                    if isinstance(item, Mapping) and item.get("type") == "text"
                ]
            yield from _texts(said)
            return


class ImageName(NamedTuple):
    """What an image field says of the image."""

    name: str
    kind: Literal["name", "address", "inline", "none"]
    """address: a URL; inline: the image itself, as a data: URI or base64 text."""


def image_name(value: object) -> ImageName:
    """The name in an image field: text, a number, an object with a path, or a list of one."""
    if isinstance(value, list) and len(value) == 1:
        return image_name(value[0])
    if isinstance(value, Mapping):
        inner = [
            value[name]
            for name in ("path", "file_name", "filename", "url")
            if isinstance(value.get(name), str)
        ]
        return image_name(inner[0]) if inner else ImageName("", "none")

    if isinstance(value, int) and not isinstance(value, bool):
        return ImageName(str(value), "name")
    if not isinstance(value, str) or not value.strip():
        return ImageName("", "none")

    name = value.strip()
    if URL.match(name):
        return ImageName(name, "address")
    if name.startswith("data:") or len(name) > MOST_NAME_CHARS:
        return ImageName(name, "inline")

    numbered = IMAGE_NAME.fullmatch(name)
    # Flickr's token files number the captions of an image: a.jpg#0.
    if numbered and numbered[2]:
        name = name.removesuffix(numbered[2])

    return ImageName(name.removeprefix("file://"), "name")


def is_image_name(text: str) -> bool:
    """Whether a text is the name of an image file, as lists write it (`a.jpg`, `a.jpg#3`)."""
    return bool(IMAGE_NAME.fullmatch(text.strip()))
