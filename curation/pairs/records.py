"""One list file to records: JSON in its several forms, JSON lines, or delimited tables.

Only the list itself is read, no image.
"""

import json
import posixpath
from collections.abc import Iterator
from typing import Any, NamedTuple

from curation.pairs.annotations import annotated_images, annotation_kind
from curation.pairs.config import SourceConfig
from curation.pairs.field_names import CAPTION_FIELDS, IMAGE_FIELDS
from curation.pairs.fields import Fields, FieldsError, caption_fields_of, resolve_fields
from curation.pairs.images import RejectReason
from curation.pairs.sample import Problem
from curation.pairs.splits import SPLIT_NAMES
from curation.pairs.tables import parse_table
from curation.pairs.text import decode_text, encoding_of, undecodable
from curation.pairs.values import captions_in, image_name, is_image_name, values_at

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".token", ".psv", ".tab", ".lst")
LIST_SUFFIXES = (*JSON_SUFFIXES, *TABLE_SUFFIXES)
LIST_WORDS = ("caption", "metadata", "dataset", "pairs", "annotation", "token")
FIRST_RECORDS = 100


class Entry(NamedTuple):
    """One record of a list, before its image is searched."""

    place: str
    """Where it is in the list: "3", or "images:3"."""
    image: str
    """The image's name as listed; empty if the record names none."""
    captions: tuple[str | object, ...]
    key: str | None = None
    split: object = None
    problem: Problem | None = None
    bare: str = ""
    """A second name of the image, used if no file has the first: its id, or its name without
    Karpathy's folder.
    """


class CaptionList(NamedTuple):
    """A parsed list file."""

    name: str
    kind: str
    """Its layout in words, with delimiter and quotes for tables."""
    names: tuple[str, ...]
    """All fields of its first records."""
    fields: Fields | None
    """Which of them are image, captions, key and split; None if the format fixes them."""
    entries: list[Entry]
    is_annotation: bool = False
    """Whether it is Karpathy's or COCO's: one record per image, so that a second is a duplicate."""


class NoList(ValueError):
    """A file that is no list of pairs; the message says what it is instead."""


def read_list(name: str, data: bytes, config: SourceConfig) -> CaptionList:
    """The entries of a list file, of all splits.

    Raises NoList for a file of another purpose, FieldsError for records whose fields are missing or
    ambiguous, and ValueError for a file that cannot be parsed.
    """
    # A file whose suffix says nothing is JSON if it begins like JSON, and a table otherwise.
    text = decode_text(data, config.encoding)
    encoding = encoding_of(data, config.encoding)[0]
    suffix = posixpath.splitext(name)[1].lower()
    is_json = suffix in JSON_SUFFIXES or (
        suffix not in LIST_SUFFIXES and text.lstrip()[:1] in ("{", "[")
    )

    if not is_json:
        table = parse_table(name, text, config)
        numbered = [(str(number), record) for number, record in enumerate(table.records, start=1)]
        return _of_records(
            name, f"table, {table.dialect}, {encoding}", table.names, numbered, config
        )

    content = _content(name, text, suffix)
    kind = annotation_kind(content)
    if kind == "coco without captions":
        raise NoList("COCO's annotations without captions")
    if kind is not None and config.format in ("auto", "folder", "list", kind):
        return _of_annotations(name, kind, content)
    if config.format in ("karpathy", "coco"):
        raise NoList(f"source.format is {config.format}")

    # Records of JSON may lack fields, so the names come from many of them, each name once.
    numbered = _numbered_records(name, content, config)
    names = list(dict.fromkeys(field for _, record in numbered[:FIRST_RECORDS] for field in record))
    return _of_records(
        name,
        f"{'JSON' if suffix == '.json' else 'JSON lines'}, {encoding}",
        names,
        numbered,
        config,
    )


def _content(name: str, text: str, suffix: str) -> Any:
    """The content of a JSON file; JSON lines are a list, with None for a line that is no JSON."""
    text = text.strip()
    lines = [line for line in text.split("\n") if line.strip()]
    if suffix in (".jsonl", ".ndjson") and not text.startswith("["):
        return _json_lines(name, text)

    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError) as error:
        # Some write JSON lines under .json.
        if len(lines) > 1 and _parsed(lines[0]) is not None:
            return _json_lines(name, text)
        raise ValueError(
            f"{name} cannot be parsed ({error}): repair it there, then run again"
        ) from error


