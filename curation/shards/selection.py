"""The selection file: the rows of a folder of embeddings to train on, as keys and row numbers.

Nothing is copied: a selection points into the shards. It also fits embeddings of the same pairs by
another backbone. For embeddings of other pairs it is refused, because rows and keys are compared.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64

from cluster.files import replacing
from curation.shards.reader import EmbeddingShards
from curation.shards.schema import KEY

SELECTION = "selection.arrow"
CHECKED_AT_ONCE = 1 << 16
REMEDY = "run the curate step again on these embeddings, or train on the embeddings it was made for"


class SelectionError(ValueError):
    """A selection that cannot be used. The message has file, rule and remedy."""


class Selection(NamedTuple):
    """The selected rows of a folder of embeddings, ascending, with their keys. Rows may repeat."""

    keys: pa.ChunkedArray
    rows: Int64[np.ndarray, " rows"]
    more_captions: pa.Array
    """Per selected row, captions of dropped rows with the same image; null if there are none."""

    def captions(self, shards: EmbeddingShards, places: Int64[np.ndarray, " n"]) -> list[list[str]]:
        """All captions of the rows at some places of the selection: their own, then the others."""
        own = shards.captions(self.rows[places])
        more = self.more_captions.take(pa.array(places)).to_pylist()
        return [captions + (others or []) for captions, others in zip(own, more, strict=True)]

    def num_more_captions(self) -> Int64[np.ndarray, " rows"]:
        """Per selected row, the number of captions that are not its own."""
        return (
            pc.list_value_length(self.more_captions)
            .fill_null(0)
            .to_numpy(zero_copy_only=False)
            .astype(np.int64)
        )


def write_selection(
    folder: Path,
    shards: EmbeddingShards,
    rows: Int64[np.ndarray, " rows"],
    more_captions: Mapping[int, Sequence[str]] | None = None,
) -> None:
    """Write the selection of some rows, atomically.

    `rows` are ascending, and may repeat. `more_captions` are further captions, by row.
    """
    assert (np.diff(rows) >= 0).all()
    # The number of all embeddings is a cheap first check that a selection fits.
    metadata = {"rows": str(len(rows)), "embedding_rows": str(shards.num_rows)}
    keys = shards.keys().combine_chunks().take(pa.array(rows))

    more = more_captions or {}
    has_more = np.isin(rows, np.fromiter(more, np.int64, len(more)))
    lists = [
        list(more[row]) if has_captions else None
        for row, has_captions in zip(rows.tolist(), has_more.tolist(), strict=True)
    ]
    column = (
        pa.array(lists, pa.list_(pa.string()))
        if more
        else pa.nulls(len(rows), pa.list_(pa.string()))
    )

    table = pa.table({"key": keys, "row": pa.array(rows), "more_captions": column})
    write_table(folder / SELECTION, table.replace_schema_metadata(metadata))


def write_table(path: Path, table: pa.Table) -> None:
    """Write an Arrow file atomically."""
    with replacing(path) as temporary, pa.ipc.new_file(temporary, table.schema) as writer:
        writer.write_table(table)


def read_selection(folder: Path, shards: EmbeddingShards | None = None) -> Selection:
    """The selection in a curate folder.

    Raises SelectionError if there is none or, with `shards`, if it was made for other embeddings.
    """
    path = folder / SELECTION
    if not path.is_file():
        raise SelectionError(
            f"no {SELECTION} in {folder}: the curate step writes it; run the curate step"
        )

    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    # A single chunk stays memory-mapped; combine_chunks would copy it.
    rows = table["row"].chunk(0) if table["row"].num_chunks == 1 else table["row"].combine_chunks()
    more = table["more_captions"].combine_chunks()
    selection = Selection(table["key"].cast(pa.large_string()), rows.to_numpy(), more)
    if shards is not None:
        _check(path, selection, int(table.schema.metadata[b"embedding_rows"]), shards)

    return selection


def _check(path: Path, selection: Selection, expected: int, shards: EmbeddingShards) -> None:
    """Raise SelectionError unless the shards have `expected` rows and the selection's keys."""
    if expected != shards.num_rows:
        raise SelectionError(
            f"{path} was made for {expected} embeddings, {shards.folder} has {shards.num_rows}: "
            f"they must be the same; {REMEDY}"
        )

    for start in range(0, len(selection.rows), CHECKED_AT_ONCE):
        # Rows are ascending, so those of a block lie in one range of the shards.
        rows = selection.rows[start : start + CHECKED_AT_ONCE]
        here = (
            shards.strings(KEY, (int(rows[0]), int(rows[-1]) + 1))
            .combine_chunks()
            .take(pa.array(rows - rows[0]))
        )
        selected = selection.keys.slice(start, len(rows)).combine_chunks()
        if not here.equals(selected):
            wrong = next(index for index in range(len(here)) if here[index] != selected[index])
            raise SelectionError(
                f"{path} has key {selected[wrong]} at row {rows[wrong]}, {shards.folder} has "
                f"{here[wrong]}: they must be the same; {REMEDY}"
            )
