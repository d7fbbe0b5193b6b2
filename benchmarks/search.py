"""The search page at many images: milliseconds from words to answers, through the web server.

Vectors are random unit vectors around centers, as those of images are; the text encoder has the
quickstart's size and random weights. Pictures are not asked for, as the page asks for them after
the answer.

    python -m benchmarks.search --rows 100000 --dim 2048
"""

import socket
import threading
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass

import numpy as np
import torch
import tyro
import uvicorn
from jaxtyping import Float, Float32
from PIL import Image
from torch import Tensor

from curation.encoders.backbone import Features
from evaluate.search.collection import Collection
from evaluate.search.engine import Engine
from evaluate.search.vector_index import VectorIndex, build_index
from evaluate.search.web import Site, make_app
from train.config import ModelConfig, TextConfig, TokenizerConfig, VisionConfig
from train.model import DinoTxt
from train.tokenizer import train_tokenizer

NUM_CENTERS = 2000
SPREAD = 1.0  # of a vector around its center, in units of the center's length
HOST = "127.0.0.1"
WORDS = ("dog", "snow", "child", "park", "photo", "tower", "red", "night", "two", "running")


@dataclass(frozen=True)
class SearchConfig:
    """What is timed."""

    rows: int = 100_000
    """Images."""
    dim: int = 2048
    """Width of their vectors; a ViT-L with pooling=concat has 2048."""
    exact_mb: float = 100.0
    """Collections up to this size are searched exactly."""
    queries: int = 100
    """Different words that are asked."""
    text: TextConfig = TextConfig(width=256, layers=4, heads=4, context=32)
    """Size of the text encoder."""


class NoImages:
    """As many rows as asked for, of which only the captions are there."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def name(self, row: int) -> str:
        return str(row)

    def caption(self, row: int) -> str:
        return f"image {row}"

    def image(self, row: int, draft_px: int = 0) -> Image.Image:
        return Image.new("RGB", (64, 64))

    def features(self, row: int) -> Features | None:
        return None


class TextEncoder:
    """A text encoder of some size with random weights, as wide as the vectors."""

    description = "random weights"
    protocol: dict[str, object] = {"image_size": 64}  # noqa: RUF012  # an encoder's attribute

    def __init__(self, text: TextConfig, dim: int) -> None:
        captions = (f"a {first} and the {second}" for first in WORDS for second in WORDS)
        self.tokenizer = train_tokenizer(TokenizerConfig(vocab_size=300), captions)
        config = ModelConfig(text, VisionConfig(blocks=0, pooling="cls"))
        self.model = DinoTxt(config, self.tokenizer.vocab_size, dim).eval()
        self.context = text.context
        self.dim = dim

    @torch.inference_mode()
    def encode_text(self, texts: list[str], *, dense: bool = False) -> Float[Tensor, "n d"]:
        tokens = self.tokenizer.encode(texts, self.context)
        return torch.nn.functional.normalize(self.model.encode_tokens(tokens), dim=-1)

    def encode_image(self, images: list[Image.Image]) -> Float[Tensor, "n d"]:
        """All images alike."""
        return torch.ones(len(images), self.dim) / self.dim**0.5

    def encode_patches(self, images: list[Image.Image]) -> Float[Tensor, "n h w p"]:
        """All patches alike."""
        return torch.ones(len(images), 1, 1, self.dim) / self.dim**0.5


def main(config: SearchConfig) -> None:
    vectors = clustered(config.rows, config.dim)
    clock_s = time.perf_counter()
    index = build_index(vectors, config.exact_mb)
    print(f"index of {config.rows:,} x {config.dim} built in {time.perf_counter() - clock_s:.1f} s")
    print(f"recall of the 24 best images: {recall(index, vectors):.3f}")

    encoder = TextEncoder(config.text, config.dim)
    collection = Collection(NoImages(config.rows))
    engine = Engine(encoder, index, collection)
    site = Site("benchmark", "", {"model": engine}, collection, None, ())
    took_ms = sorted(ask(site, config.queries))
    middle = took_ms[len(took_ms) // 2]
    last = took_ms[int(0.99 * len(took_ms))]
    print(f"words to 24 answers over HTTP: median {middle:.1f} ms, 99th percentile {last:.1f} ms")


def clustered(rows: int, dim: int) -> Float32[np.ndarray, "n d"]:
    """Unit vectors around centers."""
    random = np.random.default_rng(0)
    centers = random.normal(size=(NUM_CENTERS, dim)).astype(np.float32)
    vectors = random.standard_normal((rows, dim), np.float32) * np.float32(SPREAD)
    vectors += centers[random.integers(0, NUM_CENTERS, rows)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def recall(index: VectorIndex, vectors: Float32[np.ndarray, "n d"], count: int = 24) -> float:
    """Share of the best images that a search finds, for queries beside images."""
    random = np.random.default_rng(1)
    queries = vectors[random.integers(0, len(vectors), 50)]
    queries = queries + random.standard_normal(queries.shape, np.float32) / queries.shape[1] ** 0.5
    hits = 0

    for query in queries.astype(np.float32):
        expected = set(np.argpartition(-(vectors @ query), count)[:count].tolist())
        hits += len(expected & set(index.search(query, count)[0].tolist()))

    return hits / (count * len(queries))


def ask(site: Site, count: int) -> list[float]:
    """Milliseconds of each question to a server of this process; the first ones warm it."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(make_app(site, [HOST]), HOST, port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.05)

    took_ms = []
    for number in range(-5, count):
        first, second, third = (WORDS[(number + step * step) % len(WORDS)] for step in (0, 1, 2))
        words = urllib.parse.quote(f"{first} {second} {third} {number}")
        clock_s = time.perf_counter()
        urllib.request.urlopen(f"http://{HOST}:{port}/search?words={words}").read()
        took_ms.append(1000 * (time.perf_counter() - clock_s))

    server.should_exit = True
    thread.join()
    return took_ms[5:]


if __name__ == "__main__":
    main(tyro.cli(SearchConfig))
