"""Which fields of a record are image, captions, key and split: one mapping for every layout.

A setting decides first and is never ignored. Without a setting, the first known name decides. If no
field has a known name, there must be exactly one candidate: by its values for images, by its name
for captions. Several candidates are an error that names them.
"""

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from curation.pairs.config import SourceConfig
from curation.pairs.images import IMAGE_SUFFIXES

Record = Mapping[str, object]

# In order of preference: the first one that a record has is used.
IMAGE_FIELDS = (
    *(
        "image",
        "file_name",
        "filename",
        "filepath",
        "file",
        "path",
        "image_path",
        "image_name",
        "image_file",
        "img",
    ),
    *(
        "img_path",
        "image_filename",
        "img_name",
        "images",
        "jpg",
        "png",
        "webp",
        "jpeg",
        "image_bytes",
        "bytes",
    ),
    *("image_id", "key"),
)
CAPTION_FIELDS = (
    *(
        "captions",
        "caption",
        "text",
        "texts",
        "title",
        "sentence",
        "sentences",
        "txt",
        "prompt",
        "description",
    ),
    *("comment", "caption_str", "alt_text", "alt", "conversations", "messages", "raw_caption"),
)
CAPTION_WORDS = re.compile("caption|text|prompt|descri|sentence|comment|alt_|title")
URL_FIELDS = ("url", "image_url", "img_url", "image_link")
NUMBERED = re.compile(r"(.*?)_?\d+")
IMAGE_NAME = re.compile(
    rf"[^\n]*({'|'.join(map(re.escape, IMAGE_SUFFIXES))})(#\d+)?", re.IGNORECASE
)
URL = re.compile(r"(https?|ftp)://", re.IGNORECASE)
MOST_NAME_CHARS = 4096  # Linux's limit for a path; longer text is no name
ANSWERING = ("gpt", "assistant", "model", "chatgpt", "bot")
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
        if name is not None and not _matches(name, names):
            raise FieldsError(_missing(where, names, f"no field {name!r}", setting))

    return Fields(image, captions, config.key_column, config.split_column or "split")


def _image_field(
    where: str, names: Sequence[str], first: Sequence[Record], config: SourceConfig
) -> str:
    if config.image_column is not None:
        if not _matches(config.image_column, names):
            raise FieldsError(
                _missing(where, names, f"no image column {config.image_column!r}", "image_column")
            )
        return config.image_column

    # A key beside addresses is img2dataset's. Its rows describe images that lie in tars or folders
    # elsewhere, so the key does not name an image here.
    urls = _known(URL_FIELDS, names)
    known_fields = [name for name in IMAGE_FIELDS if not urls or name != "key"]
    if known := _known(known_fields, names):
        return known[0]

    by_value = [
        name for name in names if any(_looks_like_image(record.get(name)) for record in first)
    ]
    if len(by_value) == 1:
        return by_value[0]
    if by_value:
        raise FieldsError(
            _missing(where, names, f"several image columns ({', '.join(by_value)})", "image_column")
        )

    what = f"no image column of a known name ({', '.join(IMAGE_FIELDS)})"
    hint = (
        f"; {urls[0]} holds addresses: download its images with img2dataset and give its output"
        if urls
        else ""
    )
    raise FieldsError(_missing(where, names, what, "image_column") + hint)


