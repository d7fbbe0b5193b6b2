"""What would be read from a source, and how, as text. It needs no model, no Ray and no decoding.

Ambiguities are shown with their candidates and the flag that chooses among them.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from curation.pairs.config import SourceConfig
from curation.pairs.fields import Fields
from curation.pairs.opening import Source
from curation.pairs.sample import Part, Reject, Sample
from curation.pairs.sources import check, estimated_rows, open_source, read_part

PAIRS_SHOWN = 5
LISTS_SHOWN = 8
REASONS_SHOWN = 12
CAPTION_SHOWN = 70


def inspect_source(path: Path, config: SourceConfig) -> tuple[str, bool]:
    """(description of a source as lines of text, whether a run would read it).

    Raises ValueError when the source does not exist, or is of a kind that is not read.
    """
    source = open_source(config, path)
    lines = [f"source     {path}", f"layout     {_layout(source)}"]
    lines += _labeled("fields", _fields(source))
    lines += _labeled("splits", [_splits(source, config)])
    lines += _labeled("files", _files(source))
    lines += _labeled("notes", source.account.notes)
    lines += _labeled("ambiguous", [str(problem) for problem in source.problems])
    lines += _labeled("pairs", [_estimate(source, config)])
    lines += _labeled("first", list(_first_pairs(source, config)))

    try:
        check(config, source)
    except ValueError as error:
        return "\n".join([*lines, f"run        would stop: {error}"]), False

    return "\n".join([*lines, "run        would read it"]), True


def _labeled(label: str, lines: list[str]) -> list[str]:
    """Lines with a label before the first of them; no line if there are none."""
    return [f"{label if index == 0 else '':<11}{line}" for index, line in enumerate(lines)]


def _layout(source: Source) -> str:
    """The layouts of a source, with the number of files or images of each."""
    kinds = Counter(one.kind.partition(",")[0] for one in source.lists)
    words = [
        f"{number} {'list' if number == 1 else 'lists'} ({kind})" for kind, number in kinds.items()
    ]
    if source.tars:
        words.append(f"{len(source.tars)} WebDataset tars")
    if source.tables:
        words.append(f"{len(source.tables)} Parquet files")
    if source.num_beside:
        words.append(f"{source.num_beside} images with captions beside them")

    return ", ".join(words) or "none that is known"


def _fields(source: Source) -> list[str]:
    """The fields of each list and table, and which of them are image and caption."""
    lines = [
        f"{one.name}: {one.kind}; "
        f"{_chosen(one.fields, one.names) if one.fields else 'fields of that format'}"
        for one in source.lists
    ]
    lines += [
        f"{table.name}: Parquet; {_chosen(table.fields, table.names)}" for table in source.tables
    ]
    more = len(lines) - LISTS_SHOWN
    return [*lines[:LISTS_SHOWN], f"and {more} more"] if more > 0 else lines


def _chosen(fields: Fields, names: tuple[str, ...]) -> str:
    chosen = f"image {fields.image!r}, caption {', '.join(map(repr, fields.captions))}"
    chosen += f", key {fields.key!r}" if fields.key is not None else ""
    others = [name for name in names if name != fields.image and name not in fields.captions]
    return f"{chosen} of the fields {', '.join(names)}" + (
        "; --embed.source.image-column and --embed.source.caption-column choose others"
        if others
        else ""
    )


def _splits(source: Source, config: SourceConfig) -> str:
    wanted = f"reading {config.split or 'all'}"
    if source.splits:
        return f"{wanted}; rows have {', '.join(sorted(source.splits))}"
    return f"{wanted}; no row names a split"


def _files(source: Source) -> list[str]:
    """The number of files per use, then the reasons why files are not read."""
    counts = Counter(use.use for use in source.account.files.values())
    lines = [", ".join(f"{use} {number:,}" for use, number in counts.items()) or "none"]
    unread = source.account.unread()
    for reason, names in list(unread.items())[:REASONS_SHOWN]:
        lines.append(f"not read: {source.account.describe(reason, names)}")
    return lines


def _estimate(source: Source, config: SourceConfig) -> str:
    """The number of pairs: exact from lists and Parquet footers, else from a tar's first rows."""
    is_exact = all(part.num_rows is not None for part in source.parts)
    return f"{'' if is_exact else 'about '}{estimated_rows(config, source.parts):,}"


def _first_pairs(source: Source, config: SourceConfig) -> Iterator[str]:
    """The first rows, including rejects with their reasons."""
    for row in islice(_rows(source.parts, config), PAIRS_SHOWN):
        if isinstance(row, Reject):
            yield f"{row.key}: rejected, {row.reason}: {row.detail}"
            continue
        caption = row.captions[0][:CAPTION_SHOWN] + (
            "..." if len(row.captions[0]) > CAPTION_SHOWN else ""
        )
        more = f" (and {len(row.captions) - 1} more)" if len(row.captions) > 1 else ""
        yield f"{row.key}: {len(row.image):,} bytes, {caption!r}{more}"


def _rows(parts: list[Part], config: SourceConfig) -> Iterator[Sample | Reject]:
    for part in parts:
        yield from read_part(config, part)
