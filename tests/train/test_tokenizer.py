"""Tokenizers: round trip, truncation, determinism, small vocabularies, CLIP's byte pairs."""

import gzip
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from curation.shards.reader import EmbeddingShards
from curation.shards.selection import read_selection, write_selection
from train.config import TokenizerConfig
from train.tokenizer import (
    BYTE_PAIRS_FILE,
    ClipTokenizer,
    Tokenizer,
    clip_text,
    load_tokenizer,
    run,
    selected_captions,
    train_tokenizer,
)

CAPTIONS = [
    f"a {colour} {thing}"
    for colour in ("red", "green", "blue")
    for thing in ("apple", "dog", "old boat")
]
STRANGE = ["", "🙂👍🏽", "مرحبا بالعالم", "nul\x00inside", "word " * 10_000, "ＦＵＬＬ Width"]


def small(vocab_size: int = 300, captions: list[str] = CAPTIONS) -> Tokenizer:
    return train_tokenizer(TokenizerConfig(vocab_size=vocab_size), iter(captions))


def test_sentencepiece_survives_saving_and_pickling(tmp_path: Path) -> None:
    tokenizer = small()
    tokenizer.save(tmp_path)
    expected = tokenizer.encode(CAPTIONS, 20)
    assert load_tokenizer(tmp_path).encode(CAPTIONS, 20) == expected
    assert pickle.loads(pickle.dumps(tokenizer)).encode(CAPTIONS, 20) == expected


def test_sentencepiece_is_deterministic() -> None:
    assert small().model == small().model


def test_every_caption_ends_with_end_of_text_within_the_context() -> None:
    tokenizer = small()
    for tokens in tokenizer.encode([*CAPTIONS, *STRANGE], 16):
        assert 1 <= len(tokens) <= 16
        assert tokens[-1] == tokenizer.end_of_text
        assert tokenizer.end_of_text not in tokens[:-1]


def test_any_string_round_trips_through_bytes() -> None:
    tokenizer = small()
    (ids,) = tokenizer.encode(["🙂 مرحبا"], 100)
    assert tokenizer.processor.decode(ids[:-1]) == "🙂 مرحبا"


def test_of_many_captions_an_even_spread_is_taken(
    pooled_pairs: dict[str, Path], tmp_path: Path
) -> None:
    shards = EmbeddingShards(pooled_pairs["embeddings"])
    rows = np.arange(10, 230)
    write_selection(tmp_path, shards, rows, {12: ["of an equal image"]})
    selection = read_selection(tmp_path, shards)
    whole = [caption for texts in selection.captions(shards, rows - 10) for caption in texts]
    assert whole[sum(map(len, shards.captions(rows[:3])))] == "of an equal image"
    assert list(selected_captions(shards, selection, 10_000)) == whole
    few = list(selected_captions(shards, selection, 40))
    assert few == [whole[place] for place in np.linspace(0, len(whole) - 1, 40).astype(int)]

    write_selection(tmp_path, shards, rows[:0])
    assert list(selected_captions(shards, read_selection(tmp_path, shards), 40)) == []


def test_case_is_folded() -> None:
    tokenizer = small()
    assert tokenizer.encode(["A RED Apple"], 20) == tokenizer.encode(["a red apple"], 20)


def test_vocabulary_shrinks_to_what_the_captions_carry() -> None:
    tokenizer = small(vocab_size=4096)
    assert 258 < tokenizer.vocab_size < 400


def test_no_captions_and_tiny_vocabularies_are_refused() -> None:
    with pytest.raises(ValueError, match="no vocabulary of 300 pieces"):
        small(captions=[])
    with pytest.raises(ValueError, match="must exceed"):
        TokenizerConfig(vocab_size=100)
    with pytest.raises(ValueError, match=r"without tokenizer\.weights"):
        run(TokenizerConfig(kind="clip"), out=Path(), embeddings=Path(), selection=Path())


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    """Byte pairs in CLIP's format: single letters, a few merges, the two special tokens last."""
    letters = [chr(code) for code in range(97, 123)]
    merges = [("d", "o"), ("do", "g</w>"), ("a", "t</w>")]
    pieces = [
        *letters,
        *(letter + "</w>" for letter in letters),
        *("".join(merge) for merge in merges),
    ]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(
        json.dumps({piece: index for index, piece in enumerate(pieces)})
    )
    (tmp_path / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges)
    )
    return tmp_path


def test_clip_byte_pairs_follow_their_merges(clip_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(clip_folder)
    vocabulary = json.loads((clip_folder / "vocab.json").read_text())
    assert tokenizer.vocab_size == len(vocabulary)
    (ids,) = tokenizer.encode(["Dog cat"], 77)
    pieces = ["<|startoftext|>", "dog</w>", "c", "at</w>", "<|endoftext|>"]
    assert ids == [vocabulary[piece] for piece in pieces]
    (cut,) = tokenizer.encode(["dog cat dog cat"], 4)
    assert cut == [*ids[:3], tokenizer.end_of_text]

    copy = tmp_path / "copy"
    copy.mkdir()
    tokenizer.save(copy)
    assert load_tokenizer(copy).encode(["a dog"], 77) == tokenizer.encode(["a dog"], 77)


def test_the_published_list_of_byte_pairs_is_a_vocabulary(tmp_path: Path) -> None:
    merges = ["i n", "d o", "do g</w>", "a t</w>"]
    file = tmp_path / BYTE_PAIRS_FILE
    file.write_bytes(gzip.compress("\n".join(["#version: 0.2", *merges]).encode()))
    tokenizer = load_tokenizer(tmp_path)

    # 512 bytes, four merges, two special pieces; "a" and "c" are bytes 64 and 66 in this order.
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (518, 517)
    assert tokenizer.encode(["Dog cat in"], 77) == [[516, 514, 66, 515, 72, 77 + 256, 517]]

    copy = tmp_path / "copy"
    copy.mkdir()
    tokenizer.save(copy)
    assert load_tokenizer(copy).encode(["Dog ïn\u00e9 7"], 77) == tokenizer.encode(
        ["Dog ïn\u00e9 7"], 77
    )

    file.write_bytes(b"torn")
    with pytest.raises(ValueError, match="is no gzipped list of byte pairs"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("web", "clean"),
    [
        ("caf\u00c3\u00a9", "caf\u00e9"),
        ("salt &amp;amp; pepper", "salt & pepper"),
        ("a &lt;b&gt; &quot;c&quot;", 'a <b> "c"'),
        (" \u201cquoted\u201d ", '"quoted"'),
        ("\u72ac\u306e\u5199\u771f", "\u72ac\u306e\u5199\u771f"),
    ],
)
def test_byte_pairs_see_texts_as_clip_cleans_them(web: str, clean: str, clip_folder: Path) -> None:
    assert clip_text(web) == clean
    tokenizer = ClipTokenizer(clip_folder)
    assert tokenizer.encode([web], 77) == tokenizer.encode([clean], 77)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no vocab\.json and no merges\.txt"):
        ClipTokenizer(tmp_path)
    with pytest.raises(ValueError, match="no tokenizer in"):
        load_tokenizer(tmp_path)
