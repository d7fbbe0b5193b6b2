"""Words find the image of their color, and the pixels of their color."""

import numpy as np
import pytest
from stripes import encoded, square

from evaluate.search.collection import MOST_OWN, Collection
from evaluate.search.engine import Engine
from evaluate.search.vector_index import build_index
from tests.evaluate.colors import NAMES, ColorEncoder


def row_of(engine: Engine, name: str) -> int:
    gallery = engine.collection.gallery
    return next(row for row in range(len(gallery)) if gallery.name(row) == name)


@pytest.mark.parametrize("color", NAMES)
def test_words_find_the_image_that_they_name(engine: Engine, color: str) -> None:
    best, *others = engine.search(f"a {color}", 5)
    assert engine.collection.gallery.name(best.row) == f"{color}.png"
    assert best.cosine == pytest.approx(1, abs=1e-3)
    assert [hit.cosine for hit in others] == sorted((hit.cosine for hit in others), reverse=True)


def test_neighbors_leave_the_image_itself_out(engine: Engine) -> None:
    red = engine.collection.picture(str(row_of(engine, "red.png")))
    hits = engine.neighbors(red, 8)
    assert red.row not in [hit.row for hit in hits]
    assert len(hits) == 8


def test_an_own_image_finds_its_like(engine: Engine) -> None:
    own = engine.collection.add(encoded(square("green")))
    best = engine.neighbors(own, 1)[0]
    assert engine.collection.gallery.name(best.row) == "green.png"


@pytest.mark.parametrize("is_square", [True, False])
def test_the_pixels_that_words_name_are_colored(engine: Engine, is_square: bool) -> None:
    halves = engine.collection.picture(str(row_of(engine, "zz-halves.png")))
    alpha = engine.heat(halves, "blue", is_square)[..., 3]
    middle = alpha.shape[1] // 2
    assert alpha[:, : middle - 8].max() == 0
    assert alpha[:, middle + 8 :].min() > 100


def test_every_pixel_gets_the_name_of_its_color(engine: Engine) -> None:
    own = engine.collection.add(encoded(square("red", "blue", "green", "white")))
    parts = engine.parts(own, ["blue", "white", "red", "green", "black"])
    expected = {"blue": 0.25, "white": 0.25, "red": 0.25, "green": 0.25, "black": 0}
    assert parts.shares == pytest.approx(expected, abs=0.02)
    assert (parts.picture[..., 3] > 0).all()


def test_one_name_is_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="at least two different names are needed"):
        engine.parts(engine.collection.picture("0"), ["red", "red"])


@pytest.mark.parametrize("name", ["9", "-1", "own-1", "../secret.png", "1.5", "", "٣"])
def test_only_listed_images_have_a_name(engine: Engine, name: str) -> None:
    with pytest.raises(LookupError, match="there is no image"):
        engine.collection.picture(name)


def test_the_newest_own_images_are_kept(engine: Engine) -> None:
    data = encoded(square("red"))
    names = [engine.collection.add(data).name for _ in range(MOST_OWN + 1)]
    engine.collection.picture(names[1])
    with pytest.raises(LookupError, match="add it again"):
        engine.collection.picture(names[0])


def test_an_index_of_other_images_is_refused(engine: Engine) -> None:
    index = build_index(np.eye(3, dtype=np.float32), exact_mb=1.0)
    with pytest.raises(ValueError, match="the index has 3 rows, the collection 9 images"):
        Engine(ColorEncoder(), index, Collection(engine.collection.gallery))
