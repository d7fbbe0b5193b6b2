"""Which files may be lists of pairs, by name and first bytes alone: others are never parsed."""

import posixpath
import re

from curation.pairs.config import SourceConfig
from curation.pairs.images import IMAGE_SUFFIXES
from curation.pairs.records import JSON_SUFFIXES, is_named_as_list
from curation.pairs.text import decode_text
from curation.pairs.values import is_image_name

HEAD_BYTES = 65_536
SMALL_JSON_BYTES = 4_000_000  # cheap to parse, whatever it contains

# Names of caption fields as JSON writes them, with the quote before them.
CAPTION_WORDS = (
    b'"caption',
    b'"sentences"',
    b'"conversations"',
    b'"text"',
    b'"prompt"',
    b'"title"',
)
DOCUMENTS = (
    "readme",
    "license",
    "licence",
    "copying",
    "notice",
    "changelog",
    "citation",
    "classes",
    "requirements",
)
NAMES_NO_IMAGE = "a text file that names no images"
IMAGE_WORDS = ("image", "img", "file", "filename", "filepath", "path", "picture", "photo")
CAPTION_FIELD = re.compile("captions?|texts?|titles?|sentences?|comment|prompt|description")
FIRST_LINES = 20


def cannot_be_list(name: str, size: int, head: bytes, config: SourceConfig) -> str:
    """Why a file cannot be a list of pairs, by name and first bytes; empty if it may be one.

    Parsing everything is no option: COCO's other annotations need gigabytes of memory once parsed,
    and a folder may have a text per image.
    """
    suffix = posixpath.splitext(name)[1].lower()
    if is_document(name):
        return "a document"

    is_named_so = is_named_as_list(name)
    if suffix in JSON_SUFFIXES:
        is_cheap = size <= SMALL_JSON_BYTES and _is_shallow(head)
        if is_cheap or is_named_so or any(word in head for word in CAPTION_WORDS):
            return ""
        return "a JSON file whose name and beginning say nothing of captions"

    text = decode_text(head, config.encoding)
    lines = [line for line in text.splitlines() if line.strip()][:FIRST_LINES]
    if not (is_named_so or any(map(_is_header, lines[:1])) or any(map(_names_image, lines))):
        return NAMES_NO_IMAGE

    # Lines of one image name each, as in lists of splits.
    if lines and all(
        is_image_name(line) and not any(mark in line for mark in ",;|\t") for line in lines
    ):
        return "a list of names without captions"

    return ""


def is_document(name: str) -> bool:
    """Whether a text file is documentation by its name, such as README.txt."""
    return posixpath.basename(name).lower().startswith(DOCUMENTS) and name.lower().endswith(".txt")


def _is_shallow(head: bytes) -> bool:
    """Whether brackets open no deeper than records do: the parser fails on deeper nesting."""
    # A file that is nested too deeply starts with its opening brackets, one after the other.
    return head.lstrip()[:200].count(b"[") < 100


def _is_header(line: str) -> bool:
    """Whether a line has names of an image column and of a caption column.

    The images below such a header may have no suffix.
    """
    words = re.findall("[a-z]+", line.lower())
    return any(word in words for word in IMAGE_WORDS) and any(map(CAPTION_FIELD.fullmatch, words))


def _names_image(line: str) -> bool:
    return any(suffix in line.lower() for suffix in IMAGE_SUFFIXES)
