"""Captions in files beside an image (`1.jpg`, `1.txt`, `1.json`), in a folder or in a tar."""

import json
import posixpath
from collections.abc import Mapping, Sequence

from curation.pairs.config import SourceConfig
from curation.pairs.fields import caption_fields_of
from curation.pairs.ranges import ByteRange
from curation.pairs.sample import Pair, Problem, Reject, Sample
from curation.pairs.text import clean_captions, decode_text, undecodable
from curation.pairs.values import captions_in

TEXT_SUFFIXES = (".txt", ".caption", ".text")
CAPTION_SUFFIXES = (*TEXT_SUFFIXES, ".json")


def caption_kind(suffix: str) -> str:
    """The kind of a caption file by its suffix in lower case: "txt" for any text, or "json"."""
    return "txt" if suffix in TEXT_SUFFIXES else suffix.removeprefix(".")


def caption_files(images: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    """The caption files of each image that has any: those with its stem or its whole name.

    Case does not matter.

    >>> caption_files(["a/1.JPG", "a/2.jpg"], ["a/1.TXT", "a/2.jpg.txt"])
    {"a/1.JPG": ["a/1.TXT"], "a/2.jpg": ["a/2.jpg.txt"]}
    """
    # One look-up per possible name of a caption file is linear in the number of images.
    by_form = {name.casefold(): name for name in names if name.lower().endswith(CAPTION_SUFFIXES)}
    files_of: dict[str, list[str]] = {}
    for image in images:
        stem = posixpath.splitext(image)[0]
        wanted = [
            f"{beginning}{suffix}".casefold()
            for beginning in (stem, image)
            for suffix in CAPTION_SUFFIXES
        ]
        if captions := [by_form[name] for name in wanted if name in by_form]:
            files_of[image] = captions

    return files_of


def read_pair(pair: Pair, source: str, config: SourceConfig) -> Sample | Reject:
    """The pair with its image and captions read, or a reject with the reason why not."""
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
        # dict.fromkeys removes repetitions and keeps the order.
        captions = tuple(dict.fromkeys((*(captions or ()), *beside)))

    try:
        data = image.read()
    except FileNotFoundError:
        return Reject(pair.key, source, "missing file", pair.key)

    if len(data) < image.size:
        return Reject(pair.key, source, "truncated archive", f"{len(data)} of {image.size} bytes")
    if captions is None:  # an evaluation set without captions, where () would mean a missing one
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
    """Clean captions from the files beside an image, which are named by kind.

    A list of captions in the JSON comes first, then the text, then a single caption in the JSON. If
    source.caption_column is set and there is a JSON, that field of the JSON is used.
    """
    record: dict = {}
    try:
        if "json" in files:
            # strict=False accepts line ends and tabs inside strings, which crawlers write.
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
