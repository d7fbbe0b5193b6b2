"""Captions to token ids: sentencepiece trained on the selection, or CLIP's published byte pairs.

Both end every caption with end-of-text, even when it is cut to the context, because the text
encoder takes its feature there. The sentencepiece model has byte fallback, so that any string can
be encoded. It has no begin-of-text, because a causal encoder that pools at the end needs none.
"""

import gzip
import html
import io
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import ftfy
import numpy as np
import pyarrow.compute as pc
import sentencepiece

from cluster.files import write_atomic
from curation.shards.reader import EmbeddingShards, open_shards
from curation.shards.schema import CAPTIONS
from curation.shards.selection import Selection, read_selection
from train.config import END_OF_TEXT, UNKNOWN, TokenizerConfig

logger = logging.getLogger(__name__)

MODEL_FILE = "tokenizer.model"
CLIP_FILES = ("vocab.json", "merges.txt")
BYTE_PAIRS_FILE = "bpe_simple_vocab_16e6.txt.gz"
"""The same vocabulary as Meta and OpenAI publish it beside their weights: only the merges."""
NUM_MERGES = 48_894
"""Merges of that file that CLIP uses: 49,408 pieces less 2 x 256 bytes and 2 special pieces. The
file lists five times as many.
"""
ROWS_PER_READ = 8192  # captions that are in memory at once


@runtime_checkable
class Tokenizer(Protocol):
    """The part of a vocabulary that training and evaluation use."""

    vocab_size: int
    end_of_text: int

    def encode(self, texts: Sequence[str], context: int) -> list[list[int]]:
        """Token ids of each text, at most `context`, the last one end-of-text."""

    def save(self, folder: Path) -> None:
        """Write the files that `load_tokenizer` reads."""


def run(
    config: TokenizerConfig, *, out: Path, embeddings: Path, selection: Path
) -> dict[str, float]:
    """Step: make the vocabulary for the selected captions."""
    if config.kind == "clip":
        if not config.weights:
            raise ValueError(
                "tokenizer.kind is clip, without tokenizer.weights: it must be the folder of "
                "CLIP's vocab.json and merges.txt; set it"
            )
        tokenizer: Tokenizer = ClipTokenizer(Path(config.weights))
        tokenizer.save(out)
        return {"vocab_size": float(tokenizer.vocab_size)}

    shards = open_shards(embeddings)
    selected = read_selection(selection, shards)
    trained = train_tokenizer(config, selected_captions(shards, selected, config.max_captions))
    trained.save(out)

    sample = list(selected_captions(shards, selected, 10_000))
    lengths = [len(tokens) for tokens in trained.encode(sample, context=10_000)]
    logger.info(
        "vocabulary pieces=%d tokens_per_caption=%.2f longest=%d",
        trained.vocab_size,
        np.mean(lengths),
        max(lengths),
    )
    sizes: dict[str, int | np.floating] = {
        "vocab_size": trained.vocab_size,
        "tokens_per_caption": np.mean(lengths),
        "longest_caption": max(lengths),
    }

    return {name: float(size) for name, size in sizes.items()}


def selected_captions(shards: EmbeddingShards, selection: Selection, limit: int) -> Iterator[str]:
    """Captions of the selected rows in order; if there are more than `limit`, evenly spread ones.

    Captions are numbered row by row. Rows with 3, 2 and 4 captions end before the numbers 3, 5 and
    9: caption 7 is in row 2, where it is number 7 - 5 = 2, the last but one.
    """
    own = pc.list_value_length(shards.strings(CAPTIONS)).to_numpy()[selection.rows]
    ends = np.cumsum(own + selection.num_more_captions())
    total = int(ends[-1]) if len(ends) else 0
    wanted = (
        np.linspace(0, total - 1, limit).astype(np.int64) if total > limit else np.arange(total)
    )

    # The row of a caption is the first one that ends after it; the captions before that row are
    # subtracted.
    owners = np.searchsorted(ends, wanted, side="right")
    places = wanted - np.concatenate([[0], ends])[owners]

    for start in range(0, len(wanted), ROWS_PER_READ):
        part = slice(start, start + ROWS_PER_READ)
        for captions, place in zip(
            selection.captions(shards, owners[part]), places[part].tolist(), strict=True
        ):
            yield captions[place]


