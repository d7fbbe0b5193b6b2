"""Synthetic pictures, folders of pairs and shard folders with known contents."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from raw_pairs import CAPTIONS as PAIRS

from curation.pairs.account import ACCOUNT, REJECTS, Account
from curation.shards.manifest import Manifest, write_manifest
from curation.shards.schema import (
    BYTES_HASH,
    CAPTION_EMBEDDING,
    CAPTIONS,
    KEY,
    PERCEPTUAL_HASH,
    PIXEL_HASH,
    SOURCE,
    THUMBNAIL,
    EmbeddingSpec,
)
from curation.shards.writer import write_shard


@pytest.fixture
def picture() -> Callable[..., Image.Image]:
    """picture(seed, size=(48, 40)): smooth random colours, different for each seed."""

    def draw(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
        coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)

    return draw


@pytest.fixture
def encoded() -> Callable[..., bytes]:
    """encoded(image, format="JPEG", **options): the image file's bytes."""

    def encode(image: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, format, **options)
        return buffer.getvalue()

    return encode


@pytest.fixture
def images(
    tmp_path: Path, picture: Callable[..., Image.Image], encoded: Callable[..., bytes]
) -> Path:
    """A folder with the three images of raw_pairs.CAPTIONS."""
    for seed, name in enumerate(PAIRS):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(seed)))
    return tmp_path / "data"


@pytest.fixture
def pair_folder(picture: Callable[..., Image.Image]) -> Callable[..., Path]:
    """pair_folder(folder, count): JPEG files 00000.jpg ... and captions.jsonl with two captions
    each.
    """

    def write(folder: Path, count: int) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for i in range(count):
            picture(i).save(folder / f"{i:05d}.jpg", quality=90)
            lines.append(
                json.dumps(
                    {
                        "image": f"{i:05d}.jpg",
                        "captions": [f"picture {i}", f"number {i} of {count}"],
                    }
                )
            )
        (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
        return folder

    return write


@pytest.fixture
def embedding_spec() -> Callable[..., EmbeddingSpec]:
    """embedding_spec(**changes): a small spec of the tokens kind."""

    def make(**changes: Any) -> EmbeddingSpec:
        fields: dict[str, Any] = {
            "backbone": "random-vit",
            "digest": "0" * 64,
            "description": "synthetic",
            "image_size": 28,
            "dim": 8,
            "num_registers": 2,
            "grid": (2, 2),
            "content": "tokens",
            "dtype": "float16",
            "caption_encoder": "hashed-4",
            "caption_dim": 4,
            "num_hashes": 1,
        }
        return EmbeddingSpec(**{**fields, **changes})

    return make


@pytest.fixture
def write_pool() -> Callable[..., dict[str, np.ndarray]]:
    """write_pool(folder, spec, rows_per_shard, seed=0, vectors=None, columns=None): a finished
    shard folder.

    Returns every vector column as the float32 values that were written. Row i has key "key-i",
    captions ["caption i", "again i"], hashes i, 2i and a random perceptual hash. `vectors` replaces
    the random values of some columns ("n t d"), `columns` others, such as keys or captions.
    """

    def write(
        folder: Path,
        spec: EmbeddingSpec,
        rows_per_shard: Sequence[int],
        seed: int = 0,
        vectors: dict[str, np.ndarray] | None = None,
        columns: dict[str, Sequence[Any]] | None = None,
    ) -> dict[str, np.ndarray]:
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(seed)
        total = sum(rows_per_shard)
        values = {}
        for column in spec.vector_columns():
            shape = (total, spec.num_tokens(column), spec.width(column))
            values[column] = rng.standard_normal(shape, dtype=np.float32)
        values.update(
            {name: np.asarray(given, np.float32) for name, given in (vectors or {}).items()}
        )
        if spec.caption_dim:
            values[CAPTION_EMBEDDING] /= np.linalg.norm(
                values[CAPTION_EMBEDDING], axis=-1, keepdims=True
            )
        entries = []
        start = 0
        for index, rows in enumerate(rows_per_shard):
            chosen = np.arange(start, start + rows)
            batch = _columns(chosen) | {name: array[chosen] for name, array in values.items()}
            for name, given in (columns or {}).items():
                batch[name] = (
                    given[chosen]
                    if isinstance(given, np.ndarray)
                    else [given[row] for row in chosen]
                )
            entries.append(write_shard(folder / f"shard-{index:05d}.arrow", spec, [batch]))
            start += rows
        write_manifest(folder, Manifest(spec, tuple(entries)))
        (folder / ACCOUNT).write_text(json.dumps(Account().as_json()))
        (folder / REJECTS).write_text("")
        return values

    return write


def _columns(rows: np.ndarray) -> dict[str, Any]:
    numbers = rows.astype(np.uint64)
    return {
        KEY: [f"key-{row}" for row in rows],
        SOURCE: ["synthetic"] * len(rows),
        CAPTIONS: [[f"caption {row}", f"again {row}"] for row in rows],
        BYTES_HASH: numbers,
        PIXEL_HASH: 2 * numbers,
        PERCEPTUAL_HASH: _random_hashes(rows),
        THUMBNAIL: [b"jpeg %d" % row for row in rows],
    }


def _random_hashes(rows: np.ndarray) -> np.ndarray:
    """One hash of 32 bytes per row, a function of its number."""
    bits = [
        np.random.default_rng(row).integers(0, 256, (1, 32), dtype=np.uint8)
        for row in rows.tolist()
    ]
    return np.stack(bits) if bits else np.empty((0, 1, 32), np.uint8)