def _json_lines(name: str, text: str) -> list[Any]:
    # Not splitlines, which would cut a line at characters that JSON strings may hold.
    records = [_parsed(line) for line in text.split("\n") if line.strip()]
    if records and all(record is None for record in records):
        first = next(line for line in text.split("\n") if line.strip())
        try:
            json.loads(first, strict=False)
        except ValueError as error:
            raise ValueError(
                f"{name} has no line that is JSON: line 1 is {first[:60]!r} ({error}); write one "
                "object per line, without commas between them"
            ) from error
    return records


def _parsed(line: str) -> Any:
    try:
        return json.loads(line, strict=False)
    except (ValueError, RecursionError):
        return None


def _numbered_records(name: str, content: Any, config: SourceConfig) -> list[tuple[str, dict]]:
    """(place, record) of each record of a JSON file that is no annotation format.

    The content may be a list of records, an object of columns, a mapping from images to captions,
    an object of lists by split, or an object with one list of records among other things.
    """
    if content in ({}, []):
        return []
    if not isinstance(content, dict | list):
        raise FieldsError(
            f"{name} names no image: it has to be a list or an object of records, not "
            f"{content!r:.40}"
        )
    if isinstance(content, dict) and (columns := _columns(content)):
        return columns
    if isinstance(content, dict):
        # Beside lists of records there may be other things, such as a description or a license.
        # An object whose keys are mostly image names maps images to their captions.
        tables = {key: value for key, value in content.items() if _is_table(value)}
        if not tables or sum(map(is_image_name, content)) > len(content) // 2:
            return _mapped_records(name, content, config)
        if set(tables) <= SPLIT_NAMES:
            return [
                (f"{split}:{number}", {"split": split, **record})
                for split, table in tables.items()
                for number, record in _numbered(table)
            ]
        fitting = [key for key, table in tables.items() if _has_fields(key, table, config)]
        if len(fitting) != 1:
            candidates = ", ".join(fitting or tables)
            raise FieldsError(
                f"{name} holds {'several lists' if fitting else 'no list'} of records with an "
                f"image and a caption ({candidates}): one is required; write it into a file of its "
                "own, or set source.image_column and source.caption_column"
            )
        content = tables[fitting[0]]

    return [(str(number), record) for number, record in _numbered(content)]


def _columns(content: dict[str, Any]) -> list[tuple[str, dict]]:
    """Records of an object of columns, as pandas writes it; empty if it is none.

    Columns are lists of one length, or objects with the same keys.
    """
    if not _known_fields(content):
        return []

    values = list(content.values())
    # pandas writes a column as an object from row numbers to values by default.
    if all(isinstance(value, dict) and value.keys() == values[0].keys() for value in values):
        values = [list(value.values()) for value in values]
    if not all(isinstance(value, list) and len(value) == len(values[0]) for value in values):
        return []

    rows = zip(*values, strict=True)
    return [
        (str(number), dict(zip(content, row, strict=True)))
        for number, row in enumerate(rows, start=1)
    ]


def _known_fields(content: dict[str, Any]) -> bool:
    """Whether keys of an object are known names of an image field and of a caption field."""
    keys = {key.strip().lower() for key in content}
    return not keys.isdisjoint(IMAGE_FIELDS) and not keys.isdisjoint(CAPTION_FIELDS)


def _mapped_records(
    name: str, content: dict[str, Any], config: SourceConfig
) -> list[tuple[str, dict]]:
    """Records of a mapping from images to captions, or to objects with captions (as kohya's).

    Raises NoList unless at least half of the first keys are image names, or half of the first
    values have captions, or the file's name says that it is a list.
    """
    first = dict(list(content.items())[:FIRST_RECORDS])
    num_names = sum(map(is_image_name, first))
    num_records = sum(
        isinstance(value, dict) and bool(caption_fields_of(value, config))
        for value in first.values()
    )
    if 2 * max(num_names, num_records) < len(first) and not is_named_as_list(name):
        raise NoList("a JSON object that does not map images to captions")

    records = (
        {"image": image, **value}
        if isinstance(value, dict)
        else {"image": image, "captions": value}
        for image, value in content.items()
    )

    return [(str(number), record) for number, record in enumerate(records, start=1)]


