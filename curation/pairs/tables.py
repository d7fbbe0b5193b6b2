"""Delimited text to records: comma, tab, semicolon or pipe, with or without header and quotes.

Python's csv module parses. This module decides its dialect by the first line, and whether quotes
are quotes or part of the text.
"""

import csv
import io
import sys
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from curation.pairs.config import SourceConfig
from curation.pairs.field_names import CAPTION_FIELDS, CAPTION_WORDS, IMAGE_FIELDS
from curation.pairs.values import is_image_name

CANDIDATES = ("\t", "|", ";", ",")  # the comma last: captions are full of commas
NAMES = {"\t": "tab", "|": "pipe", ";": "semicolon", ",": "comma"}
EXCEL_HINT = "sep="  # a first line of Excel's that names the delimiter, as in sep=;


class Table(NamedTuple):
    """A parsed table."""

    names: list[str]
    """Names of the columns; their numbers from 0 if there is no header."""
    records: list[dict[str, object]]
    """Rows by column; {} for a row that does not fit the header."""
    dialect: str
    """How it was read, in words."""


class Dialect(NamedTuple):
    """How a table is delimited."""

    delimiter: str
    has_header: bool


def parse_table(name: str, text: str, config: SourceConfig) -> Table:
    """The records of a table.

    Raises ValueError, with the line, when quotes do not pair or when a quoted field swallows lines.
    """
    first, _, rest = text.partition("\n")
    delimiter = config.delimiter_character
    if first.lower().startswith(EXCEL_HINT):
        delimiter = delimiter or first.strip()[len(EXCEL_HINT) :][:1]
        text = rest

    dialect = find_dialect(name, text, delimiter)
    csv.field_size_limit(sys.maxsize)  # other columns may be long; captions are cut later

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
    """The delimiter of a table, and whether it has a header, by its first line.

    The best delimiter is the one that separates most fields with known names and image names, then
    any that separates fields at all, then the first of the candidates (a tab for .tsv and .token).
    The first line is no header if one of its fields is the name of an image.
    """
    first = next((line for line in text.splitlines() if line.strip()), "")
    suffix_first = (
        ("\t", ",", ";", "|") if name.lower().endswith((".tsv", ".tab", ".token")) else CANDIDATES
    )
    scores = []

    for rank, candidate in enumerate((delimiter,) if delimiter else suffix_first):
        cells = [cell.strip() for cell in _cells(first, candidate)]
        # Tuples compare element by element; -rank is unique, so what follows is never compared.
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
    """A score of how much cells look like fields of pairs, to compare delimiters.

    Known names and image names count two, and names with the word of a caption count one.
    """
    plain = [cell.lower().replace("-", "_").replace(" ", "_") for cell in cells]
    known = sum(cell in IMAGE_FIELDS or cell in CAPTION_FIELDS for cell in plain)
    words = sum(len(cell) < 40 and bool(CAPTION_WORDS.search(cell)) for cell in plain)
    return 2 * known + words + 2 * sum(map(is_image_name, cells)) if len(cells) > 1 else 0


def _rows(name: str, text: str, dialect: Dialect) -> tuple[list[list[str]], bool]:
    """(rows, whether quotes are quotes).

    Quotes are quotes if the table parses with them. If it does not, they are text where the table
    needs none: with tabs, or if all rows have one length and no field is quoted as a whole.
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
    """The first field with line ends whose later lines look like records; empty if there is none.

    A quote that is never closed swallows the records after it.
    """
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
    """A row by column; {} if it has more cells than the header has names.

    But if the last column has captions, the extra cells are parts of a caption with delimiters.
    """
    if len(row) > len(names):
        last = names[-1].lower()
        if not (last in CAPTION_FIELDS or CAPTION_WORDS.search(last) or last.isdigit()):
            return {}
        row = [*row[: len(names) - 1], delimiter.join(row[len(names) - 1 :])]
    return dict(zip(names, row, strict=False))
