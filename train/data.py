"""Shards and a selection to batches: batch i is arithmetic over (seed, i), then cut among ranks.

Each epoch goes through the training pairs in a shuffled order (train/shuffle.py); no batch spans
two epochs. The state of the loader is one integer, and the sequence of keys is the same for any
number of ranks and after any resume. Validation pairs are chosen by key.

Either one caption per pair is drawn by (seed, epoch, key), or all captions are used, in rounds.
Round r holds the pairs with more than r captions, each with a caption that it has not used yet, so
that no image occurs twice in a batch.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Int64, UInt64

from curation.shards.reader import EmbeddingShards, open_shards
from curation.shards.schema import CAPTIONS, CLS, PATCHES, REGISTERS
from curation.shards.selection import read_selection
from train.attention import pack
from train.batch import Batch, Stored
from train.config import TrainConfig
from train.images import Images
from train.prefetch import Buffers, prefetched
from train.shuffle import key_hashes, mix, mix_array, shuffled
from train.tokenizer import Tokenizer

ROWS_AT_ONCE = 1 << 16  # a pass over all keys or captions reads this many, and keeps only numbers
CPU = torch.device("cpu")

# NumPy has no bfloat16: it is stored and gathered as its 16 bits.
TORCH_TYPES = {
    "float16": torch.float16,
    "bfloat16": torch.uint16,
    "int8": torch.int8,
}


class Share(NamedTuple):
    """Some pairs of one epoch: their places in the selection, and their round of captions."""

    epoch: int
    turn: int
    places: Int64[np.ndarray, " b"]
    is_held_out: bool = False


class Pairs:
    """The selected pairs of a folder of embeddings, split into training and validation by key."""

    def __init__(
        self,
        embeddings: Path,
        selection: Path,
        tokenizer: Tokenizer,
        config: TrainConfig,
        views: Sequence[Path] = (),
    ) -> None:
        """Open the embeddings and their `views`, and split the selection.

        Of the config, only what decides on pairs, captions and their order matters here. ValueError
        if a view does not hold the same rows in the same format.
        """
        self.config = config
        self.tokenizer = tokenizer
        self.shards = open_shards(embeddings)
        self.spec = self.shards.spec
        self.views = [
            self.shards,
            *(_same_rows(open_shards(folder), self.shards) for folder in views),
        ]
        self.images: Images | None = None

        selected = read_selection(selection, self.shards)
        self.selection = selected
        self.selected_rows = selected.rows
        self.train_places, held_out = split_by_key(selected.keys, config.holdout)

        # A row that was selected several times is validated once.
        self.val_places = held_out[times_before(self.selected_rows, held_out) == 0]
        self.rounds = [self.train_places] if config.captions == "draw" else self._rounds()

    def read_images(self, images: Images) -> None:
        """From now on, batches hold pixels for a live backbone instead of stored vectors."""
        self.images = images
        self.spec = images.spec

    def _rounds(self) -> list[Int64[np.ndarray, " n"]]:
        """Places of the training pairs with more than 0, 1, 2, ... captions, one array each."""
        # Only the lengths of the lists are kept, and some rows are read at a time: the captions of
        # a large pool need not fit in memory.
        spans = itertools.pairwise(
            [*range(0, self.shards.num_rows, ROWS_AT_ONCE), self.shards.num_rows]
        )
        lengths = (
            pc.list_value_length(self.shards.strings(CAPTIONS, span)).to_numpy() for span in spans
        )
        own = np.concatenate([*lengths])[self.selected_rows]
        counts = (own + self.selection.num_more_captions())[self.train_places]
        return [self.train_places[counts > turn] for turn in range(counts.max(initial=1))]

    def epoch_steps(self, batch_size: int) -> int:
        """Steps per epoch.

        The incomplete last batch of each round is dropped; the shuffle drops other rows each epoch.
        """
        return sum(len(places) // batch_size for places in self.rounds)

    def positions(self, step: int, batch_size: int) -> Share:
        """The pairs of the global batch of a step, which counts from 0 over all epochs."""
        epoch, batch = divmod(step, self.epoch_steps(batch_size))

        # An epoch is its rounds one after another: skip the rounds that end before this batch.
        turn = 0
        while batch >= len(self.rounds[turn]) // batch_size:
            batch -= len(self.rounds[turn]) // batch_size
            turn += 1

        places = self.rounds[turn]
        index = np.arange(batch * batch_size, (batch + 1) * batch_size)
        key = mix(self.config.seed, epoch, turn) if turn else mix(self.config.seed, epoch)
        return Share(epoch, turn, places[shuffled(index, len(places), key, self.config.shuffle)])

    def batch(
        self,
        step: int,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        buffers: Buffers | None = None,
    ) -> Batch:
        """One rank's share of the batch of a step: pairs rank * count to (rank + 1) * count.

        Its vectors are written into `buffers`, if there are any, which the next use overwrites.
        """
        whole = self.positions(step, batch_size)
        count = batch_size // world
        return self._load(
            whole._replace(places=whole.places[rank * count : (rank + 1) * count]), buffers
        )

    def val_batch(self, start: int, stop: int) -> Batch:
        """Validation pairs start to stop, with the same captions each time.

        Every rank needs the same number of pairs: indices past the end repeat the last pair.
        """
        index = np.minimum(np.arange(start, stop), len(self.val_places) - 1)
        return self._load(Share(0, 0, self.val_places[index], is_held_out=True))

    def _load(self, share: Share, buffers: Buffers | None = None) -> Batch:
        rows = self.selected_rows[share.places]
        keys = self.shards.keys_of(rows)

        # A pair that was selected several times draws for each of its copies.
        hashes = key_hashes(keys)
        times = times_before(self.selected_rows, share.places)
        hashes = np.where(times > 0, mix_array(hashes ^ times), hashes)

        # One number per pair and epoch is the first caption; the rounds of the epoch count on from
        # it, so that each uses another one.
        draws = mix_array(hashes ^ np.uint64(mix(self.config.seed, share.epoch))).tolist()
        captions = [
            texts[(draw + share.turn) % len(texts)]
            for texts, draw in zip(
                self.selection.captions(self.shards, share.places), draws, strict=True
            )
        ]
        token_ids, num_truncated = encode(self.tokenizer, captions, self.config.model.text.context)
        vision = self._vision(share, hashes, {} if buffers is None else buffers)

        return Batch(keys, pack(token_ids), vision, num_truncated)

    def _vision(
        self, share: Share, hashes: UInt64[np.ndarray, " b"], buffers: Buffers
    ) -> tuple[Stored, ...]:
        """Pixels, or vectors of the view that (seed, epoch, round, key) draws.

        Held-out pairs always have the center crop.
        """
        # The last number, 1, makes these draws independent of those for captions.
        draws = mix_array(hashes ^ np.uint64(mix(self.config.seed, share.epoch, share.turn, 1)))
        if self.images:
            return (
                Stored(
                    self.images.pixels(share.places, None if share.is_held_out else draws.tolist())
                ),
            )

        view = (
            np.zeros(len(draws), np.int64)
            if share.is_held_out
            else (draws % len(self.views)).astype(np.int64)
        )
        rows = self.selected_rows[share.places]

        return tuple(
            self._gather(rows, view, column, buffers) for column in (CLS, REGISTERS, PATCHES)
        )

    def _gather(
        self,
        rows: Int64[np.ndarray, " b"],
        view: Int64[np.ndarray, " b"],
        column: str,
        buffers: Buffers,
    ) -> Stored:
        """Rows of a column in their stored format, each from its own view.

        They are in page-locked memory if there is a GPU, so that the copy to it is asynchronous.
        """
        dtype = self.spec.dtype_of(column)
        shape = (len(rows), self.spec.num_tokens(column), self.spec.dim)
        if column not in buffers:
            buffers[column] = torch.empty(
                shape, dtype=TORCH_TYPES[dtype], pin_memory=torch.cuda.is_available()
            )

        values = buffers[column]
        scales = torch.empty(shape[:2]) if dtype == "int8" else None

        for index, shards in enumerate(self.views if shape[1] else ()):
            chosen = np.flatnonzero(view == index)

            # When all rows are of one view, they are read straight into the buffer.
            out = values.numpy() if len(chosen) == len(rows) else None
            stored, its_scales = shards.gather_stored(rows[chosen], column, out)
            if out is None:
                values.numpy()[chosen] = stored
            if scales is not None:
                scales.numpy()[chosen] = its_scales

        # The same 16 bits under their real name.
        return Stored(values.view(torch.bfloat16) if dtype == "bfloat16" else values, scales)

    @contextmanager
    def batches(
        self,
        start: int,
        stop: int,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        device: torch.device = CPU,
    ) -> Iterator[Iterator[Batch]]:
        """The rank's batches of steps [start, stop), prefetched by a thread.

        The thread reads, tokenizes and copies to the device; it ends with the context. A batch
        stays valid until the next but one is requested.
        """

        def make(step: int, buffers: Buffers) -> Batch:
            return self.batch(step, batch_size, rank, world, buffers)

        with closing(prefetched(make, range(start, stop), device)) as iterator:
            yield iterator


def split_by_key(
    keys: pa.ChunkedArray, holdout: float
) -> tuple[Int64[np.ndarray, " train"], Int64[np.ndarray, " held_out"]]:
    """Places of the training keys, ascending, and of the held-out keys, by hash.

    A key is held out if its hash, as a share of 2**64, is below `holdout`; so a pair stays on its
    side when the selection changes. In the order of hashes, the first n held-out pairs are a random
    sample of all.
    """
    bound = np.uint64(int(holdout * 2**64))
    train = []
    held_out = []
    held_out_hashes = []

    for start in range(0, max(1, len(keys)), ROWS_AT_ONCE):
        hashes = key_hashes(keys.slice(start, ROWS_AT_ONCE).to_pylist())
        train.append(start + np.flatnonzero(hashes >= bound))
        held_out.append(start + np.flatnonzero(hashes < bound))
        held_out_hashes.append(hashes[hashes < bound])

    order = np.argsort(np.concatenate(held_out_hashes), kind="stable")
    return np.concatenate(train), np.concatenate(held_out)[order]


def times_before(
    rows: Int64[np.ndarray, " n"], places: Int64[np.ndarray, " b"]
) -> UInt64[np.ndarray, " b"]:
    """How often the row at each place occurs before that place. The rows ascend.

    With rows 4 5 5 8, the places 0 1 2 3 give 0 0 1 0.
    """
    # searchsorted finds the first place of a row's value: the distance to it is the count.
    return (places - np.searchsorted(rows, rows[places])).astype(np.uint64)


def _same_rows(view: EmbeddingShards, shards: EmbeddingShards) -> EmbeddingShards:
    """The view; ValueError unless it holds the same rows in the same format."""
    # Captions and hashes are read from the first folder only: a view may lack theirs.
    specs = [
        replace(each.spec, caption_encoder="", caption_dim=0, num_hashes=0)
        for each in (view, shards)
    ]
    if specs[0] != specs[1] or not view.keys().equals(shards.keys()):
        raise ValueError(
            f"{view.folder} is no view of {shards.folder}: both must hold the same keys in the "
            "same format; embed both with the same settings, except for the view"
        )
    return view


def encode(
    tokenizer: Tokenizer, captions: Sequence[str], context: int
) -> tuple[list[list[int]], int]:
    """Token ids of each caption, and how many captions were cut.

    A caption has at most `context` tokens, and the last one is end-of-text.
    """
    # One token more than fits shows whether the caption was longer.
    one_more = tokenizer.encode(captions, context + 1)
    cut = [
        ids if len(ids) <= context else [*ids[: context - 1], tokenizer.end_of_text]
        for ids in one_more
    ]
    return cut, sum(len(ids) > context for ids in one_more)