def train_tokenizer(config: TokenizerConfig, captions: Iterator[str]) -> "SentencePieceTokenizer":
    """A sentencepiece model of at most `vocab_size` pieces.

    The same captions in the same order give the same bytes. ValueError if there are no captions, or
    more characters than pieces.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=captions,
            model_writer=model,
            vocab_size=config.vocab_size,
            model_type=config.algorithm,
            normalization_rule_name="nmt_nfkc_cf" if config.lowercase else "nmt_nfkc",
            byte_fallback=True,
            character_coverage=0.9995,  # rarer characters are spelled in bytes
            hard_vocab_limit=False,
            max_sentence_length=1 << 16,  # bytes; sentencepiece skips longer ones, by default 4,192
            unk_id=UNKNOWN,
            eos_id=END_OF_TEXT,
            bos_id=-1,
            pad_id=-1,
            num_threads=1,  # the same bytes on every machine
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"no vocabulary of {config.vocab_size} pieces can be trained on these captions "
            f"({error}): there must be captions, with fewer different characters than pieces; "
            "change tokenizer.vocab_size or the selection"
        ) from error

    tokenizer = SentencePieceTokenizer(model.getvalue())
    if tokenizer.vocab_size < config.vocab_size:
        logger.info(
            "vocabulary shrunk asked=%d pieces=%d reason=too_few_captions",
            config.vocab_size,
            tokenizer.vocab_size,
        )

    return tokenizer


class SentencePieceTokenizer:
    """A trained sentencepiece model; pickles as its bytes."""

    def __init__(self, model: bytes) -> None:
        self.model = model
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size: int = self.processor.vocab_size()
        self.end_of_text: int = self.processor.eos_id()

    def __reduce__(self) -> tuple[type, tuple[bytes]]:
        return SentencePieceTokenizer, (self.model,)

    def encode(self, texts: Sequence[str], context: int) -> list[list[int]]:
        """Token ids of each text, at most `context`, the last one end-of-text."""
        return [
            [*ids[: context - 1], self.end_of_text]
            for ids in self.processor.encode(list(texts), num_threads=1)
        ]

    def save(self, folder: Path) -> None:
        """Write tokenizer.model."""
        write_atomic(folder / MODEL_FILE, self.model)


class ClipTokenizer:
    """CLIP's byte pairs through transformers, with begin-of-text and end-of-text."""

    def __init__(self, folder: Path) -> None:
        from transformers import CLIPTokenizer

        missing = [name for name in CLIP_FILES if not (folder / name).is_file()]
        self._is_one_file = bool(missing) and (folder / BYTE_PAIRS_FILE).is_file()

        if missing and not self._is_one_file:
            raise ValueError(
                f"{folder} has no {' and no '.join(missing)}: CLIP's byte pairs need both, or "
                f"{BYTE_PAIRS_FILE}; name their folder"
            )

        self.folder = folder
        if self._is_one_file:
            pieces, merges = read_byte_pairs(folder / BYTE_PAIRS_FILE)

            # CLIPTokenizer takes pairs, although its annotation says strings.
            pairs: Any = [tuple(merge.split()) for merge in merges]
            self.tokenizer = CLIPTokenizer(vocab=pieces, merges=pairs)
        else:
            self.tokenizer = CLIPTokenizer(
                vocab=str(folder / CLIP_FILES[0]), merges=str(folder / CLIP_FILES[1])
            )

        self.vocab_size: int = len(self.tokenizer)
        self.end_of_text: int = self.tokenizer.eos_token_id

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return ClipTokenizer, (self.folder,)

    def encode(self, texts: Sequence[str], context: int) -> list[list[int]]:
        """Token ids of each text, at most `context`, the last one end-of-text."""
        cleaned = [clip_text(text) for text in texts]
        ids = self.tokenizer(cleaned, add_special_tokens=True, verbose=False)["input_ids"]
        return [
            [*tokens[: context - 1], self.end_of_text] if len(tokens) > context else tokens
            for tokens in ids
        ]

    def save(self, folder: Path) -> None:
        """Write vocab.json and merges.txt."""
        if self._is_one_file:
            pieces, merges = read_byte_pairs(self.folder / BYTE_PAIRS_FILE)
            write_atomic(folder / CLIP_FILES[0], json.dumps(pieces, ensure_ascii=False))
            write_atomic(folder / CLIP_FILES[1], "\n".join(["#version: 0.2", *merges, ""]))
            return
        for name in CLIP_FILES:
            shutil.copyfile(self.folder / name, folder / name)


def clip_text(text: str) -> str:
    """A text as CLIP's published tokenizer cleans it, before lower case and spaces are mended.

    Wrongly decoded letters are put right ("cafÃ©" is "café"), and HTML entities are replaced, twice,
    because web captions are often escaped twice ("&amp;lt;" is "<").
    """
    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def read_byte_pairs(file: Path) -> tuple[dict[str, int], list[str]]:
    """Pieces with their ids, and the merges, from the published file.

    The file has a header and one merge per line. Ids number the 256 bytes, then the 256 bytes at
    the end of a word, the merges, and the two special pieces: "a" is 64, "a</w>" is 320, and "in",
    the result of the first merge "i n", is 512. ValueError if the file is not gzipped text.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    try:
        lines = gzip.decompress(file.read_bytes()).decode().splitlines()
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(
            f"{file} is no gzipped list of byte pairs ({error}): download it again"
        ) from error

    merges = lines[1 : 1 + NUM_MERGES]
    letters = list(bytes_to_unicode().values())
    pieces = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *("".join(merge.split()) for merge in merges),
    ]
    pieces += ["<|startoftext|>", "<|endoftext|>"]

    return {piece: index for index, piece in enumerate(pieces)}, merges


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder: sentencepiece, or CLIP's byte pairs in either form.

    ValueError if the folder has the files of neither.
    """
    if (folder / MODEL_FILE).is_file():
        return SentencePieceTokenizer((folder / MODEL_FILE).read_bytes())
    if (folder / CLIP_FILES[0]).is_file() or (folder / BYTE_PAIRS_FILE).is_file():
        return ClipTokenizer(folder)
    raise ValueError(
        f"no tokenizer in {folder}: {MODEL_FILE}, {' and '.join(CLIP_FILES)}, or "
        f"{BYTE_PAIRS_FILE} is required; copy the model's own there"
    )
