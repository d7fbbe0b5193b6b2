"""Which fields of a record are image, captions, key and split: one mapping for every layout.

A setting decides first and is never ignored. Without a setting, the first known name decides. If no
field has a known name, there must be exactly one candidate: by its values for images, by its name
for captions. Several candidates are an error that names them.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from curation.pairs.config import SourceConfig
from curation.pairs.field_names import (
    CAPTION_FIELDS,
    CAPTION_WORDS,
    IMAGE_FIELDS,
    URL_FIELDS,
    known_names,
    matching,
    plain,
)
from curation.pairs.values import URL, Record, is_image_name

NUMBERED = re.compile(r"(.*?)_?\d+")
NAMES_SHOWN = 30
NAME_CHARS = 40
SENTENCE_SHARE = 0.5  # of its first values: above this, a field holds captions


class FieldsError(ValueError):
    """A list or table whose image field or caption field is missing or ambiguous."""


class Fields(NamedTuple):
    """Names or paths of the fields of a record."""

    image: str
    captions: tuple[str, ...]
    key: str | None
    split: str


def resolve_fields(
    where: str, names: Sequence[str], first: Sequence[Record], config: SourceConfig
) -> Fields:
    """The fields of the records of a file.

    `where` is the name of the file, for errors; `names` are all its fields, and `first` its first
    records. Raises FieldsError, which names all fields and the setting that chooses among them.
    """
    image = _image_field(where, names, first, config)
    captions = _caption_fields(
        where, [name for name in names if name != image], names, first, config
    )
    for setting, name in (("key_column", config.key_column), ("split_column", config.split_column)):
        if name is not None and not matching(name, names):
            raise _unclear(where, names, f"no field {name!r}", setting)

    return Fields(image, captions, config.key_column, config.split_column or "split")


def _image_field(
    where: str, names: Sequence[str], first: Sequence[Record], config: SourceConfig
) -> str:
    setting = "image_column"
    if config.image_column is not None:
        if matching(config.image_column, names):
            return config.image_column
        raise _unclear(where, names, f"no image column {config.image_column!r}", setting)

    # A key beside addresses is img2dataset's. Its rows describe images that lie in tars or folders
    # elsewhere, so the key does not name an image here.
    urls = known_names(URL_FIELDS, names)
    known_fields = [name for name in IMAGE_FIELDS if not urls or name != "key"]
    if known := known_names(known_fields, names):
        return known[0]

    by_value = [
        name for name in names if any(_looks_like_image(record.get(name)) for record in first)
    ]
    if len(by_value) == 1:
        return by_value[0]
    if by_value:
        raise _unclear(where, names, f"several image columns ({', '.join(by_value)})", setting)

    what = f"no image column of a known name ({', '.join(IMAGE_FIELDS)})"
    hint = (
        f"; {urls[0]} holds addresses: download its images with img2dataset and give its output"
        if urls
        else ""
    )
    raise _unclear(where, names, what, setting, hint)


def _caption_fields(
    where: str,
    names: Sequence[str],
    all_names: Sequence[str],
    first: Sequence[Record],
    config: SourceConfig,
) -> tuple[str, ...]:
    setting = "caption_column"
    if config.caption_column is not None:
        if chosen := matching(config.caption_column, all_names):
            return chosen
        raise _unclear(where, all_names, f"no caption column {config.caption_column!r}", setting)

    if known := known_names(CAPTION_FIELDS, names):
        return known[:1]

    by_word = [name for name in names if CAPTION_WORDS.search(plain(name))]
    if len({_family(name) for name in by_word}) == 1:
        return tuple(by_word)
    if by_word:
        what = f"several caption columns ({', '.join(by_word)})"
        raise _unclear(where, all_names, what, setting)

    # The columns of a table without a header are numbered: its last one is text.
    if numbers := [name for name in names if name.isdigit()]:
        return (numbers[-1],)

    sentences = [name for name in names if _holds_sentences([record.get(name) for record in first])]
    if len(sentences) == 1:
        return (sentences[0],)
    if sentences:
        what = f"several columns of sentences ({', '.join(sentences)})"
        raise _unclear(where, all_names, what, setting)

    what = f"no caption column of a known name ({', '.join(CAPTION_FIELDS)})"
    raise _unclear(where, all_names, what, setting)


def _family(name: str) -> str:
    """A name without its number: caption_0, caption_1, ... belong together."""
    match = NUMBERED.fullmatch(plain(name))
    return match[1] if match else plain(name)


def _holds_sentences(values: Sequence[object]) -> bool:
    """Whether most values are texts of several words: captions, whatever the field's name."""
    words = [
        value
        for value in values
        if isinstance(value, str) and " " in value.strip() and not is_image_name(value)
    ]
    return bool(values) and len(words) > SENTENCE_SHARE * len(values)


def _unclear(
    where: str, names: Sequence[str], what: str, setting: str, hint: str = ""
) -> FieldsError:
    """An error that says which fields there are, and the flag that chooses among them."""
    shown = ", ".join(name[:NAME_CHARS] for name in names[:NAMES_SHOWN])
    more = ", ..." if len(names) > NAMES_SHOWN else ""
    flag = f"--embed.source.{setting.replace('_', '-')}"
    return FieldsError(
        f"{where} has {what} (its columns: {shown or 'none'}{more}): set source.{setting} to one of "
        f"them with {flag}{hint}"
    )


def _looks_like_image(value: object) -> bool:
    if isinstance(value, list):
        return len(value) == 1 and _looks_like_image(value[0])
    if isinstance(value, dict):
        return "bytes" in value
    return isinstance(value, bytes) or (
        isinstance(value, str) and is_image_name(value) and not URL.match(value)
    )


def caption_fields_of(record: Record, config: SourceConfig) -> tuple[str, ...]:
    """The caption fields of a single record, as in a JSON file beside an image; may be empty."""
    names = list(record)
    if config.caption_column is not None:
        return matching(config.caption_column, names)
    by_word = tuple(name for name in names if "caption" in plain(name))
    return known_names(CAPTION_FIELDS, names)[:1] or by_word
