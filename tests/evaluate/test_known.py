"""Every known set as it is downloaded scores 1 with an encoder that knows each class by its name
and its color.
"""

import io
import json
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from colors import COLORS, PATCH, classified, png, retrieved, write_folder
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import one_hot

from evaluate.config import SegmentationConfig
from evaluate.segmentation import Segmenter
from evaluate.sets.known import open_classification, open_retrieval, open_segmentation

PALETTE = np.array(list(COLORS.values()))
SIZE = (64, 48)
Files = dict[str, bytes]


class NamedColors:
    """The class with names[i] has the i-th color; a text without one of the names is like
    nothing.
    """

    description = "names of colors"
    protocol: Mapping[str, object] = {"image_size": "any"}

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def encode_text(self, texts: Sequence[str], *, dense: bool = False) -> Float[Tensor, "n d"]:
        vectors = torch.zeros(len(texts), len(PALETTE))
        for row, text in enumerate(texts):
            for column, name in enumerate(self._names):
                vectors[row, column] = bool(re.search(rf"(?<![\w-]){name}(?![\w-])", text.lower()))
        return vectors

    def encode_image(self, images: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        """By the upper left corner, where a border would be."""
        return nearest_colors(np.stack([np.asarray(image)[0, 0] for image in images]))

    def encode_patches(self, images: Sequence[Image.Image]) -> Float[Tensor, "n h w p"]:
        pixels = np.stack([np.asarray(image) for image in images]).astype(np.int64)
        count, height, width, _ = pixels.shape
        blocks = pixels.reshape(count, height // PATCH, PATCH, width // PATCH, PATCH, 3)
        return nearest_colors(blocks.mean((2, 4)))


def nearest_colors(pixels: np.ndarray) -> Tensor:
    distances = ((pixels[..., None, :] - PALETTE) ** 2.0).sum(-1)
    return one_hot(torch.from_numpy(distances.argmin(-1)), len(PALETTE)).float()


def flat(color: int, kind: str = "PNG", border: int = 0) -> bytes:
    """A picture of one color."""
    image = ImageOps.expand(Image.new("RGB", SIZE, tuple(PALETTE[color])), border, "red")
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 98} if kind == "JPEG" else {}))
    return buffer.getvalue()