def _caption_fields(
    where: str,
    names: Sequence[str],
    all_names: Sequence[str],
    first: Sequence[Record],
    config: SourceConfig,
) -> tuple[str, ...]:
    if config.caption_column is not None:
        if chosen := _matches(config.caption_column, all_names):
            return chosen
        raise FieldsError(
            _missing(
                where, all_names, f"no caption column {config.caption_column!r}", "caption_column"
            )
        )

    if known := _known(CAPTION_FIELDS, names):
        return known[:1]

    # A family is a name without its number: caption_0, caption_1, ... belong together. With one
    # family, such as blip_caption alone, there is only one candidate.
    by_word = [name for name in names if CAPTION_WORDS.search(_plain(name))]
    families = {
        match[1] if (match := NUMBERED.fullmatch(_plain(name))) else _plain(name)
        for name in by_word
    }
    if len(families) == 1:
        return tuple(by_word)
    if by_word:
        raise FieldsError(
            _missing(
                where,
                all_names,
                f"several caption columns ({', '.join(by_word)})",
                "caption_column",
            )
        )

    others = [name for name in names if name.isdigit()]
    if others:  # a table without a header, whose columns are numbered: its last one is text
        return (others[-1],)

    sentences = [name for name in names if _holds_sentences([record.get(name) for record in first])]
    if len(sentences) == 1:
        return (sentences[0],)
    if sentences:
        raise FieldsError(
            _missing(
                where,
                all_names,
                f"several columns of sentences ({', '.join(sentences)})",
                "caption_column",
            )
        )

    raise FieldsError(
        _missing(
            where,
            all_names,
            f"no caption column of a known name ({', '.join(CAPTION_FIELDS)})",
            "caption_column",
        )
    )


def _holds_sentences(values: Sequence[object]) -> bool:
    """Whether most values are texts of several words: captions, whatever the field's name."""
    words = [
        value
        for value in values
        if isinstance(value, str) and " " in value.strip() and not is_image_name(value)
    ]
    return bool(values) and len(words) > SENTENCE_SHARE * len(values)


def _missing(where: str, names: Sequence[str], what: str, setting: str) -> str:
    shown = ", ".join(name[:NAME_CHARS] for name in names[:NAMES_SHOWN]) + (
        ", ..." if len(names) > NAMES_SHOWN else ""
    )
    flag = f"--embed.source.{setting.replace('_', '-')}"
    return (
        f"{where} has {what} (its columns: {shown or 'none'}): set source.{setting} to one of "
        f"them with {flag}"
    )


def _plain(name: str) -> str:
    """A field's name in one form for all conventions: Image-Name and image name: image_name."""
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def _known(known: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """The fields that have a known name, in the order of the known names."""
    by_plain: dict[str, str] = {}
    for name in names:
        by_plain.setdefault(_plain(name), name)
    return tuple(by_plain[name] for name in known if name in by_plain)


def _matches(setting: str, names: Sequence[str]) -> tuple[str, ...]:
    """The fields that a setting means; empty if it means none.

    That is the field of this name, else the first that differs in form only (case, blanks,
    hyphens), else all fields that match it as a pattern, else the setting itself if it is a path
    into a field.
    """
    if setting in names:
        return (setting,)
    same = tuple(name for name in names if _plain(name) == _plain(setting))
    return (
        same[:1]
        or tuple(fnmatch.filter(names, setting))
        or ((setting,) if "." in setting and setting.split(".")[0] in names else ())
    )


def _looks_like_image(value: object) -> bool:
    if isinstance(value, list):
        return len(value) == 1 and _looks_like_image(value[0])
    if isinstance(value, dict):
        return "bytes" in value
    return isinstance(value, bytes) or (
        isinstance(value, str) and is_image_name(value) and not URL.match(value)
    )


def is_image_name(text: str) -> bool:
    """Whether a text is the name of an image file, as lists write it (`a.jpg`, `a.jpg#3`)."""
    return bool(IMAGE_NAME.fullmatch(text.strip()))


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
        for field in _known((*CAPTION_FIELDS, "raw", "value", "content", "assistant"), list(value))[
            :1
        ]:
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


def caption_fields_of(record: Record, config: SourceConfig) -> tuple[str, ...]:
    """The caption fields of a single record, as in a JSON file beside an image; may be empty."""
    names = list(record)
    if config.caption_column is not None:
        return _matches(config.caption_column, names)
    by_word = tuple(name for name in names if "caption" in _plain(name))
    return _known(CAPTION_FIELDS, names)[:1] or by_word


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
