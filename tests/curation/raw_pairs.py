"""Three pairs in every annotated layout, tars, and what is read from any of them."""

import csv
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from curation.pairs.config import SourceConfig
from curation.pairs.sample import Reject, Sample
from curation.pairs.sources import list_parts, read_part

Draw = Callable[..., Image.Image]
Encode = Callable[..., bytes]
CAPTIONS = {"a.jpg": ["a cat", "one cat"], "b.jpg": ["a dog"], "sub/c.jpg": ["a cow"]}


def read_all(path: Path, **options: Any) -> list[Any]:
    config = SourceConfig(**{"unread_budget": 1.0} | options)
    return [row for part in list_parts(config, path) for row in read_part(config, part)]


def captions_of(rows: Sequence[Sample | Reject]) -> dict[str, list[str]]:
    assert not reasons_of(rows)
    return {row.key: list(row.captions) for row in rows if isinstance(row, Sample)}


def reasons_of(rows: Sequence[Sample | Reject]) -> dict[str, str]:
    return {row.key: row.reason for row in rows if isinstance(row, Reject)}


def as_tar(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.add(file, file.relative_to(folder))
    return path


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def sample_members(key: str, image: bytes, captions: Sequence[str]) -> list[tuple[str, bytes]]:
    return [(f"{key}.bmp", image), (f"{key}.json", json.dumps({"captions": captions}).encode())]


def write_json(folder: Path) -> None:
    (folder / "captions.json").write_text(json.dumps(CAPTIONS))


def write_jsonl(folder: Path) -> None:
    lines = [json.dumps({"file_name": name, "text": texts}) for name, texts in CAPTIONS.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def write_table(folder: Path, name: str, delimiter: str) -> None:
    with (folder / name).open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["image", "caption"])
        writer.writerows([image, text] for image, texts in CAPTIONS.items() for text in texts)


def write_siblings(folder: Path) -> None:
    for name, texts in CAPTIONS.items():
        (folder / name).with_suffix(".txt").write_text("\n".join(texts))


def karpathy(split: str = "train") -> list[dict]:
    images = []
    for name, texts in CAPTIONS.items():
        folder, _, base = name.rpartition("/")
        sentences = [{"raw": text} for text in texts]
        images.append(
            {"filepath": folder, "filename": base, "split": split, "sentences": sentences}
        )
    return images


def write_karpathy(folder: Path) -> None:
    other = {"filename": "other.jpg", "split": "val", "sentences": [{"raw": "not asked for"}]}
    (folder / "dataset.json").write_text(json.dumps({"images": [*karpathy(), other]}))


def write_coco(folder: Path) -> None:
    images = [{"id": number, "file_name": name} for number, name in enumerate(CAPTIONS)]
    numbered = [(number, text) for number, texts in enumerate(CAPTIONS.values()) for text in texts]
    annotations = [{"image_id": number, "caption": text} for number, text in numbered]
    content = {"images": images, "annotations": annotations}
    (folder / "annotations").mkdir()
    (folder / "annotations" / "captions_train2017.json").write_text(json.dumps(content))
    (folder / "annotations" / "instances_train2017.json").write_text(
        json.dumps({"images": images, "annotations": []})
    )


LAYOUTS = {
    "json": write_json,
    "jsonl": write_jsonl,
    "csv": lambda folder: write_table(folder, "captions.csv", ","),
    "csv in txt": lambda folder: write_table(folder, "captions.txt", ","),
    "tsv": lambda folder: write_table(folder, "captions.tsv", "\t"),
    "karpathy": write_karpathy,
    "coco": write_coco,
}
