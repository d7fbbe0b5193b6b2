"""The decision on every row: clusters, keep probabilities, and why it is kept or dropped.

Stages drop rows one after the other, and a row keeps the reason of the first stage that drops it.
`show curate KEY` and the report read the table that is written at the end.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Int16, Int32, Int64

from curation.choice.duplicates import NO_BITS, Pairs
from curation.choice.why import DECISIONS
from curation.clusters.groups import Entries, one_entry_each
from curation.shards.reader import EmbeddingShards
from curation.shards.selection import write_table

EXAMPLES = "examples.arrow"
MARGINS = "margins.arrow"
EXAMPLES_PER_REASON = 24
PAIRS_PER_SIDE = 12

Sign = Literal["same image", "perceptual hash", "altered form", "cosine"]
"""The sign by which two images count as copies."""
Reason = Literal[
    "kept",
    "invalid: value not finite",
    "invalid: zero vector",
    "score: missing",
    "score: too low",
    "leakage: same image",
    "leakage: perceptual hash",
    "leakage: altered form",
    "leakage: cosine",
    "leakage: caption",
    "duplicate: same bytes",
    "duplicate: same pixels",
    "duplicate: perceptual hash",
    "duplicate: vector",
    "text: no metadata entry",
    "balance: image",
    "balance: text",
    "balance: image and text",
    "random: not drawn",
]
REASONS: tuple[Reason, ...] = get_args(Reason)
EQUAL_IMAGES: tuple[Reason, ...] = ("duplicate: same bytes", "duplicate: same pixels")
MARGIN_SCHEMA = pa.schema(
    {
        "evaluation": pa.string(),
        "sign": pa.string(),
        "threshold": pa.float64(),
        "value": pa.float32(),
        "is_copy": pa.bool_(),
        "key": pa.string(),
        "other": pa.string(),
        "thumbnail": pa.binary(),
        "other_thumbnail": pa.binary(),
    }
)
LEAKAGE: dict[Sign, Reason] = {
    "same image": "leakage: same image",
    "perceptual hash": "leakage: perceptual hash",
    "altered form": "leakage: altered form",
    "cosine": "leakage: cosine",
}


class Margin(NamedTuple):
    """Pairs that one threshold decided. Those nearest to it show whether it is right."""

    sign: Sign
    threshold: float
    pairs: Pairs

    def values(self) -> Float32[np.ndarray, " pairs"]:
        """What is compared with the threshold: cosines, or numbers of bits."""
        return self.pairs.cosine if self.sign == "cosine" else self.pairs.bits.astype(np.float32)

    def is_copy(self) -> Bool[np.ndarray, " pairs"]:
        """Whether the threshold makes a pair copies: a high cosine, or few bits."""
        values = self.values()
        return values >= self.threshold if self.sign == "cosine" else values <= self.threshold

    def nearest(self) -> "Margin":
        """The pairs nearest to the threshold, PAIRS_PER_SIDE on either side."""
        away = np.abs(self.values() - np.float32(self.threshold))
        is_copy = self.is_copy()
        sides = [np.flatnonzero(side) for side in (is_copy, ~is_copy)]
        chosen = [side[np.argsort(away[side], kind="stable")[:PAIRS_PER_SIDE]] for side in sides]
        return self._replace(pairs=self.pairs.where(np.concatenate(chosen)))


class Decisions:
    """The decisions so far. A row is kept until it is dropped, and its first reason stands."""

    def __init__(self, shards: EmbeddingShards, evaluation: Mapping[str, EmbeddingShards]) -> None:
        """No row is dropped yet; `evaluation` holds the evaluation sets by name."""
        self.shards = shards
        self.evaluation_names = list(evaluation)
        self.evaluation = list(evaluation.values())
        num_rows = shards.num_rows

        # Index into REASONS, of which 0 is "kept".
        self.reason = np.zeros(num_rows, np.int8)

        # The image because of which a row was dropped: its row, and the number of its evaluation
        # set, -1 for the pool itself. A row of -1 means that there is no such image.
        self.other_row: Int64[np.ndarray, " rows"] = np.full(num_rows, -1, np.int64)
        self.other_set = np.full(num_rows, -1, np.int16)
        self.caption_set = np.full(num_rows, -1, np.int16)
        self.cosine: Float32[np.ndarray, " rows"] = np.full(num_rows, np.nan, np.float32)
        self.bits: Int32[np.ndarray, " rows"] = np.full(num_rows, NO_BITS, np.int32)
        self.margins: list[tuple[str, Margin]] = []
        self.image_cluster: Int32[np.ndarray, " rows"] = np.full(num_rows, -1, np.int32)
        self.text_cluster: Int32[np.ndarray, " rows"] = np.full(num_rows, -1, np.int32)
        self.image_keep: Float32[np.ndarray, " rows"] = np.full(num_rows, np.nan, np.float32)
        self.text_keep: Float32[np.ndarray, " rows"] = np.full(num_rows, np.nan, np.float32)
        self.copies: Int64[np.ndarray, " rows"] = np.ones(num_rows, np.int64)
        self.entries: Entries | None = None
        self.entry_names: list[str] = []

    def surviving(self) -> Int64[np.ndarray, " n"]:
        """The rows that no stage has dropped so far, ascending."""
        return np.flatnonzero(self.reason == 0)

    def times_selected(self) -> Int64[np.ndarray, " rows"]:
        """How often each row is selected; 0 for dropped rows."""
        return np.where(self.reason == 0, self.copies, 0)

    def text_entries(self) -> Entries:
        """What captions are balanced over: metadata entries if there are any, else clusters."""
        return one_entry_each(self.text_cluster) if self.entries is None else self.entries

    def drop(self, rows: Int64[np.ndarray, " n"], reason: Reason) -> None:
        """Drop rows for a reason; rows that were dropped earlier keep theirs."""
        still = rows[self.reason[rows] == 0]
        self.reason[still] = REASONS.index(reason)

    def drop_for(self, pairs: Pairs, reason: Reason, evaluation: str | None = None) -> None:
        """Drop the right row of each pair because of its left row.

        The left row is a row of the pool or, with `evaluation`, of the evaluation set of that name.
        """
        still = self.reason[pairs.right] == 0
        rows = pairs.right[still]
        self.reason[rows] = REASONS.index(reason)
        self.other_row[rows] = pairs.left[still]
        self.cosine[rows] = pairs.cosine[still]
        self.bits[rows] = pairs.bits[still]
        if evaluation is not None:
            self.other_set[rows] = self.evaluation_names.index(evaluation)

    def note_margin(self, margin: Margin, evaluation: str | None = None) -> None:
        """Keep the pairs nearest to a threshold for the report.

        They are pairs of the pool itself or, with `evaluation`, with images of that set.
        """
        self.margins.append((evaluation or "", margin.nearest()))

    def merged_captions(self) -> dict[int, list[str]]:
        """By selected row, the captions of dropped rows with the same image.

        Captions that the selected row has itself are left out, and so are repetitions.
        """
        is_equal = np.isin(self.reason, [REASONS.index(reason) for reason in EQUAL_IMAGES])
        dropped = np.flatnonzero(is_equal & (self.other_set < 0))

        # A row may have been dropped for one with equal bytes, and that one for another with equal
        # pixels. Follow such chains to their end.
        target = self.other_row[dropped]
        while len(again := np.flatnonzero(is_equal[target])):
            target[again] = self.other_row[target[again]]

        is_selected = self.reason[target] == 0
        dropped = dropped[is_selected]
        target = target[is_selected]
        merged = dict(zip(target.tolist(), self.shards.captions(target), strict=True))
        num_own = {row: len(captions) for row, captions in merged.items()}

        # dict.fromkeys removes repetitions and keeps the order.
        for row, captions in zip(target.tolist(), self.shards.captions(dropped), strict=True):
            merged[row] += [
                caption for caption in dict.fromkeys(captions) if caption not in merged[row]
            ]

        # What was added lies behind the row's own captions.
        more = {row: captions[num_own[row] :] for row, captions in merged.items()}
        return {row: captions for row, captions in more.items() if captions}

    def counts(self) -> dict[Reason, int]:
        """Number of rows per reason, in the order of the stages."""
        return dict(
            zip(REASONS, np.bincount(self.reason, minlength=len(REASONS)).tolist(), strict=True)
        )

    def write(self, folder: Path) -> None:
        """Write the decisions, examples of removals, and pairs near thresholds, each atomically."""
        write_table(folder / DECISIONS, self._table())
        write_table(folder / EXAMPLES, self._examples())
        write_table(folder / MARGINS, self._margins())

    def _table(self) -> pa.Table:
        # A dictionary column stores each reason once, and one byte per row.
        dictionary = pa.DictionaryArray.from_arrays(pa.array(self.reason), pa.array(REASONS))
        columns = {
            "key": self.shards.keys().combine_chunks(),
            "image_cluster": self.image_cluster,
            "text_cluster": self.text_cluster,
            "image_keep": self.image_keep,
            "text_keep": self.text_keep,
            "kept": self.reason == 0,
            "copies": self.times_selected(),
            "reason": dictionary,
            "other": self._other_keys(),
            "other_set": self._names_of(self.other_set),
            "caption_in": self._names_of(self.caption_set),
            "cosine": self.cosine,
            "bits": pa.array(self.bits, mask=self.bits == NO_BITS),
        }
        if self.entries is not None:
            columns["entries"] = self._entry_lists(self.entries)

        return pa.table(columns)

    def _entry_lists(self, entries: Entries) -> pa.LargeListArray:
        # Entries are stored as Arrow stores lists: offsets and values are used as they are.
        names = pa.DictionaryArray.from_arrays(
            pa.array(entries.values), pa.array(self.entry_names, pa.string())
        )
        return pa.LargeListArray.from_arrays(pa.array(entries.offsets), names)

    def _other_keys(self) -> pa.Array:
        """Per row, the key of the image because of which it was dropped; null if there is none."""
        keys = np.full(len(self.reason), None, object)
        for index, shards in [(-1, self.shards), *enumerate(self.evaluation)]:
            rows = np.flatnonzero((self.other_row >= 0) & (self.other_set == index))
            others = shards.keys().combine_chunks().take(pa.array(self.other_row[rows]))
            keys[rows] = others.to_numpy(zero_copy_only=False)
        return pa.array(keys, pa.large_string())

    def _names_of(self, sets: Int16[np.ndarray, " rows"]) -> pa.Array:
        """Names of evaluation sets by number; null for -1."""
        # A masked number is null, and `take` gives null for it.
        return pa.array(self.evaluation_names, pa.string()).take(pa.array(sets, mask=sets < 0))

    def _examples(self) -> pa.Table:
        """Evenly spaced removals of each reason, with both thumbnails.

        Thumbnails are copied, because the report cannot open the evaluation images.
        """
        rows = [np.empty(0, np.int64)]
        for code in np.unique(self.reason[self.other_row >= 0]):
            dropped = np.flatnonzero((self.reason == code) & (self.other_row >= 0))
            # Positions spread evenly from the first removal to the last.
            rows.append(
                dropped[
                    np.linspace(0, len(dropped) - 1, min(EXAMPLES_PER_REASON, len(dropped))).astype(
                        int
                    )
                ]
            )

        chosen = np.concatenate(rows)
        names = ["key", "reason", "other", "other_set", "cosine", "bits"]
        table = self._table().select(names).take(pa.array(chosen))
        others = [
            (self.evaluation[index] if index >= 0 else self.shards).thumbnails(row[None])[0]
            for index, row in zip(self.other_set[chosen], self.other_row[chosen], strict=True)
        ]
        thumbnails = pa.array(self.shards.thumbnails(chosen), pa.binary())

        return table.append_column("thumbnail", thumbnails).append_column(
            "other_thumbnail", pa.array(others, pa.binary())
        )

    def _margins(self) -> pa.Table:
        """Both keys and thumbnails of the pairs nearest to each threshold."""
        tables = []
        for name, margin in self.margins:
            others = self.evaluation[self.evaluation_names.index(name)] if name else self.shards
            pairs = margin.pairs
            count = len(pairs.left)
            columns = {
                "evaluation": [name] * count,
                "sign": [margin.sign] * count,
                "threshold": np.full(count, margin.threshold),
                "value": margin.values(),
                "is_copy": margin.is_copy(),
                "key": self.shards.keys_of(pairs.right),
                "other": others.keys_of(pairs.left),
                "thumbnail": pa.array(self.shards.thumbnails(pairs.right), pa.binary()),
                "other_thumbnail": pa.array(others.thumbnails(pairs.left), pa.binary()),
            }
            tables.append(pa.table(columns, schema=MARGIN_SCHEMA))

        return pa.concat_tables(tables) if tables else MARGIN_SCHEMA.empty_table()
