"""Shards and a selection to batches: batch i is arithmetic over (seed, i), and is cut among ranks afterwards.

Each epoch walks the training rows in the order of a keyed permutation that is computed, never stored; batches do not
straddle epochs, so that no pair meets itself. The state of the loader is one integer, and the sequence of keys is the
same for any number of ranks and after any resume. One caption a pair is drawn by (seed, epoch, key); validation pairs
are chosen by key.
"""

import hashlib
import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float32, Int64, UInt64
from torch import Tensor

from curation.selection import read_selection
from curation.shards import EmbeddingShards
from train.attention import Packed, pack
from train.tokenizer import Tokenizer

PREFETCH = 2
ROUNDS = 4
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Batch:
    """One rank's share of a batch, ready for the model."""

    keys: list[str]
    captions: Packed
    cls: Float32[Tensor, "b d"]
    registers: Float32[Tensor, "b r d"]
    patches: Float32[Tensor, "b p d"]
    num_truncated: int = 0
    """Captions that were cut to the context."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        tensors = (tensor.to(device, non_blocking=True) for tensor in (self.cls, self.registers, self.patches))
        return Batch(self.keys, self.captions.to(device), *tensors, num_truncated=self.num_truncated)

    def inputs(self) -> tuple[Packed, Tensor, Tensor, Tensor]:
        """What the model takes."""
        return self.captions, self.cls, self.registers, self.patches


class Pairs:
    """The selected pairs of a folder of embeddings, split into training and validation by key."""

    def __init__(
        self, embeddings: Path, selection: Path, tokenizer: Tokenizer, context: int, holdout: float, seed: int
    ) -> None:
        self.shards = EmbeddingShards(embeddings)
        self.spec = self.shards.spec
        self.tokenizer, self.context, self.seed = tokenizer, context, seed
        selected = read_selection(selection, self.shards)
        hashes = key_hashes(selected.keys.to_pylist())
        held_out = hashes < np.uint64(int(holdout * 2**64)) if holdout > 0 else np.zeros(len(hashes), bool)
        self.selected_keys, self.selected_rows, self.hashes = selected.keys.combine_chunks(), selected.rows, hashes
        self.train_places, self.val_places = np.flatnonzero(~held_out), np.flatnonzero(held_out)

    def batch_positions(self, step: int, batch_size: int) -> tuple[int, Int64[np.ndarray, " b"]]:
        """Epoch, and the places in the selection of the global batch of a step."""
        epoch, batch = divmod(step, len(self.train_places) // batch_size)
        index = np.arange(batch * batch_size, (batch + 1) * batch_size)
        return epoch, self.train_places[permute(index, len(self.train_places), mix(self.seed, epoch))]

    def batch(self, step: int, batch_size: int, rank: int = 0, world: int = 1) -> Batch:
        """One rank's share of the batch of a step."""
        epoch, places = self.batch_positions(step, batch_size)
        share = batch_size // world
        return self._load(places[rank * share : (rank + 1) * share], epoch)

    def val_batch(self, start: int, stop: int) -> Batch:
        """Some validation pairs, always with the same captions; places past the end repeat the last pair."""
        index = np.minimum(np.arange(start, stop), len(self.val_places) - 1)
        return self._load(self.val_places[index], epoch=0)

    def _load(self, places: Int64[np.ndarray, " b"], epoch: int) -> Batch:
        rows = self.selected_rows[places]
        draws = mix_array(self.hashes[places] ^ np.uint64(mix(self.seed, epoch)))
        captions = [
            texts[draw % len(texts)] for texts, draw in zip(self.shards.captions(rows), draws.tolist(), strict=True)
        ]
        vectors = (torch.from_numpy(vector) for vector in self.shards.gather_tokens(rows))
        keys = self.selected_keys.take(pa.array(places)).to_pylist()
        token_ids, num_truncated = encode(self.tokenizer, captions, self.context)
        return Batch(keys, pack(token_ids), *vectors, num_truncated=num_truncated)

    @contextmanager
    def batches(
        self, start: int, stop: int, batch_size: int, rank: int = 0, world: int = 1
    ) -> Iterator[Iterator[Batch]]:
        """The rank's batches of steps [start, stop), read ahead by a thread that ends with the context."""
        steps = range(start, stop)
        with closing(_ahead(self, steps, batch_size, rank, world)) as iterator:
            yield iterator


def _ahead(pairs: Pairs, steps: range, batch_size: int, rank: int, world: int) -> Generator[Batch, None, None]:
    """Batches in order, made by a thread; its exception is raised here."""
    ready: queue.Queue[Batch | BaseException] = queue.Queue(PREFETCH)
    free = threading.Semaphore(PREFETCH)
    ended = threading.Event()

    def produce() -> None:
        try:
            for step in steps:
                free.acquire()
                if ended.is_set():
                    return
                ready.put(pairs.batch(step, batch_size, rank, world))
        except BaseException as error:
            ready.put(error)

    thread = threading.Thread(target=produce, name="batches", daemon=True)
    thread.start()
    try:
        for _ in steps:
            batch = ready.get()
            if isinstance(batch, BaseException):
                raise batch
            free.release()
            yield batch
    finally:
        ended.set()
        free.release()
        thread.join()


def encode(tokenizer: Tokenizer, captions: Sequence[str], context: int) -> tuple[list[list[int]], int]:
    """Token ids of each caption, at most `context` and always with end-of-text, and how many captions were cut."""
    one_more = tokenizer.encode(captions, context + 1)
    kept = [ids if len(ids) <= context else [*ids[: context - 1], tokenizer.end_of_text] for ids in one_more]
    return kept, sum(len(ids) > context for ids in one_more)


def key_hashes(keys: Sequence[str]) -> UInt64[np.ndarray, " n"]:
    """64 bits of each key's BLAKE2b: uniform, and the same on every machine."""
    digests = b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(digests, np.dtype("<u8")).astype(np.uint64)


def mix(*values: int) -> int:
    """One 64-bit number from several; a change in any changes it all."""
    state = np.zeros(1, np.uint64)
    for value in values:
        state = mix_array(state ^ np.uint64(value % 2**64))
    return int(state[0])


def mix_array(x: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """The finaliser of splitmix64, element by element."""
    x = x + GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(index: Int64[np.ndarray, " n"], size: int, key: int) -> Int64[np.ndarray, " n"]:
    """Where a keyed pseudorandom permutation of range(size) sends each index: a Feistel network with cycle walking."""
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    value = index.astype(np.uint64)
    outside = np.ones(len(value), bool)
    while outside.any():
        left, right = value[outside] >> half, value[outside] & mask
        for turn in range(ROUNDS):
            left, right = right, left ^ (mix_array(right ^ np.uint64(mix(key, turn))) & mask)
        value[outside] = (left << half) | right
        outside = value >= np.uint64(size)
    return value.astype(np.int64)
