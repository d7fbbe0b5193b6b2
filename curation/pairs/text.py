"""Bytes of caption files to text, and captions in a form that every consumer can store and print.

A byte-order mark decides the encoding. Without a mark, it is UTF-8 or the encoding that the user
has set. Bytes that do not fit are never replaced: they stay in the text as escapes (U+DC80 to
U+DCFF), and a row whose caption has one is rejected.
"""

import codecs
import json
import re
from collections.abc import Iterable, Iterator

MAX_CAPTION_CHARS = 10_000
CONTROL_TO_SPACE = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)], " ")
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


def decode_text(data: bytes, encoding: str | None = None) -> str:
    """The text of a file; bytes that do not fit its encoding are escaped as U+DC80 to U+DCFF.

    `encoding` is used if the file has no byte-order mark. NUL characters become blanks.
    """
    name, start = encoding_of(data, encoding)
    return data[start:].decode(name, "surrogateescape").replace("\0", " ")


def encoding_of(data: bytes, encoding: str | None = None) -> tuple[str, int]:
    """(name of the encoding, length of the byte-order mark) of a file."""
    for mark, name in MARKS:
        if data.startswith(mark):
            return name, len(mark)

    # In UTF-16, every second byte of Western text is zero, and its place tells the byte order.
    guess = json.detect_encoding(data[:4]) if data[:4].count(0) == 2 else "utf-8"
    return encoding or guess, 0


def undecodable(text: str) -> str:
    """What is wrong with a text that holds escaped bytes; empty when it holds none."""
    escaped = ESCAPED_BYTE.search(text)
    if escaped is None:
        return ""
    # Encoding with the same handler restores the original bytes.
    around = text[max(0, escaped.start() - 20) : escaped.start() + 20]
    shown = around.encode("utf-8", "surrogateescape")
    return (
        f"byte 0x{ord(escaped[0]) - 0xDC00:02x} does not fit the encoding (near {shown!r}): name "
        "the right one with --embed.source.encoding, such as cp1252 or gbk"
    )


def clean_captions(raw: Iterable[object]) -> tuple[str, ...]:
    """Captions in one line each, without control characters and lone surrogates.

    They are cut to 10,000 characters. Empty captions and values that are not text are left out.
    """
    return tuple(_clean(raw))


def _clean(raw: Iterable[object]) -> Iterator[str]:
    for caption in raw:
        if isinstance(caption, str):
            # UTF-8 cannot encode lone surrogates, which JSON may contain: they become "?".
            valid = caption.encode("utf-8", "replace").decode()
            text = " ".join(valid.translate(CONTROL_TO_SPACE).split())[:MAX_CAPTION_CHARS]
            if text:
                yield text


def as_text(name: str) -> str:
    """A file's name in a form that UTF-8 can store.

    Python keeps bytes of other encodings in names as surrogates. They are spelled out, as in
    caf\\udce9.jpg.
    """
    return name.encode("utf-8", "backslashreplace").decode()
