"""A tiny folder of embeddings with captions that say what the vectors hold, its selection and its
tokenizer.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny import TINY, group_of_one

from curation.shards.manifest import Manifest, write_manifest
from curation.shards.reader import EmbeddingShards
from curation.shards.schema import EmbeddingSpec
from curation.shards.selection import write_selection
from curation.shards.writer import write_shard
from train.config import TokenizerConfig
from train.loop import Job, train
from train.tokenizer import run as train_tokenizer

COLOURS = ("red", "green", "blue", "black", "white", "yellow", "pink", "brown")
THINGS = ("apple", "dog", "cat", "tree", "house", "boat", "car", "star")
PLACES = ("in the snow", "on a table", "under water", "at night", "", "by the old sea wall")
DIM = 64


@pytest.fixture(scope="session")
def make_pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Path]]:
    """Write embeddings, selection and tokenizer of `rows` pairs; the paths by the names of the
    step's inputs.
    """

    def make(rows: int = 240, content: str = "pooled", dtype: str = "float16") -> dict[str, Path]:
        folder = tmp_path_factory.mktemp(f"pairs-{content}")
        paths = {name: folder / name for name in ("embeddings", "selection", "tokenizer")}
        for path in paths.values():
            path.mkdir()
        registers, grid = (0, (1, 1)) if content == "pooled" else (2, (2, 2))
        spec = EmbeddingSpec(
            "random-vit", "d", "random", 32, DIM, registers, grid, content, dtype, "", 0
        )
        half = rows // 2
        entries = [
            write_shard(
                paths["embeddings"] / f"shard-{index:05d}.arrow", spec, [columns(spec, start, stop)]
            )
            for index, (start, stop) in enumerate([(0, half), (half, rows)])
        ]
        write_manifest(paths["embeddings"], Manifest(spec, tuple(entries)))
        shards = EmbeddingShards(paths["embeddings"])
        write_selection(paths["selection"], shards, np.flatnonzero(np.arange(rows) % 10 != 3))
        inputs = {"embeddings": paths["embeddings"], "selection": paths["selection"]}
        train_tokenizer(TokenizerConfig(vocab_size=320), out=paths["tokenizer"], **inputs)
        return paths

    return make


def columns(spec: EmbeddingSpec, start: int, stop: int) -> dict[str, object]:
    """Rows whose vectors are a fixed code of the colour plus one of the thing, and a little
    noise.
    """
    codes = np.random.default_rng(0).standard_normal((16, DIM)).astype(np.float32)
    count = stop - start
    picks = np.random.default_rng(1).integers(0, 48, (10_000, 3))[start:stop]
    colour = picks[:, 0] % 8
    thing = picks[:, 1] % 8
    place = picks[:, 2] % 6
    noise = np.random.default_rng(start).standard_normal((count, 1, DIM)).astype(np.float32)
    captions = [
        [
            f"a {COLOURS[c]} {THINGS[t]} {PLACES[p]}".strip(),
            f"{THINGS[t]}, {COLOURS[c]}",
            f"{THINGS[t]}",
        ][: 2 + t % 2]
        for c, t, p in zip(colour, thing, place, strict=True)
    ]
    tokens = codes[colour][:, None] + codes[8 + thing][:, None] + 0.1 * noise
    values: dict[str, object] = {
        "key": [f"pair-{row:06d}" for row in range(start, stop)],
        "source": ["synthetic"] * count,
        "captions": captions,
        "cls": tokens,
        "registers": np.repeat(noise, spec.num_registers, 1),
        "patches": np.repeat(tokens, spec.grid[0] * spec.grid[1], 1),
        "thumbnail": [b""] * count,
    }
    hashes = np.arange(start, stop, dtype=np.uint64)
    return values | dict.fromkeys(("bytes_hash", "pixel_hash"), hashes)


@pytest.fixture(scope="session")
def pooled_pairs(make_pairs: Callable[..., dict[str, Path]]) -> dict[str, Path]:
    return make_pairs()


@pytest.fixture
def process_group() -> Iterator[None]:
    """A process group of one, on one thread."""
    with group_of_one():
        yield


@pytest.fixture(scope="session")
def undisturbed(pooled_pairs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What 20 steps of TINY leave when nothing disturbs them."""
    out = tmp_path_factory.mktemp("undisturbed")
    with group_of_one():
        assert train(TINY, Job(out, **pooled_pairs))
    return out
