"""The step `index`: the vectors of a collection under one model, ready to be searched.

Of the workspace's pool, vectors come from the stored tokens: no image is read. The images of a
folder are embedded in pieces, each a file once it is finished, so that a run that was killed
continues behind the last one; images that cannot be decoded are listed in rejects.jsonl and left
out.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image
from torch.nn.functional import normalize

from cluster.files import replacing, write_atomic
from cluster.progress import progress
from curation.encoders.config import geometry_of
from curation.shards.reader import open_shards
from evaluate.config import IndexConfig
from evaluate.dinotxt import DinoTxtEncoder, load_encoder
from evaluate.search.galleries import FolderGallery, list_images, stored_features
from evaluate.search.vector_index import build_index
from evaluate.sets.images import Images
from evaluate.views import ahead
from train.export.published import read_model

INDEX = "index.faiss"
NAMES = "names.json"
REJECTS = "rejects.jsonl"
PIECES = "pieces"
ROWS_AT_ONCE = 512
IMAGES_AT_ONCE = 64  # one pass of the encoder, and one piece

logger = logging.getLogger(__name__)


def run(
    config: IndexConfig,
    *,
    out: Path,
    model: Path,
    embeddings: Path | None = None,
    images: Path | None = None,
) -> Mapping[str, float]:
    """Write the index of a pool's embeddings, or of a folder of images."""
    if embeddings is not None:
        vectors = pool_vectors(model, embeddings)
    else:
        assert images is not None
        vectors = folder_vectors(config, model, images, out)

    index = build_index(vectors, config.exact_mb, config.seed)
    index.write(out / INDEX)
    if images:
        shutil.rmtree(out / PIECES)  # the index has all of their vectors

    return {"rows": float(len(index)), "dim": float(index.dim)}


@torch.inference_mode()
def pool_vectors(model_folder: Path, embeddings: Path) -> Float32[np.ndarray, "n d"]:
    """Unit vectors of all embedded images, in row order."""
    model = read_model(model_folder).model
    shards = open_shards(embeddings)
    blocks = []

    with progress(len(shards), "index", unit="images") as advance:
        for start in range(0, len(shards), ROWS_AT_ONCE):
            rows = np.arange(start, min(start + ROWS_AT_ONCE, len(shards)))
            vectors = model.encode_image_features(*stored_features(shards, rows)).float()
            blocks.append(normalize(vectors, dim=-1).numpy())
            advance(len(rows))

    return np.concatenate(blocks)


def folder_vectors(
    config: IndexConfig, model_folder: Path, folder: Path, out: Path
) -> Float32[np.ndarray, "n d"]:
    """Unit vectors of the images of a folder that can be decoded; their names go into `out`.

    Finished pieces that `out` has from an earlier run are kept. ValueError where no image can be
    decoded.
    """
    images = list_images(folder)
    _embed_pieces(config, model_folder, images, out / PIECES)
    pieces = [_read_piece(out / PIECES, rows) for rows in _piece_rows(images)]

    rejects = [reject for piece in pieces for reject in piece.rejects]
    if rejects:
        write_atomic(out / REJECTS, "".join(f"{json.dumps(reject)}\n" for reject in rejects))
    if len(rejects) == len(images):
        raise ValueError(
            f"none of the {len(images)} images of {folder} can be decoded: {out / REJECTS} says "
            "why; name another folder"
        )

    names = [name for piece in pieces for name in piece.names]
    write_atomic(out / NAMES, json.dumps(names))
    return np.concatenate([piece.vectors for piece in pieces if piece.names])


class Piece(NamedTuple):
    """What came of IMAGES_AT_ONCE images of a folder."""

    names: list[str]
    """Of the images that were decoded, in order."""
    rejects: list[dict[str, str]]
    """Name and reason of each other image."""
    vectors: Float32[np.ndarray, "n d"]


def _embed_pieces(config: IndexConfig, model_folder: Path, images: Images, folder: Path) -> None:
    """Write every piece that `folder` does not have yet."""
    folder.mkdir(exist_ok=True)
    pieces = [rows for rows in _piece_rows(images) if not _piece_file(folder, rows).exists()]
    missing = list(chain.from_iterable(pieces))
    if not missing:
        return

    num_kept = len(images) - len(missing)
    if num_kept:
        logger.info("images=%d embedded_before=%d", len(images), num_kept)

    encoder = load_encoder(model_folder, config.backbone)
    decoded = _decoded(images, missing, geometry_of(config.backbone).image_size)
    with progress(len(missing), "index", unit="images") as advance:
        for rows in pieces:
            piece = _embed(encoder, images, rows, list(islice(decoded, len(rows))))
            _write_piece(folder, rows, piece)
            advance(len(rows))


def _embed(
    encoder: DinoTxtEncoder, images: Images, rows: range, decoded: list[Image.Image | ValueError]
) -> Piece:
    """The vectors of some images, and the errors of the others."""
    names = []
    rejects = []
    pixels = []
    for row, image in zip(rows, decoded, strict=True):
        name = images.names[row]
        if isinstance(image, ValueError):
            logger.warning("image=%s left out: %s", name, image)
            rejects.append({"name": name, "reason": str(image)})
        else:
            names.append(name)
            pixels.append(image)

    vectors = encoder.encode_image(pixels).numpy() if pixels else np.empty((0, 0), np.float32)
    return Piece(names, rejects, vectors)


def _decoded(images: Images, rows: Sequence[int], side: int) -> Iterator[Image.Image | ValueError]:
    """The pixels of every row, in order; where they cannot be decoded, the error."""
    gallery = FolderGallery(images)

    # An error is returned like an image: raised, it would end the reading of all images after it.
    def load(row: int) -> Image.Image | ValueError:
        try:
            return gallery.image(row, side)
        except ValueError as error:
            return error

    return ahead(load, rows, 2 * IMAGES_AT_ONCE)


def _piece_rows(images: Images) -> list[range]:
    """The rows of each piece."""
    starts = range(0, len(images), IMAGES_AT_ONCE)
    return [range(start, min(start + IMAGES_AT_ONCE, len(images))) for start in starts]


def _piece_file(folder: Path, rows: range) -> Path:
    return folder / f"{rows.start:09d}.npz"


def _write_piece(folder: Path, rows: range, piece: Piece) -> None:
    """A piece as one file, which is there only when all of it is on disk."""
    about = json.dumps({"names": piece.names, "rejects": piece.rejects})
    with replacing(_piece_file(folder, rows)) as temporary, temporary.open("wb") as stream:
        np.savez(stream, vectors=piece.vectors, about=np.array(about))


def _read_piece(folder: Path, rows: range) -> Piece:
    with np.load(_piece_file(folder, rows)) as file:
        about = json.loads(str(file["about"]))
        return Piece(about["names"], about["rejects"], file["vectors"])


def read_names(folder: Path) -> list[str]:
    """The names of a folder's images, in the order of the rows of its index."""
    return json.loads((folder / NAMES).read_text())