def halves(left: object, right: object) -> np.ndarray:
    """Two values, or two colors, side by side."""
    parts = [np.full((SIZE[1], SIZE[0] // 2, *np.shape(each)), each) for each in (left, right)]
    return np.concatenate(parts, axis=1)


def scene(left: int = 0, right: int = 1) -> bytes:
    return png(Image.fromarray(halves(PALETTE[left], PALETTE[right]).astype(np.uint8)))


def mask(
    left: int, right: int, dtype: type = np.uint8, void: int | None = None, kind: str = "PNG"
) -> bytes:
    values = halves(left, right).astype(dtype)
    if void is not None:
        values[:4] = void
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind)
    return buffer.getvalue()


WORDNET = {"tench": "n01440764", "goldfish": "n01443537", "great white shark": "n01484850"}
FISH = tuple(WORDNET)


def wordnet_folders(root: str) -> Files:
    return {
        f"{root}/{number}/{copy}.JPEG": flat(color, "JPEG")
        for color, number in enumerate(WORDNET.values())
        for copy in range(2)
    }


def archive() -> Files:
    """ImageNet's validation images as their archive has them: the goldfish first, then the
    tench.
    """
    return {f"ILSVRC2012_val_{number:08d}.JPEG": flat(2 - number, "JPEG") for number in (1, 2)}


def development_kit() -> Files:
    buffer = io.BytesIO()
    rows = [(1, WORDNET["goldfish"]), (2, WORDNET["tench"])]
    synsets = np.array(rows, dtype=[("ILSVRC2012_ID", object), ("WNID", object)])
    scipy.io.savemat(buffer, {"synsets": synsets})
    return archive() | {
        "meta.mat": buffer.getvalue(),
        "ILSVRC2012_validation_ground_truth.txt": b"1\n2\n",
    }


def objectnet() -> Files:
    labels = {"alarm_clock": "Alarm clock", "baking_sheet": "Baking sheet", "banana": "Banana"}
    images = {f"images/{name}/1.png": flat(color, border=2) for color, name in enumerate(labels)}
    mapped = {"Alarm clock": "analog clock; digital clock", "Banana": "banana"}
    return images | {
        "mappings/folder_to_objectnet_label.json": json.dumps(labels).encode(),
        "mappings/objectnet_to_imagenet_1k.json": json.dumps(mapped).encode(),
    }


def inaturalist() -> Files:
    species = {7: "Anas acuta", 12: "Acer rubrum"}
    paths = {number: f"train_val2018/Aves/{number}/{number}.jpg" for number in species}
    listing = {
        "images": [{"id": number, "file_name": path} for number, path in paths.items()],
        "annotations": [{"image_id": number, "category_id": number} for number in species],
        "categories": [{"id": number, "name": name} for number, name in species.items()],
    }
    images = {path: flat(color) for color, path in enumerate(paths.values())}
    return images | {"val2018.json": json.dumps(listing).encode()}


def places() -> Files:
    return {
        "val_256/Places365_val_00000001.jpg": flat(1),
        "val_256/Places365_val_00000002.jpg": flat(0),
        "places365_val.txt": b"Places365_val_00000001.jpg 1\nPlaces365_val_00000002.jpg 0\n",
        "categories_places365.txt": b"/a/airfield 0\n/a/apartment_building/outdoor 1\n",
    }


def cifar(hundred: bool) -> Files:
    # All red values, then green, then blue.
    rows = np.repeat(PALETTE[:2].astype(np.uint8), 1024, axis=1)
    kind, names = (b"fine_labels", b"fine_label_names") if hundred else (b"labels", b"label_names")
    batch = {b"data": rows, kind: [0, 1], b"filenames": [b"a.png", b"b.png"]}
    files = ("test", "meta") if hundred else ("test_batch", "batches.meta")
    return {
        f"cifar/{files[0]}": pickle.dumps(batch, 2),
        f"cifar/{files[1]}": pickle.dumps({names: [b"airplane", b"sea_lion"]}, 2),
    }


CLASSIFICATION: dict[str, tuple[Files, Sequence[str], int]] = {
    "imagenet": (wordnet_folders("val") | wordnet_folders("train"), FISH, 6),
    "imagenet-flat-kaggle": (
        archive()
        | {
            "LOC_val_solution.csv": b"ImageId,PredictionString\n"
            b"ILSVRC2012_val_00000001,n01443537 1 2 3 4\nILSVRC2012_val_00000002,n01440764 1 2 3 4 n01440764 5 6 7 8\n"
        },
        FISH,
        2,
    ),
    "imagenet-flat-list": (
        archive()
        | {"val.txt": b"ILSVRC2012_val_00000001.JPEG 1\nILSVRC2012_val_00000002.JPEG 0\n"},
        FISH,
        2,
    ),
    "imagenet-flat-kit": (development_kit(), FISH, 2),
    "imagenet-v2": (
        {
            f"imagenetv2-top-images/{number}/{number}.jpeg": flat(color)
            for color, number in enumerate((0, 2, 10))
        },
        ("tench", "great white shark", "brambling"),
        3,
    ),
    "imagenet-a": (wordnet_folders("imagenet-a"), FISH, 6),
    "imagenet-r": (wordnet_folders("imagenet-r"), FISH, 6),
    "imagenet-sketch": (wordnet_folders("sketch"), FISH, 6),
    "objectnet-1.0": (objectnet(), ("alarm clock", "baking sheet", "banana"), 2),
    "objectnet-1.0@313": (objectnet(), ("alarm clock", "baking sheet", "banana"), 3),
    "inaturalist2018": (inaturalist(), ("anas acuta", "acer rubrum"), 2),
    "inaturalist2021": (
        {
            "val/00001_Animalia_Annelida_Clitellata_Haplotaxida_Lumbricidae_Lumbricus_terrestris/1.jpg": flat(
                0
            ),
            "val/02912_Animalia_Chordata_Aves_Anseriformes_Anatidae_Anas_acuta/1.jpg": flat(1),
        },
        ("lumbricus terrestris", "anas acuta"),
        2,
    ),
    "places365": (places(), ("airfield", "apartment building outdoor"), 2),
    "cifar10": (cifar(hundred=False), ("airplane", "sea lion"), 2),
    "cifar100": (cifar(hundred=True), ("airplane", "sea lion"), 2),
}


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_classification_as_downloaded(name: str, tmp_path: Path) -> None:
    files, names, num_images = CLASSIFICATION[name]
    folder, _, variant = name.partition("@")
    dataset = open_classification(write_folder(tmp_path / folder, files), variant)
    assert dataset.facts.published
    assert len(dataset.images) == num_images
    assert (
        classified(NamedColors(names), dataset, ["a photo of a {}."], 4).tallies["top1"].value
        == 1.0
    )


SENTENCES = [[f"a {name} here", f"the {name} again"] for name in FISH]


def karpathy() -> Files:
    entries: list[dict[str, object]] = [
        {
            "filename": f"{color}.jpg",
            "split": "test",
            "filepath": "val2014",
            "sentences": [{"raw": each} for each in two],
        }
        for color, two in enumerate(SENTENCES)
    ]
    entries.append(
        {
            "filename": "9.jpg",
            "split": "train",
            "filepath": "train2014",
            "sentences": [{"raw": "x"}],
        }
    )
    images = {f"val2014/{color}.jpg": flat(color) for color in range(len(FISH))}
    return images | {"dataset_coco.json": json.dumps({"images": entries}).encode()}


def coco() -> Files:
    rows = [{"id": color, "file_name": f"{color:012d}.jpg"} for color in range(len(FISH))]
    texts = [
        {"image_id": color, "caption": each} for color, two in enumerate(SENTENCES) for each in two
    ]
    images = {f"val2017/{color:012d}.jpg": flat(color) for color in range(len(FISH))}
    return images | {
        "annotations/captions_val2017.json": json.dumps(
            {"images": rows, "annotations": texts}
        ).encode(),
        "annotations/instances_val2017.json": b"not even JSON: it is not read",
    }


def flickr(listing: str, line: str) -> Files:
    lines = [
        line.format(image=f"{color}.jpg", number=number, text=text)
        for color, two in enumerate(SENTENCES)
        for number, text in enumerate(two)
    ]
    head = "image_name| comment_number| comment\n" if listing.endswith(".csv") else ""
    images = {f"flickr30k_images/{color}.jpg": flat(color) for color in range(len(FISH))}
    return images | {listing: (head + "\n".join(lines)).encode()}


RETRIEVAL: dict[str, Callable[[], Files]] = {
    "coco-karpathy": karpathy,
    "coco2017": coco,
    "flickr30k-token": lambda: flickr("results_20130124.token", "{image}#{number}\t{text}"),
    "flickr30k-csv": lambda: flickr("results.csv", "{image}| {number}| {text}"),
}


@pytest.mark.parametrize("name", RETRIEVAL)
def test_retrieval_as_downloaded(name: str, tmp_path: Path) -> None:
    dataset = open_retrieval(write_folder(tmp_path / name, RETRIEVAL[name]()))
    assert dataset.facts.published
    assert (len(dataset.images), len(dataset.captions)) == (3, 6)
    tallies = retrieved(NamedColors(FISH), dataset, 4).tallies
    assert tallies["text_to_image_r1"].value == tallies["image_to_text_r1"].value == 1.0


def sugarcrepe() -> Files:
    """Foils name another fish; an image has several records."""
    rows = [
        {
            "filename": f"{color:012d}.jpg",
            "caption": text,
            "negative_caption": SENTENCES[color - 1][0],
        }
        for number in range(2)
        for color, text in enumerate(two[number] for two in SENTENCES)
    ]
    images = {f"val2017/{color:012d}.jpg": flat(color) for color in range(len(FISH))}
    return images | {
        "swap_obj.json": json.dumps(dict(enumerate(rows[:2]))).encode(),
        "add_att.json": json.dumps(dict(enumerate(rows[2:]))).encode(),
    }


def test_captions_with_foils_as_downloaded(tmp_path: Path) -> None:
    dataset = open_retrieval(write_folder(tmp_path / "sugarcrepe", sugarcrepe()))
    assert dataset.facts.kind == "sugarcrepe"
    assert (len(dataset.images), len(dataset.captions), len(dataset.foils)) == (3, 6, 6)
    tallies = retrieved(NamedColors(FISH), dataset, 4).tallies
    assert tallies["foil_accuracy"].value == tallies["image_to_text_r1"].value == 1.0
    assert tallies["foil_accuracy"].trials.tolist() == [[2.0], [2.0], [2.0]]
    alone = open_retrieval(tmp_path / "sugarcrepe" / "swap_obj.json")
    assert (alone.facts.notes["foils"], len(alone.foils)) == ("swap_obj", 2)
    alike = retrieved(NamedColors(["nothing"] * len(FISH)), dataset, 4).tallies
    assert alike["foil_accuracy"].value == 0.5


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"filename": "9.jpg", "caption": "a", "negative_caption": "b"}, "has no image 9.jpg"),
        ({"filename": "9.jpg", "negative_caption": "b"}, "filename, caption, negative_caption are"),
    ],
)
def test_foils_without_image_or_caption_are_refused(
    tmp_path: Path, row: dict[str, str], message: str
) -> None:
    files = sugarcrepe() | {"swap_att.json": json.dumps({"0": row}).encode()}
    with pytest.raises(ValueError, match=message):
        open_retrieval(write_folder(tmp_path / "sugarcrepe", files))


