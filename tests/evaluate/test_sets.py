"""All layouts, in tars and folders, and what is wrong with those that are refused."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from colors import (
    NAMES,
    classification_files,
    picture,
    png,
    retrieval_files,
    segmentation_files,
    write_folder,
    write_tar,
)
from PIL import Image

from evaluate.sets.known import load_mask, open_classification, open_retrieval, open_segmentation


def named(*names: str) -> tuple[tuple[str, ...], ...]:
    """Classes of one name each."""
    return tuple((name,) for name in names)


@pytest.fixture(params=["tar", "folder"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[dict[str, bytes]], Path]:
    if request.param == "tar":
        return lambda files: write_tar(tmp_path / "set.tar", files)
    return lambda files: write_folder(tmp_path / "set", files)


def test_classification_names_come_from_folders(write: Callable) -> None:
    dataset = open_classification(write(classification_files()))
    assert dataset.class_names == named(*sorted(NAMES))
    assert [dataset.class_names[target][0] for target in dataset.targets] == [
        name.split("/")[0] for name in dataset.images.names
    ]


def test_classification_names_come_from_classes_json(write: Callable) -> None:
    files = {"c0/1.png": picture("red"), "c1/1.png": picture("blue"), "c1/2.png": picture("blue")}
    listing = json.dumps({"c0": "crimson", "c1": "navy"}).encode()
    assert open_classification(write({**files, "classes.json": listing})).class_names == named(
        "crimson", "navy"
    )


def test_classification_names_of_imagenette_are_known(write: Callable) -> None:
    files = {
        f"{wnid}/{wnid}_{index}.JPEG": b""
        for wnid in ("n03888257", "n01440764")
        for index in range(2)
    }
    assert open_classification(write(files)).class_names == named("tench", "parachute")


def test_wordnet_numbers_without_names_are_refused(write: Callable) -> None:
    files = {
        f"{wnid}/{index}.jpg": b"" for wnid in ("n01440764", "n99999999") for index in range(2)
    }
    with pytest.raises(
        ValueError, match=r"class folder n99999999 \(1 in all\) .* add a classes\.json"
    ):
        open_classification(write(files))


def test_masks_are_found_by_their_whole_path(write: Callable) -> None:
    files = segmentation_files(2)
    renamed = {
        name.replace("scene-0", "a/1").replace("scene-1", "b/1"): data
        for name, data in files.items()
    }
    dataset = open_segmentation(write(renamed))
    assert list(zip(dataset.images.names, dataset.masks.names, strict=True)) == [
        (f"images/{folder}/1.png", f"masks/{folder}/1.png") for folder in "ab"
    ]


def test_classification_names_come_from_stems_when_folders_are_numbers_with_one_image_each(
    write: Callable,
) -> None:
    dataset = open_classification(
        write({"n99999999/rainbow_trout.jpg": b"", "n01440764/tench_1.jpg": b""})
    )
    assert dataset.class_names == named("tench", "rainbow trout")


def test_classification_names_come_from_folders_with_one_image_each(write: Callable) -> None:
    files = {"dog/IMG_003.jpg": b"", "cat/IMG_003.jpg": b"", "n01440764/IMG_005.jpg": b""}
    assert open_classification(write(files)).class_names == named("cat", "dog", "tench")


def test_stems_with_digits_are_no_names(write: Callable) -> None:
    with pytest.raises(
        ValueError, match=r"class folder n99999999 \(1 in all\) .* add a classes\.json"
    ):
        open_classification(write({"n99999999/ILSVRC2012_val_00000293.JPEG": b""}))


def test_splits_side_by_side_are_refused(write: Callable) -> None:
    path = write(
        {f"{split}/{color}/1.png": b"" for split in ("train", "val") for color in ("red", "blue")}
    )
    with pytest.raises(
        ValueError, match=f"twice, as train/(red|blue) and as val/(red|blue): .* give {path}/val"
    ):
        open_classification(path)


def test_classification_ignores_an_enclosing_folder(write: Callable) -> None:
    files = {f"colors-v2/{name}": data for name, data in classification_files().items()}
    assert open_classification(write(files)).class_names == named(*sorted(NAMES))


def test_classification_with_a_class_that_is_not_listed_is_an_error(write: Callable) -> None:
    files = {**classification_files(), "classes.json": json.dumps({"red": "red"}).encode()}
    with pytest.raises(ValueError, match=r"unknown class black \(7 in all\)"):
        open_classification(write(files))


def test_classification_without_images_is_an_error(write: Callable) -> None:
    with pytest.raises(ValueError, match="one folder per class"):
        open_classification(write({"readme.txt": b""}))


def test_retrieval_takes_the_val_split_and_all_captions(write: Callable) -> None:
    files = retrieval_files(captions_of_each=3)
    listing = json.loads(files["dataset.json"])
    listing["images"].append(
        {"filename": "red.png", "split": "train", "sentences": [{"raw": "not this"}]}
    )
    dataset = open_retrieval(write({**files, "dataset.json": json.dumps(listing).encode()}))
    assert (dataset.split, len(dataset.images), len(dataset.captions)) == ("val", 8, 24)
    assert all(
        NAMES[owner] in caption
        for caption, owner in zip(dataset.captions, dataset.owners, strict=True)
    )


@pytest.mark.parametrize(("present", "chosen"), [("test", "test"), ("val", "val"), ("", "all")])
def test_retrieval_split_is_test_else_val_else_all(
    tmp_path: Path, present: str, chosen: str
) -> None:
    assert open_retrieval(write_folder(tmp_path, retrieval_files(split=present))).split == chosen


def test_retrieval_finds_images_under_their_filepath(write: Callable) -> None:
    entry = {"filename": "a.png", "filepath": "val2014", "sentences": [{"raw": "x"}]}
    dataset = open_retrieval(
        write(
            {"coco.json": json.dumps({"images": [entry]}).encode(), "val2014/a.png": picture("red")}
        )
    )
    assert dataset.images.names == ("val2014/a.png",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: files.pop("images/red.png"), "no image red.png"),
        (lambda files: files.pop("dataset.json"), "no caption file"),
        (lambda files: files.update({"dataset.json": b'{"images": ['}), "is not JSON"),
        (lambda files: files.update(retrieval_files(captions_of_each=0)), "has no caption"),
        (lambda files: files.update({"dataset.json": b"[]"}), "no caption file"),
        (
            lambda files: files.update(
                {"dataset.json": b'{"images": [{"filename": "red.png"}, {}]}'}
            ),
            'has no "filename"',
        ),
        (
            lambda files: files.update(
                {
                    "dataset.json": b'{"images": [{"filename": "red.png", "sentences": ["red", {"raw": " \\n"}]}]}'
                }
            ),
            "an empty one",
        ),
    ],
)
def test_retrieval_of_a_broken_set_is_an_error(
    write: Callable, change: Callable, message: str
) -> None:
    files = retrieval_files()
    change(files)
    with pytest.raises(ValueError, match=message):
        open_retrieval(write(files))


def test_retrieval_takes_coco_captions_of_the_split_that_the_file_is_named_after(
    write: Callable,
) -> None:
    files = {}
    for split in ("train", "val"):
        images = [
            {"id": number, "file_name": f"{split}-{color}.png"}
            for number, color in enumerate(NAMES)
        ]
        texts = [
            {"image_id": number, "caption": f"a {color}\n thing"}
            for number, color in enumerate(NAMES)
        ]
        content = {
            "images": images,
            "annotations": [*texts, {"image_id": 1, "caption": "red \ud83d"}],
        }
        instances = {"images": images, "annotations": [{"image_id": 0, "bbox": [0, 0, 1, 1]}]}
        files |= {f"{split}2017/{image['file_name']}": picture("red") for image in images}
        files[f"annotations/captions_{split}2017.json"] = json.dumps(content).encode()
        files[f"annotations/instances_{split}2017.json"] = json.dumps(instances).encode()
    path = write(files)
    dataset = open_retrieval(path)
    assert dataset.split == "val"
    assert dataset.images.names == tuple(f"val2017/val-{color}.png" for color in NAMES)
    assert dataset.owners.tolist() == [0, 1, 1, *range(2, 8)]
    assert dataset.captions[:3] == ("a black thing", "a red thing", "red ?")
    assert open_retrieval(path, "train").images.names[0] == "train2017/train-black.png"


def test_retrieval_of_a_split_that_is_not_there_is_an_error(write: Callable) -> None:
    with pytest.raises(ValueError, match="'test'"):
        open_retrieval(write(retrieval_files()), split="test")


def test_segmentation_list_has_a_background_at_zero(write: Callable) -> None:
    dataset = open_segmentation(write(segmentation_files()))
    assert (dataset.background, dataset.ignored, len(dataset.labels)) == (0, frozenset(), 8)
    assert load_mask(dataset, 0, (96, 64)).shape == (64, 96)


@pytest.mark.parametrize("first", ["background", "null", "void"])
def test_segmentation_list_has_its_background_first_whatever_it_is_called(
    write: Callable, first: str
) -> None:
    assert open_segmentation(write(segmentation_files(labels=[first, *NAMES[1:]]))).background == 0


def test_segmentation_object_names_the_ignored_index(write: Callable) -> None:
    files = segmentation_files(labels={"labels": [*NAMES, "void"], "ignore_index": 8})
    dataset = open_segmentation(write(files))
    assert (dataset.background, dataset.ignored, len(dataset.labels)) == (None, {8}, 8)


def test_segmentation_object_may_have_a_background(write: Callable) -> None:
    files = segmentation_files(labels={"labels": ["background", *NAMES[1:]], "ignore_index": 255})
    assert open_segmentation(write(files)).background == 0


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"classes": ["sky"]}, "labels.json of .* has no list of labels"),
        ("sky", "has no list of labels"),
        ({"labels": {"0": "sky"}}, "has no list of labels"),
        (["background", " "], "class 1 has the name ' '"),
        ({"labels": []}, "has no list of labels"),
        ({"labels": [None, "sky"]}, "class 0 has the name None"),
        (["sky", "sea"], "a list that starts with 'sky'"),
        ({"labels": ["sky", "sky"]}, "two classes are called 'sky'"),
        ({"labels": ["1", "sky"]}, "the class name '1' is a number"),
        ({"labels": ["sky"], "ignored": 0}, "has a field 'ignored'"),
        (["background"], "at least one class beside the background"),
        ({"labels": ["sky"], "ignore_index": 0}, "at least one class beside the background"),
        ({"labels": ["sky"], "ignore_index": "255"}, "ignore_index is '255'"),
    ],
)
def test_labels_that_name_no_classes_are_an_error(
    write: Callable, labels: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        open_segmentation(write(segmentation_files(labels=labels)))


def test_segmentation_without_a_mask_is_an_error(write: Callable) -> None:
    files = segmentation_files()
    del files["masks/scene-1.png"]
    with pytest.raises(ValueError, match=r"missing mask for images/scene-1\.png \(1 in all\)"):
        open_segmentation(write(files))


def test_two_masks_of_one_image_are_refused(write: Callable) -> None:
    files = segmentation_files()
    with pytest.raises(
        ValueError, match=r"has masks/scene-1\.jpg and masks/scene-1\.png: each image has one mask"
    ):
        open_segmentation(write(files | {"masks/scene-1.jpg": files["masks/scene-1.png"]}))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((64, 95), np.uint8), "size mismatch: masks/scene-0.png"),
        (np.full((64, 96), 8, np.uint8), "unknown class 8 in masks/scene-0.png"),
        (np.zeros((64, 96, 3), np.uint8), "a PNG of mode RGB: one channel"),
        (np.full((64, 96), -1, np.int32), "unknown class -1 in masks/scene-0.png"),
        (np.zeros((64, 96), np.float32), "a TIFF of mode F: one channel of whole class indices"),
    ],
)
def test_mask_that_does_not_fit_is_an_error(
    write: Callable, mask: np.ndarray, message: str
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG" if mask.dtype == np.uint8 else "TIFF")
    files = segmentation_files() | {"masks/scene-0.png": buffer.getvalue()}
    with pytest.raises(ValueError, match=message):
        load_mask(open_segmentation(write(files)), 0, (96, 64))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda mask: mask[:60], r"cannot decode masks/scene-0\.png"),
        (lambda mask: b"", r"cannot decode masks/scene-0\.png"),
        (lambda mask: _as_jpeg(mask), "a JPEG of mode L: .* lossy"),
    ],
)
def test_mask_that_cannot_be_trusted_is_an_error(
    write: Callable, damage: Callable, message: str
) -> None:
    files = segmentation_files()
    files["masks/scene-0.png"] = damage(files["masks/scene-0.png"])
    with pytest.raises(ValueError, match=message):
        load_mask(open_segmentation(write(files)), 0, (96, 64))


def _as_jpeg(mask: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(mask)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_palette_mask_is_read_as_its_indices(write: Callable) -> None:
    mask = Image.new("P", (96, 64), 3)
    mask.putpalette([255, 255, 255] * 4)
    dataset = open_segmentation(write(segmentation_files() | {"masks/scene-0.png": png(mask)}))
    assert (load_mask(dataset, 0, (96, 64)) == 3).all()


def test_background_that_is_ignored_is_no_class_to_find(write: Callable) -> None:
    files = segmentation_files(labels={"labels": ["background", *NAMES[1:]], "ignore_index": 0})
    assert open_segmentation(write(files)).background is None


def test_mask_of_more_than_256_classes_is_read_from_16_bit(tmp_path: Path) -> None:
    mask = np.full((64, 96), 700, np.uint16)
    files = segmentation_files(labels={"labels": [f"thing number {label}" for label in range(701)]})
    dataset = open_segmentation(
        write_folder(tmp_path, files | {"masks/scene-0.png": png(Image.fromarray(mask))})
    )
    assert (load_mask(dataset, 0, (96, 64)) == 700).all()


def test_image_that_cannot_be_decoded_is_an_error_that_names_it(write: Callable) -> None:
    dataset = open_classification(write({**classification_files(), "red/0.png": b"not an image"}))
    with pytest.raises(ValueError, match=r"cannot decode red/0\.png"):
        [dataset.images.load(index) for index in range(len(dataset.images))]


def test_path_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.tar does not exist"):
        open_classification(tmp_path / "absent.tar")


def test_compressed_tar_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "set.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    with pytest.raises(ValueError, match="uncompressed"):
        open_classification(tmp_path / "set.tar")
