"""Captions in files beside an image (`1.jpg`, `1.txt`, `1.json`): the same in a folder and in a
WebDataset tar.
"""

import json
import posixpath
from collections.abc import Mapping, Sequence

from curation.pairs.config import SourceConfig
from curation.pairs.fields import caption_fields_of, captions_in
from curation.pairs.ranges import ByteRange
from curation.pairs.sample import Pair, Problem, Reject, Sample
from curation.pairs.text import clean_captions, decode_text, undecodable

TEXT_SUFFIXES = (".txt", ".caption", ".text")
CAPTION_SUFFIXES = (*TEXT_SUFFIXES, ".json")


def caption_kind(suffix: str) -> str:
    """Kind of a caption file by its suffix in lower case: "txt" for all that are text."""
    return "txt" if suffix in TEXT_SUFFIXES else suffix.removeprefix(".")


def caption_files(images: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    """The caption files of each image that has any: those of its stem or whole name, whatever their
    case.

    >>> caption_files(["a/1.JPG", "a/2.jpg"], ["a/1.TXT", "a/2.jpg.txt"])
    {"a/1.JPG": ["a/1.TXT"], "a/2.jpg": ["a/2.jpg.txt"]}
    """
    by_form = {name.casefold(): name for name in names if name.lower().endswith(CAPTION_SUFFIXES)}
    found: dict[str, list[str]] = {}
    for image in images:
        stem = posixpath.splitext(image)[0]
        wanted = [
            f"{beginning}{suffix}".casefold()
            for beginning in (stem, image)
            for suffix in CAPTION_SUFFIXES
        ]
        if captions := [by_form[name] for name in wanted if name in by_form]:
            found[image] = captions

    return found


def read_pair(pair: Pair, source: str, config: SourceConfig) -> Sample | Reject:
    """The pair with its image and captions read, or why it cannot be used."""
    if pair.problem is not None:
        return Reject(pair.key, source, pair.problem.reason, pair.problem.detail)

    image = pair.image
    if image is None:
        return Reject(pair.key, source, "missing file", pair.key)

    captions = pair.captions
    if pair.beside:
        beside = captions_beside(dict(pair.beside), config)
        if isinstance(beside, Problem):
            return Reject(pair.key, source, beside.reason, beside.detail)
        captions = tuple(dict.fromkeys((*(captions or ()), *beside)))

    try:
        data = image.read()
    except FileNotFoundError:
        return Reject(pair.key, source, "missing file", pair.key)

    if len(data) < image.size:
        return Reject(pair.key, source, "truncated archive", f"{len(data)} of {image.size} bytes")
    if captions is None:
        return Sample(pair.key, data, (), source)
    if not captions:
        kinds = ", ".join(kind for kind, _ in pair.beside) or "the list"
        return Reject(
            pair.key, source, "empty caption", f"no text in {kinds} is left after cleaning"
        )

    return Sample(pair.key, data, captions, source)


def captions_beside(
    files: Mapping[str, ByteRange], config: SourceConfig
) -> tuple[str, ...] | Problem:
    """Clean captions of the files beside an image, by kind: a list in the JSON, else the text, else
    the JSON's caption.

    With a caption field set, it is that field of the JSON where there is a JSON.
    """
    record: dict = {}
    try:
        if "json" in files:
            content = json.loads(decode_text(files["json"].read(), config.encoding), strict=False)
            record = content if isinstance(content, dict) else {"captions": content}
        text = decode_text(files["txt"].read(), config.encoding) if "txt" in files else ""
    except FileNotFoundError as error:
        return Problem("missing file", f"its caption file has gone: {error.filename}")
    except (ValueError, RecursionError) as error:
        return Problem("unreadable record", f"its JSON cannot be parsed: {error}")

    chosen = caption_fields_of(record, config)
    listed = captions_in(record, chosen)
    is_list = any(isinstance(record.get(name), list) for name in chosen)

    if config.caption_column is not None and "json" in files:
        if not chosen:
            names = ", ".join(record) or "none"
            return Problem(
                "empty caption",
                f"its JSON has no field {config.caption_column!r} (its fields: {names})",
            )
        texts = listed
    elif "txt" in files and not (is_list and listed):
        texts = text.split("\n") if config.text_lines == "captions" else [text]
    else:
        texts = listed

    if bad := next(filter(None, map(undecodable, texts)), ""):
        return Problem("undecodable text", bad)

    return clean_captions(texts)
