"""The step `index`: the vectors of a collection under one model, ready to be searched.

Of the workspace's pool, vectors come from the stored tokens: no image is read. The images of a
folder are embedded; those that cannot be decoded are listed in rejects.jsonl and left out.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image
from torch.nn.functional import normalize

from cluster.files import append_jsonl, write_atomic
from cluster.progress import progress
from curation.encoders.config import geometry_of
from curation.shards.reader import open_shards
from evaluate.config import IndexConfig
from evaluate.dinotxt import load_encoder
from evaluate.search.galleries import FolderGallery, list_images, stored_features
from evaluate.search.vector_index import build_index
from evaluate.sets.images import Images
from evaluate.views import ahead
from train.export.formats import read_model

INDEX = "index.faiss"
NAMES = "names.json"
REJECTS = "rejects.jsonl"
ROWS_AT_ONCE = 512
IMAGES_AT_ONCE = 64

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

    ValueError where there is none.
    """
    encoder = load_encoder(model_folder, config.backbone)
    images = list_images(folder)
    blocks = list[np.ndarray]()
    names = list[str]()

    # Rows are appended: those of a run that was interrupted would stand there twice.
    (out / REJECTS).unlink(missing_ok=True)

    with progress(len(images), "index", unit="images") as advance:
        side = geometry_of(config.backbone).image_size
        decoded = _decoded(images, side, out / REJECTS)
        while some := list(islice(decoded, IMAGES_AT_ONCE)):
            names += [name for name, _ in some]
            blocks.append(encoder.encode_image([image for _, image in some]).numpy())
            advance(len(some))

    if not blocks:
        raise ValueError(
            f"none of the {len(images)} images of {folder} can be decoded: {out / REJECTS} says "
            "why; name another folder"
        )

    write_atomic(out / NAMES, json.dumps(names))
    return np.concatenate(blocks)


def _decoded(images: Images, side: int, rejects: Path) -> Iterator[tuple[str, Image.Image]]:
    """Name and pixels of every image that can be decoded, in order; the others are listed."""
    gallery = FolderGallery(images)

    # An error is returned like an image: raised, it would end the reading of all images after it.
    def load(row: int) -> Image.Image | ValueError:
        try:
            return gallery.image(row, side)
        except ValueError as error:
            return error

    loaded = ahead(load, range(len(images)), 2 * IMAGES_AT_ONCE)
    for row, image in enumerate(loaded):
        if isinstance(image, ValueError):
            logger.warning("image=%s left out: %s", images.names[row], image)
            append_jsonl(rejects, {"name": images.names[row], "reason": str(image)})
        else:
            yield images.names[row], image


def read_names(folder: Path) -> list[str]:
    """The names of a folder's images, in the order of the rows of its index."""
    return json.loads((folder / NAMES).read_text())
