"""Delimited text to records: comma, tab, semicolon or pipe, with or without header and quotes, as
they are found.

Python's csv module parses; what is decided here is its dialect, by the first line, and whether
quotes are quotes.
"""

import csv
import io
import sys
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from curation.pairs.config import SourceConfig
from curation.pairs.fields import CAPTION_FIELDS, CAPTION_WORDS, IMAGE_FIELDS, is_image_name

CANDIDATES = ("\t", "|", ";", ",")
NAMES = {"\t": "tab", "|": "pipe", ";": "semicolon", ",": "comma"}
EXCEL_HINT = "sep="


class Table(NamedTuple):
    """A parsed table."""

    names: list[str]
    """Names of the columns; their numbers from 0 where there is no header."""
    records: list[dict[str, object]]
    """Rows by column; empty where a row does not fit its header."""
    dialect: str
    """How it was read, in words."""


class Dialect(NamedTuple):
    """How a table is delimited."""

    delimiter: str
    has_header: bool


def parse_table(name: str, text: str, config: SourceConfig) -> Table:
    """The records of a table; ValueError names the line where its quotes do not pair, or swallow
    other lines.
    """
    first, _, rest = text.partition("\n")
    delimiter = config.delimiter_character
    if first.lower().startswith(EXCEL_HINT):
        delimiter = delimiter or first.strip()[len(EXCEL_HINT) :][:1]
        text = rest

    dialect = find_dialect(name, text, delimiter)
    csv.field_size_limit(sys.maxsize)  # further columns may hold anything; captions are cut later

    rows, is_quoted = _rows(name, text, dialect)
    header = rows[0] if dialect.has_header and rows else []
    names = [cell.strip() for cell in header] or [
        str(index) for index in range(max(map(len, rows), default=0))
    ]
    body = rows[1:] if dialect.has_header else rows
    records = [_record(names, row, dialect.delimiter) for row in body]
    words = [
        f"delimited by {NAMES.get(dialect.delimiter, dialect.delimiter)}",
        "with header" if dialect.has_header else "without header",
        "quoted" if is_quoted else "quotes are text",
    ]

    return Table(names, records, ", ".join(words))


def find_dialect(name: str, text: str, delimiter: str | None = None) -> Dialect:
    """The delimiter and header of a table by its first line.

    The delimiter is the one that cuts out a field with a known name, or an image's name; else the
    one with most fields, a tab for .tsv and .token. There is no header where a field of the first
    line is an image's name.
    """
    first = next((line for line in text.splitlines() if line.strip()), "")
    suffix_first = (
        ("\t", ",", ";", "|") if name.lower().endswith((".tsv", ".tab", ".token")) else CANDIDATES
    )
    scores = []

    for rank, candidate in enumerate((delimiter,) if delimiter else suffix_first):
        cells = [cell.strip() for cell in _cells(first, candidate)]
        scores.append(
            (_num_known(cells), len(cells) > 1, -rank, candidate, any(map(is_image_name, cells)))
        )

    _, _, _, best, holds_image = max(scores)
    return Dialect(best, not holds_image)


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return line.split(delimiter)


def _num_known(cells: Sequence[str]) -> int:
    """How many cells look like fields of pairs, as far as one delimiter must be told from
    another.
    """
    plain = [cell.lower().replace("-", "_").replace(" ", "_") for cell in cells]
    known = sum(cell in IMAGE_FIELDS or cell in CAPTION_FIELDS for cell in plain)
    words = sum(len(cell) < 40 and bool(CAPTION_WORDS.search(cell)) for cell in plain)
    return 2 * known + words + 2 * sum(map(is_image_name, cells)) if len(cells) > 1 else 0


def _rows(name: str, text: str, dialect: Dialect) -> tuple[list[list[str]], bool]:
    """(rows, whether quotes are quotes): they are unless they swallow lines, or do not pair where
    none are needed.
    """
    try:
        rows = list(_parsed(text, dialect.delimiter, csv.QUOTE_MINIMAL))
        swallowed = _swallowing(rows, dialect.delimiter)
        problem = f"a quote swallows the lines after it: {swallowed[:60]!r}" if swallowed else ""
    except csv.Error as error:
        rows = []
        problem = str(error)

    if not problem:
        return rows, True

    unquoted = list(_parsed(text, dialect.delimiter, csv.QUOTE_NONE))
    widths = {len(row) for row in unquoted}
    is_quoted_anywhere = any(
        len(cell) > 1 and cell[0] == cell[-1] == '"' for row in unquoted for cell in row
    )
    if dialect.delimiter == "\t" or (len(widths) == 1 and not is_quoted_anywhere):
        return unquoted, False

    raise ValueError(
        f"{name} cannot be parsed ({problem}): repair its quotes there, then run again"
    )


def _parsed(text: str, delimiter: str, quoting: Literal[0, 3]) -> Iterator[list[str]]:
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quoting=quoting,
        strict=True,
        skipinitialspace=f"{delimiter} " in text.partition("\n")[0],
    )
    try:
        yield from (row for row in reader if row)
    except csv.Error as error:
        raise csv.Error(f"{error}, line {reader.line_num}") from error


def _swallowing(rows: Sequence[Sequence[str]], delimiter: str) -> str:
    """A field whose further lines are records themselves; empty when there is none."""
    for row in rows:
        for cell in row:
            for line in cell.splitlines()[1:]:
                cells = line.split(delimiter)
                if len(cells) > 1 and (delimiter == "\t" or any(map(is_image_name, cells))):
                    return f"line {_place(rows, row)}: {cell}"
    return ""


def _place(rows: Sequence[Sequence[str]], row: Sequence[str]) -> int:
    """The line on which a row begins."""
    before = rows[: next(index for index, other in enumerate(rows) if other is row)]
    return 1 + sum(1 + sum(cell.count("\n") for cell in other) for other in before)


def _record(names: Sequence[str], row: Sequence[str], delimiter: str) -> dict[str, object]:
    """A row by column. What is too much belongs to a caption in the last column, or the row is
    unreadable (empty).
    """
    if len(row) > len(names):
        last = names[-1].lower()
        if not (last in CAPTION_FIELDS or CAPTION_WORDS.search(last) or last.isdigit()):
            return {}
        row = [*row[: len(names) - 1], delimiter.join(row[len(names) - 1 :])]
    return dict(zip(names, row, strict=False))
