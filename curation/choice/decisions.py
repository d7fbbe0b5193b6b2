"""What became of every row: its clusters, its keep probabilities, and the one reason why it was kept or dropped.

Reasons are given in the order of the stages; the first one stands. The table is what `show curate KEY` and the report
read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int16, Int32, Int64

from curation.choice.duplicates import Pairs
from curation.choice.why import DECISIONS
from curation.clusters.groups import Entries, one_entry_each
from curation.shards.reader import EmbeddingShards
from curation.shards.selection import write_table

EXAMPLES = "examples.arrow"
EXAMPLES_PER_REASON = 24

Reason = Literal[
    "kept",
    "invalid: value not finite",
    "invalid: zero vector",
    "score: missing",
    "score: too low",
    "leakage: same image",
    "leakage: perceptual hash",
    "leakage: cosine",
    "leakage: caption",
    "duplicate: same bytes",
    "duplicate: same pixels",
    "duplicate: perceptual hash",
    "duplicate: cosine",
    "text: no metadata entry",
    "balance: image",
    "balance: text",
    "balance: image and text",
    "random: not drawn",
]
REASONS: tuple[Reason, ...] = get_args(Reason)


class Decisions:
    """The decisions so far; rows are kept until dropped, and dropped once."""

    def __init__(self, shards: EmbeddingShards, evaluation: Mapping[str, EmbeddingShards]) -> None:
        """`evaluation` holds the evaluation sets by name."""
        self.shards = shards
        self.names, self.evaluation = list(evaluation), list(evaluation.values())
        num_rows = shards.num_rows
        self.reason = np.zeros(num_rows, np.int8)
        self.other_row: Int64[np.ndarray, " rows"] = np.full(num_rows, -1, np.int64)
        self.other_set = np.full(num_rows, -1, np.int16)
        self.caption_set = np.full(num_rows, -1, np.int16)
        self.cosine: Float32[np.ndarray, " rows"] = np.full(num_rows, np.nan, np.float32)
        self.image_cluster: Int32[np.ndarray, " rows"] = np.full(num_rows, -1, np.int32)
        self.text_cluster: Int32[np.ndarray, " rows"] = np.full(num_rows, -1, np.int32)
        self.image_keep: Float32[np.ndarray, " rows"] = np.full(num_rows, np.nan, np.float32)
        self.text_keep: Float32[np.ndarray, " rows"] = np.full(num_rows, np.nan, np.float32)
        self.copies: Int64[np.ndarray, " rows"] = np.ones(num_rows, np.int64)
        self.entries: Entries | None = None
        self.entry_names: list[str] = []

    def surviving(self) -> Int64[np.ndarray, " n"]:
        """Rows not dropped so far, ascending."""
        return np.flatnonzero(self.reason == 0)

    def taken(self) -> Int64[np.ndarray, " rows"]:
        """How often each row is selected, 0 for those dropped."""
        return np.where(self.reason == 0, self.copies, 0)

    def text_entries(self) -> Entries:
        """What balances captions: metadata entries where there are some, otherwise clusters."""
        return one_entry_each(self.text_cluster) if self.entries is None else self.entries

    def drop(self, rows: Int64[np.ndarray, " n"], reason: Reason) -> None:
        """Drop those of the rows that are still kept."""
        still = rows[self.reason[rows] == 0]
        self.reason[still] = REASONS.index(reason)

    def drop_for(self, found: Pairs, reason: Reason, evaluation: str | None = None) -> None:
        """Drop the right row of each pair because of the left: another row of the pool, or of an evaluation set."""
        still = self.reason[found.right] == 0
        rows = found.right[still]
        self.reason[rows] = REASONS.index(reason)
        self.other_row[rows], self.cosine[rows] = found.left[still], found.cosine[still]
        if evaluation is not None:
            self.other_set[rows] = self.names.index(evaluation)

    def counts(self) -> dict[Reason, int]:
        """Rows per reason, in the order of the stages."""
        return dict(zip(REASONS, np.bincount(self.reason, minlength=len(REASONS)).tolist(), strict=True))

    def write(self, folder: Path) -> None:
        """Write the decisions and some examples of each kind of removal, atomically."""
        write_table(folder / DECISIONS, self._table())
        write_table(folder / EXAMPLES, self._examples())

    def _table(self) -> pa.Table:
        dictionary = pa.DictionaryArray.from_arrays(pa.array(self.reason), pa.array(REASONS))
        columns = {
            "key": self.shards.keys().combine_chunks(),
            "image_cluster": self.image_cluster,
            "text_cluster": self.text_cluster,
            "image_keep": self.image_keep,
            "text_keep": self.text_keep,
            "kept": self.reason == 0,
            "copies": self.taken(),
            "reason": dictionary,
            "other": self._other_keys(),
            "other_set": self._names_of(self.other_set),
            "caption_in": self._names_of(self.caption_set),
            "cosine": self.cosine,
        }
        if self.entries is not None:
            columns["entries"] = self._entry_lists(self.entries)
        return pa.table(columns)

    def _entry_lists(self, entries: Entries) -> pa.LargeListArray:
        names = pa.DictionaryArray.from_arrays(pa.array(entries.values), pa.array(self.entry_names, pa.string()))
        return pa.LargeListArray.from_arrays(pa.array(entries.offsets), names)

    def _other_keys(self) -> pa.Array:
        """The key of the row or evaluation image because of which a row was dropped; null where there is none."""
        keys = np.full(len(self.reason), None, object)
        for index, shards in [(-1, self.shards), *enumerate(self.evaluation)]:
            rows = np.flatnonzero((self.other_row >= 0) & (self.other_set == index))
            taken = shards.keys().combine_chunks().take(pa.array(self.other_row[rows]))
            keys[rows] = taken.to_numpy(zero_copy_only=False)
        return pa.array(keys, pa.large_string())

    def _names_of(self, sets: Int16[np.ndarray, " rows"]) -> pa.Array:
        """Names of evaluation sets, null for -1."""
        return pa.array(self.names, pa.string()).take(pa.array(sets, mask=sets < 0))

    def _examples(self) -> pa.Table:
        """Both thumbnails of evenly spaced removals of each kind: evaluation images cannot be looked up later."""
        rows = [np.empty(0, np.int64)]
        for code in np.unique(self.reason[self.other_row >= 0]):
            dropped = np.flatnonzero((self.reason == code) & (self.other_row >= 0))
            rows.append(dropped[np.linspace(0, len(dropped) - 1, min(EXAMPLES_PER_REASON, len(dropped))).astype(int)])
        chosen = np.concatenate(rows)
        table = self._table().select(["key", "reason", "other", "other_set", "cosine"]).take(pa.array(chosen))
        others = [
            (self.evaluation[index] if index >= 0 else self.shards).thumbnails(row[None])[0]
            for index, row in zip(self.other_set[chosen], self.other_row[chosen], strict=True)
        ]
        thumbnails = pa.array(self.shards.thumbnails(chosen), pa.binary())
        return table.append_column("thumbnail", thumbnails).append_column(
            "other_thumbnail", pa.array(others, pa.binary())
        )