def is_named_as_list(name: str) -> bool:
    """Whether a file's name says that it lists pairs."""
    base = posixpath.basename(name).lower()
    return any(word in base for word in LIST_WORDS)


def _is_table(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(record, dict) for record in value[:FIRST_RECORDS])
    )


def _has_fields(name: str, table: list[dict], config: SourceConfig) -> bool:
    first = table[:FIRST_RECORDS]
    try:
        resolve_fields(
            name, list(dict.fromkeys(field for record in first for field in record)), first, config
        )
    except FieldsError:
        return False
    return True


def _numbered(records: object) -> Iterator[tuple[int, dict]]:
    """(number from 1, record) of each item; an item that is no object becomes {}."""
    for number, record in enumerate(records if isinstance(records, list) else [], start=1):
        yield number, record if isinstance(record, dict) else {}


def _of_records(
    name: str, kind: str, names: list[str], numbered: list[tuple[str, dict]], config: SourceConfig
) -> CaptionList:
    if not numbered:
        raise NoList("a list without records")
    if not names and not is_named_as_list(name):
        raise NoList("a JSON list whose items have no fields")
    if not names:
        raise FieldsError(
            f"{name} names no image: it has no records with fields; each needs an image and "
            "a caption"
        )

    fields = resolve_fields(name, names, [record for _, record in numbered[:FIRST_RECORDS]], config)
    entries = [_entry(place, record, fields) for place, record in numbered]
    return CaptionList(name, kind, tuple(names), fields, entries)


def _entry(place: str, record: dict, fields: Fields) -> Entry:
    split = next(iter(values_at(record, fields.split)), None)
    image, kind = image_name(next(iter(values_at(record, fields.image)), None))
    problem: Problem | None = None

    if not record:
        problem = _problem(
            "unreadable record", "it is no JSON object, or has not as many fields as the header"
        )
    elif kind == "none":
        problem = _problem("unreadable record", f"it names no image in {fields.image!r}")
    elif kind == "inline":
        detail = (
            f"its image is text of {len(image):,} characters: base64 is read from Parquet "
            "alone; write it there"
        )
        problem = _problem("unreadable record", detail)
    elif kind == "address":
        problem = _problem(
            "image is an address", f"{image[:100]}: download it first, as with img2dataset"
        )

    # The problem of the image, if there is one, comes before that of the captions.
    captions = captions_in(record, fields.captions)
    if bad := next(filter(None, map(undecodable, captions)), ""):
        problem = problem or _problem("undecodable text", bad)

    keys = values_at(record, fields.key) if fields.key is not None else []
    return Entry(
        place,
        image if kind != "inline" else "",
        tuple(captions),
        str(keys[0]) if keys else None,
        split,
        problem,
        _image_id(record),
    )


def _image_id(record: dict) -> str:
    """The image's id, a second name: TextCaps stores images under ids, not where its list says."""
    value = record.get("image_id")
    return value if isinstance(value, str) else ""


def _problem(reason: RejectReason, detail: str) -> Problem:
    return Problem(reason, detail)


def _of_annotations(name: str, kind: str, content: dict) -> CaptionList:
    entries = []
    for image in annotated_images(content):
        problem = _problem("unreadable record", image.problem) if image.problem else None
        bad = next(
            filter(None, (undecodable(text) for text in image.captions if isinstance(text, str))),
            "",
        )
        if bad:
            problem = problem or _problem("undecodable text", bad)
        # Karpathy's folder (val2014) may be missing on disk: the bare name is the second name.
        path = posixpath.join(image.folder, image.file_name) if image.folder else image.file_name
        entries.append(
            Entry(image.place, path, image.captions, None, image.split, problem, image.file_name)
        )

    words = {"karpathy": "Karpathy's JSON", "coco": "COCO's JSON"}[kind]
    return CaptionList(name, words, (), None, entries, is_annotation=True)
