"""Images of evaluation sets, as they are listed for curation to look for."""

import json
from pathlib import Path

import pytest
from PIL import Image

from evaluate.image_lists import list_images


def write_images(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)


def listed(source) -> dict[str, object]:
    return {pair.key: pair.captions for part in source.parts for pair in part.pairs}


def test_classification_images_come_without_captions(tmp_path: Path) -> None:
    write_images(tmp_path, "cat/a.png", "dog/b.png")
    assert listed(list_images("classification", "", tmp_path, "auto")) == {
        "cat/a.png": None,
        "dog/b.png": None,
    }


@pytest.mark.parametrize("task", ["retrieval", None])
def test_of_captioned_images_the_scored_split_is_listed(tmp_path: Path, task) -> None:
    write_images(tmp_path, "images/a.png", "images/b.png")
    entries = [
        {"filename": f"{name}.png", "split": split, "sentences": [{"raw": f"picture {name}"}]}
        for name, split in (("a", "train"), ("b", "test"))
    ]
    (tmp_path / "dataset.json").write_text(json.dumps({"images": entries}))
    assert listed(list_images(task, "", tmp_path, "auto")) == {"images/b.png": ("picture b",)}


def test_masks_are_no_images(tmp_path: Path) -> None:
    write_images(tmp_path, "images/a.png")
    (tmp_path / "masks").mkdir()
    Image.new("L", (8, 8), 1).save(tmp_path / "masks" / "a.png")
    (tmp_path / "labels.json").write_text(json.dumps(["background", "sky"]))
    for task in ("segmentation", None):
        assert list(listed(list_images(task, "", tmp_path, "auto"))) == ["images/a.png"]


def test_a_set_without_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("nothing")
    with pytest.raises(ValueError, match="has no images: image files"):
        list_images(None, "", tmp_path, "auto")
