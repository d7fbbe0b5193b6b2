"""The emoji pool: captions, held-out vendors, the layouts of its four outputs."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("emoji")

from curation.quickstart import pool
from curation.quickstart.pool import (
    SCENE_CONCEPTS,
    SCENE_GROUPS,
    Concept,
    EmojiConfig,
    read_concepts,
    read_drawings,
    run,
    write_tar,
)
from curation.quickstart.scenes import Cutout, background, compose, draw_scenes

CONFIG = EmojiConfig(
    vendors=("apple", "google", "twitter"),
    held_out=("apple", "twitter"),
    scenes=6,
    retrieval_images=90,
)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    try:
        pool.drawings_folder()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    out = tmp_path_factory.mktemp("pool")
    return out, run(CONFIG, out=out)


@contextmanager
def opened(path: Path) -> Iterator[Callable[[str], bytes]]:
    with tarfile.open(path) as archive:
        yield lambda name: archive.extractfile(name).read()  # type: ignore[union-attr]


@cache
def concepts() -> dict[str, Concept]:
    return read_concepts()


def concept(text: str) -> Concept:
    return concepts()["-".join(f"{ord(character):04x}" for character in text)]


def test_name_and_aliases_become_captions() -> None:
    assert concept("🐶").captions == ["dog face", "dog", "dog face emoji", "an emoji of dog face"]
    assert concept("🇫🇷").captions[0] == "flag of France"


def test_skin_tones_are_described() -> None:
    assert concept("🤝🏽").captions[0] == "handshake, medium skin tone"
    both = concept("👩🏻‍🤝‍👨🏿")
    assert both.tones == ("light skin tone", "dark skin tone")
    assert all(
        caption.endswith(", light skin tone and dark skin tone") for caption in both.captions
    )


@pytest.mark.parametrize("text", ["👨‍💻", "🏃‍♀️", "👩‍❤️‍👨", "👋🏿", "👨‍👩‍👦"])
def test_variants_are_no_classes(text: str) -> None:
    assert concept(text).is_variant


@pytest.mark.parametrize("text", ["🧑‍💻", "👩", "♀️", "🐻‍❄️", "🏳️‍🌈", "🇯🇵"])
def test_concepts_of_their_own_are_classes(text: str) -> None:
    assert not concept(text).is_variant


def test_training_pairs_leave_out_the_held_out_vendors(
    output: tuple[Path, dict[str, float]],
) -> None:
    out, summary = output
    keys = []
    for file in sorted((out / "train").iterdir()):
        with tarfile.open(file) as archive:
            keys += [
                name.removesuffix(".json") for name in archive.getnames() if name.endswith(".json")
            ]
    assert len(keys) == len(set(keys)) == summary["train_pairs"]
    assert {key.split("-")[0] for key in keys} == {"google"}


def test_training_members_follow_webdataset(output: tuple[Path, dict[str, float]]) -> None:
    file = min((output[0] / "train").iterdir())
    with tarfile.open(file) as archive:
        names = archive.getnames()
    assert [name.rsplit(".", 1)[1] for name in names[:6]] == ["png", "json", "txt"] * 2
    assert all(name.count(".") == 1 for name in names)
    with opened(file) as read:
        captions = json.loads(read(names[1]))["captions"]
        assert captions[0] == read(names[2]).decode()
        assert Image.open(io.BytesIO(read(names[0]))).size >= (72, 72)


def test_classification_has_a_name_for_every_folder(output: tuple[Path, dict[str, float]]) -> None:
    out, summary = output
    with tarfile.open(out / "classification.tar") as archive:
        folders = {name.split("/")[0] for name in archive.getnames() if "/" in name}
    with opened(out / "classification.tar") as read:
        classes = json.loads(read("classes.json"))
    assert set(classes) == folders
    assert len(classes) == len(set(classes.values())) == summary["classes"] > 1000
    assert classes["1f436"] == "dog face"


def test_retrieval_caption_has_one_image(output: tuple[Path, dict[str, float]]) -> None:
    with opened(output[0] / "retrieval.tar") as read:
        images = json.loads(read("dataset.json"))["images"]
        assert all(
            Image.open(io.BytesIO(read(f"images/{image['filename']}"))) for image in images[:5]
        )
    names = [image["sentences"][0]["raw"] for image in images]
    assert len(names) == len(set(names)) == 90
    assert {image["filename"].split("-")[0] for image in images} == {"apple", "twitter"}


def test_segmentation_masks_hold_the_labels(output: tuple[Path, dict[str, float]]) -> None:
    with opened(output[0] / "segmentation.tar") as read:
        labels = json.loads(read("labels.json"))
        assert labels["labels"] == ["background", *SCENE_CONCEPTS]
        for i in range(CONFIG.scenes):
            image = Image.open(io.BytesIO(read(f"images/scene-{i:05d}.jpg")))
            mask = np.asarray(Image.open(io.BytesIO(read(f"masks/scene-{i:05d}.png"))))
            assert image.size == mask.shape == (224, 224)
            assert 3 <= len(np.unique(mask)) <= 5
            assert mask.max() <= len(SCENE_CONCEPTS)


def test_same_bytes_on_every_run(output: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    first = output[0]
    second = tmp_path
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "pairs-00000.tar").write_bytes(b"left by an interrupted run")
    run(CONFIG, out=second)

    def digests(folder: Path) -> dict[Path, str]:
        files = (file for file in folder.rglob("*") if file.is_file())
        return {file.relative_to(folder): sha256(file.read_bytes()).hexdigest() for file in files}

    assert digests(first) == digests(second)


def test_scenes_paste_exactly_where_the_mask_says() -> None:
    buffer = io.BytesIO()
    pixels = np.zeros((40, 40, 4), np.uint8)
    pixels[8:32, 8:32] = (255, 0, 255, 255)
    Image.fromarray(pixels).save(buffer, "PNG")
    image, mask = compose(np.random.default_rng(0), [Cutout(7, buffer.getvalue())], 96)
    pasted = (np.abs(image.astype(int) - [255, 0, 255]) < 3).all(axis=2)
    differing = (pasted != (mask == 7)).sum()
    assert (mask == 7).sum() > 200
    assert differing < 4 * (mask == 7).sum() ** 0.5


def test_scene_is_a_function_of_seed_and_number() -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (8, 8), "red").save(buffer, "PNG")
    cutouts = [Cutout(label, buffer.getvalue()) for label in range(1, 6)]
    many = list(draw_scenes(cutouts, 4, 64, seed=3))
    assert list(draw_scenes(cutouts, 2, 64, seed=3)) == many[:2]
    assert list(draw_scenes(cutouts, 2, 64, seed=4)) != many[:2]


def test_backgrounds_vary_like_photographs() -> None:
    for seed in range(9):
        pixels = background(np.random.default_rng(seed), 64)
        assert pixels.shape == (64, 64, 3)
        assert pixels.std() > 5


@pytest.mark.parametrize(
    ("vendors", "held_out", "message"),
    [
        (("apple", "google"), ("apple", "google"), "hold out"),
        (("apple", "nokia"), ("apple",), "unknown"),
    ],
)
def test_vendors_are_checked(
    vendors: tuple[str, ...], held_out: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        EmojiConfig(vendors=vendors, held_out=held_out)


def test_tar_members_carry_no_time_or_owner(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("x.txt", b"1")])
    with tarfile.open(tmp_path / "a.tar") as archive:
        info = archive.getmember("x.txt")
    assert (info.mtime, info.uid, info.gid, info.uname) == (0, 0, 0, "")


def test_missing_wheel_names_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    with pytest.raises(FileNotFoundError, match="make setup"):
        pool.drawings_folder()


def test_fewer_concepts_still_hold_those_of_the_scenes() -> None:
    names = {drawing.concept.name for drawing in read_drawings(["google"], 100)}
    assert set(SCENE_CONCEPTS) <= names
    assert {name for group in SCENE_GROUPS.values() for name in group} <= set(SCENE_CONCEPTS)
    assert SCENE_GROUPS["food"][0] == "red apple"
    assert SCENE_GROUPS["food"][-1] == "birthday cake"
    assert len(names) <= 100 + len(SCENE_CONCEPTS)
