"""The loader: permutations, cuts among ranks, resume, held-out pairs, caption draws."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import TINY

from curation.shards.reader import EmbeddingShards
from curation.shards.schema import CLS, PATCHES, REGISTERS
from curation.shards.selection import write_selection
from train.attention import unpack
from train.config import CaptionUse, ShuffleConfig
from train.data import Pairs, Share, encode, times_before
from train.tokenizer import load_tokenizer

ROWS = ShuffleConfig()
BLOCKS = ShuffleConfig("blocks", block_rows=10, window_blocks=4)


def pairs(
    paths: dict[str, Path],
    seed: int = 0,
    holdout: float = 0.1,
    shuffle: ShuffleConfig = ROWS,
    captions: CaptionUse = "draw",
) -> Pairs:
    tokenizer = load_tokenizer(paths["tokenizer"])
    config = replace(TINY, seed=seed, holdout=holdout, shuffle=shuffle, captions=captions)
    return Pairs(paths["embeddings"], paths["selection"], tokenizer, config)


def test_an_epoch_holds_each_pair_at_most_once(pooled_pairs: dict[str, Path]) -> None:
    data = pairs(pooled_pairs)
    steps = len(data.train_places) // 24
    keys = [key for step in range(steps) for key in data.batch(step, 24).keys]
    assert max(Counter(keys).values()) == 1
    again = [key for step in range(steps, 2 * steps) for key in data.batch(step, 24).keys]
    assert keys != again


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("shuffle", [ROWS, BLOCKS])
def test_ranks_share_the_batch_that_one_rank_would_get(
    pooled_pairs: dict[str, Path], world: int, shuffle: ShuffleConfig
) -> None:
    data = pairs(pooled_pairs, shuffle=shuffle, captions="all")
    for step in (0, 9, 23):
        whole = data.batch(step, 24)
        parts = [data.batch(step, 24, rank, world) for rank in range(world)]
        assert [key for part in parts for key in part.keys] == whole.keys
        assert sum(len(part.captions.tokens) for part in parts) == len(whole.captions.tokens)


@pytest.mark.parametrize("shuffle", [ROWS, BLOCKS])
def test_all_captions_are_used_once_an_epoch_and_no_image_meets_itself(
    pooled_pairs: dict[str, Path], shuffle: ShuffleConfig
) -> None:
    data = pairs(pooled_pairs, shuffle=shuffle, captions="all")
    drawing = pairs(pooled_pairs)
    counts = [
        len(captions) for captions in data.shards.captions(data.selected_rows[data.train_places])
    ]
    assert {2, 3} == set(counts)
    assert data.epoch_steps(1) == sum(counts)
    assert drawing.epoch_steps(1) == len(counts)
    seen = []
    for step in range(data.epoch_steps(8)):
        batch = data.batch(step, 8)
        assert len(set(batch.keys)) == 8
        seen += list(zip(batch.keys, map(tuple, unpack(batch.captions)), strict=True))
    assert max(Counter(seen).values()) == 1
    assert len(seen) > sum(counts) - 8 * 3


@pytest.mark.parametrize("shuffle", [ROWS, BLOCKS])
def test_batches_read_ahead_are_those_of_their_steps(
    pooled_pairs: dict[str, Path], shuffle: ShuffleConfig
) -> None:
    data = pairs(pooled_pairs, shuffle=shuffle)
    with data.batches(5, 30, 24) as batches:
        before = next(batches)
        for step in range(6, 20):
            batch = next(batches)
            for given, number in ((before, step - 1), (batch, step)):
                expected = data.batch(number, 24)
                assert given.keys == expected.keys
                pairs_of = zip(given.inputs()[1:], expected.inputs()[1:], strict=True)
                assert all(left.equal(right) for left, right in pairs_of)
            before = batch


def test_an_error_of_the_reading_thread_reaches_the_loop(pooled_pairs: dict[str, Path]) -> None:
    data = pairs(pooled_pairs)
    with pytest.raises(ZeroDivisionError), data.batches(0, 3, 10_000) as batches:
        next(batches)


def test_held_out_pairs_are_chosen_by_key_and_never_trained_on(
    pooled_pairs: dict[str, Path],
) -> None:
    one = pairs(pooled_pairs, seed=0)
    other = pairs(pooled_pairs, seed=1)
    assert one.val_places.tolist() == other.val_places.tolist()
    assert 5 < len(one.val_places) < 45
    assert not set(one.val_places) & set(one.train_places)
    trained = {key for step in range(8) for key in one.batch(step, 24).keys}
    assert not trained & set(one.val_batch(0, len(one.val_places)).keys)
    assert len(pairs(pooled_pairs, holdout=0.0).val_places) == 0


def test_the_first_held_out_pairs_are_from_everywhere(pooled_pairs: dict[str, Path]) -> None:
    data = pairs(pooled_pairs, holdout=0.4)
    few = data.val_places[: len(data.val_places) // 4]
    assert few.max() > len(data.selected_rows) * 0.8


def test_a_repeated_pair_draws_for_itself_and_is_held_out_once(
    pooled_pairs: dict[str, Path], tmp_path: Path
) -> None:
    shards = EmbeddingShards(pooled_pairs["embeddings"])
    rows = np.repeat(np.arange(0, 240), 3)
    write_selection(tmp_path, shards, rows)
    data = pairs({**pooled_pairs, "selection": tmp_path})
    assert times_before(np.array([3, 3, 5, 5, 5, 6]), np.array([4, 0, 1, 5])).tolist() == [
        2,
        0,
        1,
        0,
    ]
    assert len(set(data.selected_rows[data.val_places])) == len(data.val_places)
    trained = set(data.selected_rows[data.train_places])
    assert not trained & set(data.selected_rows[data.val_places])
    places = data.train_places[data.selected_rows[data.train_places] < 100]
    drawn = [tuple(ids) for ids in unpack(data._load(Share(0, 0, places)).captions)]
    groups = {tuple(drawn[start : start + 3]) for start in range(0, len(drawn), 3)}
    assert any(len(set(group)) > 1 for group in groups)


def test_caption_drawn_depends_on_epoch_and_key_only(pooled_pairs: dict[str, Path]) -> None:
    data = pairs(pooled_pairs)
    places = data.train_places[:24]
    epochs = [data._load(Share(epoch, 0, places)).captions.tokens.tolist() for epoch in (0, 0, 1)]
    assert epochs[0] == epochs[1] != epochs[2]


@pytest.mark.parametrize(
    ("content", "dtype"),
    [("pooled", "float16"), ("grid", "bfloat16"), ("grid", "int8"), ("grid", "float16")],
)
def test_vectors_are_those_of_the_keys(
    make_pairs: Callable[..., dict[str, Path]], content: str, dtype: str
) -> None:
    data = pairs(make_pairs(80, content=content, dtype=dtype))
    batch = data.batch(3, 24)
    all_keys = data.shards.keys().to_pylist()
    rows = np.array([all_keys.index(key) for key in batch.keys])
    cls, registers, patches = (given.float().numpy() for given in batch.inputs()[1:])
    np.testing.assert_array_equal(cls, data.shards.gather(rows, CLS)[:, 0])
    np.testing.assert_array_equal(patches, data.shards.gather(rows, PATCHES))
    assert registers.shape == (24, data.spec.num_registers, data.spec.dim)
    if data.spec.num_registers:
        np.testing.assert_array_equal(registers, data.shards.gather(rows, REGISTERS))


@pytest.mark.parametrize("context", [4, 5, 6, 40])
def test_long_captions_are_cut_with_end_of_text_kept_and_counted(
    pooled_pairs: dict[str, Path], context: int
) -> None:
    tokenizer = load_tokenizer(pooled_pairs["tokenizer"])
    texts = ["a red apple in the snow", "dog, blue", "a green boat by the old sea wall", "cat"]
    whole = tokenizer.encode(texts, 1000)
    kept, num_cut = encode(tokenizer, texts, context)
    assert num_cut == sum(len(ids) > context for ids in whole)
    assert kept == [ids if len(ids) <= context else [*ids[: context - 1], ids[-1]] for ids in whole]
    assert kept == tokenizer.encode(texts, context)
