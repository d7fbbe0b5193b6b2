"""A site on which the right answers are known: images are colors, and the encoder sees colors."""

from pathlib import Path

import pytest
from stripes import square

from evaluate.search.collection import Collection
from evaluate.search.engine import Engine
from evaluate.search.galleries import FolderGallery, list_images
from evaluate.search.vector_index import build_index
from evaluate.search.web import Fate, Site
from tests.evaluate.colors import NAMES, ColorEncoder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One image per color, and one of two halves."""
    images = tmp_path / "images"
    images.mkdir()
    for name in NAMES:
        square(name).save(images / f"{name}.png")
    square("red", "blue").save(images / "zz-halves.png")
    (tmp_path / "secret.png").write_bytes((images / "red.png").read_bytes())
    return images


@pytest.fixture
def engine(folder: Path) -> Engine:
    images = list_images(folder)
    collection = Collection(FolderGallery(images))
    encoder = ColorEncoder()
    vectors = encoder.encode_image([images.load(row) for row in range(len(images))]).numpy()
    return Engine(encoder, build_index(vectors, exact_mb=1.0), collection)


@pytest.fixture
def site(engine: Engine) -> Site:
    """Two models that are the same, and a curation that kept what is red."""
    return Site(
        title="colors",
        note="nine images",
        engines={"curated": engine, "uncurated": engine},
        collection=engine.collection,
        fates=lambda key: [Fate("curated", "red" in key, f"about {key}")],
        examples=["red", "blue"],
    )