def cityscapes(**kinds: bytes) -> Files:
    name = "val/bonn/bonn_000000_000019"
    files = {f"gtFine/{name}_gtFine_{kind}.png": data for kind, data in kinds.items()}
    return files | {f"leftImg8bit/{name}_leftImg8bit.png": scene()}


def voc(folder: str, listing: str, data: bytes) -> Files:
    return {
        "VOC2012/JPEGImages/2007_000001.jpg": scene(),
        "VOC2012/JPEGImages/2007_000002.jpg": scene(2, 3),
        f"VOC2012/{folder}/2007_000001.png": data,
        f"VOC2012/ImageSets/{listing}/val.txt": b"2007_000001\n",
    }


def context_matlab() -> Files:
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"LabelMap": halves(2, 23).astype(np.uint16)})
    return {"JPEGImages/2008_000001.jpg": scene(), "trainval/2008_000001.mat": buffer.getvalue()}


def coco_objects() -> Files:
    content = {
        "images": [{"id": 5, "file_name": "000000000005.jpg", "width": SIZE[0], "height": SIZE[1]}],
        "annotations": [
            {
                "image_id": 5,
                "category_id": 17,
                "segmentation": [[0, 0, 32, 0, 32, 48, 0, 48]],
                "iscrowd": 0,
            }
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 17, "name": "cat"}],
    }
    return {
        "val2017/000000000005.jpg": scene(),
        "annotations/instances_val2017.json": json.dumps(content).encode(),
    }


