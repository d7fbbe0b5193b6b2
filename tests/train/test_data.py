"""The loader: permutations, cuts among ranks, resume, held-out pairs, caption draws."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from train.data import Pairs, encode, key_hashes, mix, permute
from train.tokenizer import load_tokenizer


def pairs(paths: dict[str, Path], seed: int = 0, holdout: float = 0.1) -> Pairs:
    return Pairs(paths["embeddings"], paths["selection"], load_tokenizer(paths["tokenizer"]), 12, holdout, seed)


@pytest.mark.parametrize("size", [1, 2, 3, 64, 65, 1000])
def test_permutation_reaches_every_place_once(size: int) -> None:
    images = permute(np.arange(size), size, key=5)
    assert sorted(images.tolist()) == list(range(size))


def test_permutations_of_other_keys_differ_and_none_is_ordered() -> None:
    first, second = (permute(np.arange(1000), 1000, key) for key in (1, 2))
    assert (first == second).mean() < 0.02
    assert abs(np.corrcoef(np.arange(1000), first)[0, 1]) < 0.1


def test_shuffle_is_frozen() -> None:
    """Golden: a change here silently breaks the resume of every run under way."""
    first = permute(np.arange(10), 1000, mix(0, 0)).tolist()
    assert first == [386, 241, 339, 151, 262, 919, 740, 427, 637, 222]
    assert key_hashes(["a"]).tolist() == [3405396810240292928]


def test_an_epoch_holds_each_pair_at_most_once(pooled_pairs: dict[str, Path]) -> None:
    data = pairs(pooled_pairs)
    steps = len(data.train_places) // 24
    keys = [key for step in range(steps) for key in data.batch(step, 24).keys]
    assert max(Counter(keys).values()) == 1
    again = [key for step in range(steps, 2 * steps) for key in data.batch(step, 24).keys]
    assert keys != again


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_batch_that_one_rank_would_get(pooled_pairs: dict[str, Path], world: int) -> None:
    data = pairs(pooled_pairs)
    for step in (0, 9, 23):
        whole = data.batch(step, 24)
        parts = [data.batch(step, 24, rank, world) for rank in range(world)]
        assert [key for part in parts for key in part.keys] == whole.keys
        assert sum(len(part.captions.tokens) for part in parts) == len(whole.captions.tokens)


def test_batches_read_ahead_are_those_of_their_steps(pooled_pairs: dict[str, Path]) -> None:
    data = pairs(pooled_pairs)
    with data.batches(5, 30, 24) as batches:
        seen = [next(batches).keys for _ in range(7)]
    assert seen == [data.batch(step, 24).keys for step in range(5, 12)]


def test_an_error_of_the_reading_thread_reaches_the_loop(pooled_pairs: dict[str, Path]) -> None:
    data = pairs(pooled_pairs)
    with pytest.raises(ZeroDivisionError), data.batches(0, 3, 10_000) as batches:
        next(batches)


def test_held_out_pairs_are_chosen_by_key_and_never_trained_on(pooled_pairs: dict[str, Path]) -> None:
    one, other = pairs(pooled_pairs, seed=0), pairs(pooled_pairs, seed=1)
    assert one.val_places.tolist() == other.val_places.tolist()
    assert 5 < len(one.val_places) < 45
    assert not set(one.val_places) & set(one.train_places)
    trained = {key for step in range(8) for key in one.batch(step, 24).keys}
    assert not trained & set(one.val_batch(0, len(one.val_places)).keys)
    assert len(pairs(pooled_pairs, holdout=0.0).val_places) == 0


def test_caption_drawn_depends_on_epoch_and_key_only(pooled_pairs: dict[str, Path]) -> None:
    data = pairs(pooled_pairs)
    places = data.train_places[:24]
    epochs = [data._load(places, epoch).captions.tokens.tolist() for epoch in (0, 0, 1)]
    assert epochs[0] == epochs[1] != epochs[2]


def test_vectors_are_those_of_the_keys(pooled_pairs: dict[str, Path]) -> None:
    data = pairs(pooled_pairs)
    batch = data.batch(3, 24)
    all_keys = data.shards.keys().to_pylist()
    rows = np.array([all_keys.index(key) for key in batch.keys])
    np.testing.assert_array_equal(batch.cls.numpy(), data.shards.gather_tokens(rows)[0])


@pytest.mark.parametrize("context", [4, 5, 6, 40])
def test_long_captions_are_cut_with_end_of_text_kept_and_counted(pooled_pairs: dict[str, Path], context: int) -> None:
    tokenizer = load_tokenizer(pooled_pairs["tokenizer"])
    texts = ["a red apple in the snow", "dog, blue", "a green boat by the old sea wall", "cat"]
    whole = tokenizer.encode(texts, 1000)
    kept, num_cut = encode(tokenizer, texts, context)
    assert num_cut == sum(len(ids) > context for ids in whole)
    assert kept == [ids if len(ids) <= context else [*ids[: context - 1], ids[-1]] for ids in whole]
    assert kept == tokenizer.encode(texts, context)