def camvid_colors() -> Files:
    release = {"Sky": (128, 128, 128), "Road": (128, 64, 128), "Void": (0, 0, 0)}
    colored = halves(release["Sky"], release["Road"]).astype(np.uint8)
    colored[:4] = release["Void"]
    lines = "".join(
        f"{red} {green} {blue}\t{name}\n" for name, (red, green, blue) in release.items()
    )
    return {
        "701_StillsRaw_full/0001TP_1.png": scene(),
        "LabeledApproved_full/0001TP_1_L.png": png(Image.fromarray(colored)),
        "label_colors.txt": lines.encode(),
    }


def ade_full() -> Files:
    """Object 2978 is the wall, 2420 the sky: a tenth of red times 256, plus green."""
    colors = [(number // 256 * 10, number % 256, 7) for number in (2978, 2420)]
    return {
        "images/ADE/validation/a/ADE_val_00000001.jpg": scene(),
        "images/ADE/validation/a/ADE_val_00000001_seg.png": png(
            Image.fromarray(halves(*colors).astype(np.uint8))
        ),
    }


ADE = "ADE_val_00000001"
COCO_IMAGE = {"images/val2017/000000000005.jpg": scene()}
SEGMENTATION: dict[str, tuple[Files, Sequence[str]]] = {
    "ade20k": (
        {
            f"images/validation/{ADE}.jpg": scene(),
            f"annotations/validation/{ADE}.png": mask(1, 3, void=0),
        },
        ("wall", "sky"),
    ),
    "ade20k-full": (ade_full(), ("wall", "sky")),
    "ade20k-full-converted": (
        {
            f"images_detectron2/validation/{ADE}.jpg": scene(),
            f"annotations_detectron2/validation/{ADE}.tif": mask(
                0, 2, np.uint16, void=65535, kind="TIFF"
            ),
        },
        ("wall", "sky"),
    ),
    "cityscapes-train-ids": (
        cityscapes(
            labelTrainIds=mask(0, 2, void=255), labelIds=mask(7, 11), instanceIds=mask(7, 11)
        ),
        ("road", "building"),
    ),
    "cityscapes-label-ids": (cityscapes(labelIds=mask(7, 11, void=4)), ("road", "building")),
    "voc": (
        voc("SegmentationClass", "Segmentation", mask(0, 2, void=255)),
        ("background", "bicycle"),
    ),
    "voc@20": (
        voc("SegmentationClass", "Segmentation", mask(1, 2, void=0)),
        ("aeroplane", "bicycle"),
    ),
    "context": (
        voc("SegmentationClassContext", "SegmentationContext", mask(0, 2)),
        ("background", "bag"),
    ),
    "context@59": (
        voc("SegmentationClassContext", "SegmentationContext", mask(1, 2, void=0)),
        ("aeroplane", "bag"),
    ),
    "context-matlab": (context_matlab(), ("aeroplane", "bicycle")),
    "coco-stuff": (
        COCO_IMAGE | {"annotations/val2017/000000000005.png": mask(12, 181, void=255)},
        ("stop sign", "wood"),
    ),
    "coco-stuff@27": (
        COCO_IMAGE | {"stuffthingmaps/val2017/000000000005.png": mask(12, 181, void=255)},
        ("outdoor", "solid"),
    ),
    "coco-object": (coco_objects(), ("cat", "background")),
    "camvid-segnet": (
        {"test/0001TP_1.png": scene(), "testannot/0001TP_1.png": mask(0, 3, void=11)},
        ("sky", "road"),
    ),
    "camvid-colors": (camvid_colors(), ("sky", "road")),
    "camvid-colors@32": (camvid_colors(), ("sky", "road")),
}
EXACT = SegmentationConfig(
    short_side=SIZE[1], window=32, stride=16, background_prompts=("background",)
)


@pytest.mark.parametrize("name", SEGMENTATION)
def test_segmentation_as_downloaded(name: str, tmp_path: Path) -> None:
    files, names = SEGMENTATION[name]
    folder, _, variant = name.partition("@")
    dataset = open_segmentation(write_folder(tmp_path / folder, files), variant)
    assert dataset.facts.published
    assert len(dataset.images) == 1
    assert (
        Segmenter(NamedColors(names), dataset, ["a photo of a {}."], EXACT)
        .segment()
        .tallies["miou"]
        .value
        == 1.0
    )
