"""Every layout of pairs, inside and outside a tar; every kind of bad row."""

import csv
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curation.locate import image_ranges
from curation.sources import Reject, Sample, SourceConfig, list_parts, read_part, source_digest

Draw = Callable[..., Image.Image]
Encode = Callable[..., bytes]
CAPTIONS = {"a.jpg": ["a cat", "one cat"], "b.jpg": ["a dog"], "sub/c.jpg": ["a cow"]}
ODD_CAPTIONS = ["x" * 10_000, "grin \N{GRINNING FACE}", "قطة على الطاولة", "two\nlines\0 and NUL"]


@pytest.fixture
def images(tmp_path: Path, picture: Draw, encoded: Encode) -> Path:
    """A folder with the three images of CAPTIONS."""
    for seed, name in enumerate(CAPTIONS):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(seed)))
    return tmp_path / "data"


def read_all(path: Path, **options: Any) -> list[Any]:
    config = SourceConfig(**options)
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
        images.append({"filepath": folder, "filename": base, "split": split, "sentences": sentences})
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
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps({"images": images, "annotations": []}))


LAYOUTS = {
    "json": write_json,
    "jsonl": write_jsonl,
    "csv": lambda folder: write_table(folder, "captions.csv", ","),
    "csv in txt": lambda folder: write_table(folder, "captions.txt", ","),
    "tsv": lambda folder: write_table(folder, "captions.tsv", "\t"),
    "karpathy": write_karpathy,
    "coco": write_coco,
}


@pytest.mark.parametrize("in_tar", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_annotated_layouts_give_the_same_pairs(images: Path, tmp_path: Path, layout: str, in_tar: bool) -> None:
    LAYOUTS[layout](images)
    source = as_tar(images, tmp_path / "data.tar") if in_tar else images
    rows = read_all(source)
    assert captions_of(rows) == CAPTIONS
    assert {row.key: row.image for row in rows} == {name: (images / name).read_bytes() for name in CAPTIONS}


@pytest.mark.parametrize("layout", ["json", "tar of json", "webdataset", "parquet"])
def test_pairs_in_an_object_store_are_those_on_disk(
    images: Path, tmp_path: Path, object_store: Callable[[Path, str], Path], layout: str
) -> None:
    local = tmp_path / "pairs"
    local.mkdir()
    if layout == "webdataset":
        for number, (name, texts) in enumerate(CAPTIONS.items()):
            write_tar(local / f"{number}.tar", sample_members("key", (images / name).read_bytes(), list(texts)))
    elif layout == "parquet":
        encoded = [(images / name).read_bytes() for name in CAPTIONS]
        pq.write_table(pa.table({"image": encoded, "caption": list(CAPTIONS.values())}), local / "0.parquet")
    else:
        write_json(images)
        local = as_tar(images, local / "pairs.tar") if layout == "tar of json" else images
    remote = object_store(local, f"{layout}/{local.name}")
    assert read_all(remote) == read_all(local)
    assert list(captions_of(read_all(remote)).values()) == list(CAPTIONS.values())
    assert source_digest(remote) == source_digest(local)


def test_cut_tar_in_an_object_store_is_refused(tmp_path: Path, object_store: Callable[[Path, str], Path]) -> None:
    (tmp_path / "pairs").mkdir()
    path = write_tar(tmp_path / "pairs" / "x.tar", [("a.txt", b"x" * 20_000)])
    path.write_bytes(path.read_bytes()[:10_240])
    with pytest.raises(ValueError, match=r"x\.tar cannot be read as a tar"):
        list_parts(SourceConfig(), object_store(tmp_path / "pairs", "cut/pairs"))


def test_text_files_beside_images_are_their_captions(images: Path) -> None:
    write_siblings(images)
    assert captions_of(read_all(images)) == CAPTIONS


def test_annotation_file_can_be_given_itself(images: Path) -> None:
    write_karpathy(images)
    write_jsonl(images)
    assert captions_of(read_all(images / "dataset.json", format="karpathy")) == CAPTIONS
    assert captions_of(read_all(images / "metadata.jsonl")) == CAPTIONS


@pytest.mark.parametrize("layout", LAYOUTS)
def test_annotation_file_that_is_given_is_read_whatever_lies_beside_it(images: Path, layout: str) -> None:
    LAYOUTS[layout](images)
    (given,) = (path for path in images.rglob("*.*") if path.suffix != ".jpg" and "instances" not in path.name)
    write_tar(images / "other.tar", sample_members("other", b"no image", ["not asked for"]))
    pq.write_table(pa.table({"image": [b"no image"], "text": ["not asked for"]}), images / "other.parquet")
    assert captions_of(read_all(given.rename(images / given.name))) == CAPTIONS


def test_split_is_taken_and_an_empty_one_names_the_others(images: Path) -> None:
    (images / "dataset.json").write_text(json.dumps({"images": karpathy("val")}))
    assert captions_of(read_all(images, split="val")) == CAPTIONS
    with pytest.raises(ValueError, match=r"\['val'\]"):
        read_all(images)


def test_karpathys_folders_need_not_be_there(images: Path) -> None:
    """Many keep all images in one folder; file names are unique there."""
    (images / "sub" / "c.jpg").rename(images / "c.jpg")
    write_karpathy(images)
    found = {row.image: list(row.captions) for row in read_all(images)}
    assert found[(images / "c.jpg").read_bytes()] == CAPTIONS["sub/c.jpg"]


def test_restval_belongs_to_train(images: Path) -> None:
    (images / "dataset.json").write_text(json.dumps({"images": karpathy("restval")}))
    assert captions_of(read_all(images)) == CAPTIONS


@pytest.mark.parametrize("split", [None, ""])
def test_rows_without_a_split_belong_to_all(images: Path, split: str | None) -> None:
    records = [{"image": name, "captions": texts, "split": split} for name, texts in CAPTIONS.items()]
    (images / "captions.json").write_text(json.dumps([*records, {"image": "x.jpg", "caption": "x", "split": "val"}]))
    assert captions_of(read_all(images)) == CAPTIONS
    table = pa.table({"image": list(CAPTIONS), "text": list(CAPTIONS.values()), "split": ["train", split, "val"]})
    pq.write_table(table, images / "pairs.parquet")
    assert list(captions_of(read_all(images / "pairs.parquet")).values()) == list(CAPTIONS.values())[:2]


def test_coco_file_named_after_another_split_is_not_taken(images: Path) -> None:
    write_coco(images)
    assert captions_of(read_all(images)) == CAPTIONS
    with pytest.raises(ValueError, match=r"split 'val' is empty: annotations/captions_train2017\.json"):
        read_all(images, split="val")
    given = (images / "annotations" / "captions_train2017.json").rename(images / "captions_train.json")
    assert captions_of(read_all(given, split="val")) == CAPTIONS
    given.rename(images / "latest.json")
    assert captions_of(read_all(images)) == captions_of(read_all(images, split="")) == CAPTIONS


def test_captions_files_of_folders_named_after_splits_are_those_of_the_split(
    images: Path, tmp_path: Path, picture: Draw, encoded: Encode
) -> None:
    for seed, split in enumerate(("test", "train", "validation"), start=3):
        (images / split).mkdir()
        (images / split / f"{split}.jpg").write_bytes(encoded(picture(seed)))
        (images / split / "metadata.jsonl").write_text(json.dumps({"file_name": f"{split}.jpg", "text": split}))
    for source in (images, as_tar(images, tmp_path / "x.tar")):
        assert captions_of(read_all(source)) == {"train.jpg": ["train"]}
        assert captions_of(read_all(source, split="val")) == {"validation.jpg": ["validation"]}
        splits = ("test", "train", "validation")
        assert captions_of(read_all(source, split="")) == {f"{split}/{split}.jpg": [split] for split in splits}
    with pytest.raises(ValueError, match=r"'dev' is empty: all 3 files are named after another, test/metadata\.jsonl"):
        read_all(images, split="dev")
    assert captions_of(read_all(images / "test" / "metadata.jsonl")) == {"test.jpg": ["test"]}


def test_of_cocos_other_files_only_the_beginning_is_read(images: Path) -> None:
    write_coco(images)
    too_deep_to_parse = images / "annotations" / "person_keypoints_train2017.json"
    too_deep_to_parse.write_text("[" * 200_000)
    assert captions_of(read_all(images)) == CAPTIONS
    with pytest.raises(RecursionError):
        json.loads(too_deep_to_parse.read_text())
    write_karpathy(images)
    assert list_parts(SourceConfig(), images)[0].name == "dataset.json:0-3"
    assert list_parts(SourceConfig(format="coco"), images)[0].name == "annotations/captions_train2017.json:0-3"


@pytest.mark.parametrize("suffix", [".tar", ".parquet"])
def test_tars_and_parquet_files_named_after_splits_are_those_of_the_split(images: Path, suffix: str) -> None:
    image, folder = (images / "a.jpg").read_bytes(), images / "files"
    folder.mkdir()
    for split in ("train", "test", "validation"):
        path = folder / f"{split}-00000-of-00001{suffix}"
        if suffix == ".tar":
            write_tar(path, sample_members("a", image, [split]))
        else:
            pq.write_table(pa.table({"image": [image], "text": [split]}), path)
    for split, expected in (("train", ["train"]), ("val", ["validation"]), ("", ["test", "train", "validation"])):
        assert [row.captions[0] for row in read_all(folder, split=split)] == expected
    (folder / f"train-00000-of-00001{suffix}").rename(folder / f"more{suffix}")
    assert [row.captions[0] for row in read_all(folder)] == ["train"]
    (folder / f"more{suffix}").unlink()
    with pytest.raises(ValueError, match=r"split 'train' is empty: all 2 files are named after another, test-00000"):
        read_all(folder)
    assert [row.captions[0] for row in read_all(folder / f"test-00000-of-00001{suffix}")] == ["test"]


def test_captions_files_of_several_folders_are_all_read_and_their_keys_told_apart(
    tmp_path: Path, picture: Draw, encoded: Encode
) -> None:
    for number, texts in enumerate(({"a.jpg": "a cat"}, {"a.jpg": "a dog", "gone.jpg": "gone"}, {})):
        folder = tmp_path / f"{number:03d}"
        folder.mkdir()
        (folder / "a.jpg").write_bytes(encoded(picture(number)))
        (folder / "captions.json").write_text(json.dumps(texts))
    rows = read_all(tmp_path)
    assert captions_of(rows[:2]) == {"000/a.jpg": ["a cat"], "001/a.jpg": ["a dog"]}
    assert [row.image for row in rows[:2]] == [(tmp_path / row.key).read_bytes() for row in rows[:2]]
    assert reasons_of(rows[2:]) == {"001/gone.jpg": "missing file"}
    (tmp_path / "metadata.csv").write_text("image,caption\n000/a.jpg,nearest the root\n")
    assert captions_of(read_all(tmp_path)) == {"000/a.jpg": ["nearest the root"]}


def sample_members(key: str, image: bytes, captions: Sequence[str]) -> list[tuple[str, bytes]]:
    return [(f"{key}.bmp", image), (f"{key}.json", json.dumps({"captions": captions}).encode())]


def test_webdataset_keys_carry_the_tar_where_there_are_several(tmp_path: Path, picture: Draw, encoded: Encode) -> None:
    image = encoded(picture(0), "PNG")
    for number in range(2):
        write_tar(tmp_path / f"train-{number}.tar", sample_members("same", image, [f"text {number}"]))
    assert captions_of(read_all(tmp_path)) == {"train-0/same": ["text 0"], "train-1/same": ["text 1"]}
    assert captions_of(read_all(tmp_path / "train-1.tar")) == {"same": ["text 1"]}


def test_img2dataset_layout_is_read(tmp_path: Path, picture: Draw, encoded: Encode) -> None:
    members = []
    for number in range(3):
        key = f"00000000{number}"
        record = {"caption": f"text {number}", "url": "u", "key": key, "status": "success", "width": 48}
        members += [(f"{key}.jpg", encoded(picture(number))), (f"{key}.json", json.dumps(record).encode())]
        members.append((f"{key}.txt", f"text {number}".encode()))
    write_tar(tmp_path / "00000.tar", members)
    (tmp_path / "00000_stats.json").write_text('{"count": 3}')
    pq.write_table(pa.table({"url": ["u"]}), tmp_path / "00000.parquet")
    expected = {f"00000/00000000{number}": [f"text {number}"] for number in range(3)}
    assert captions_of(read_all(tmp_path)) == expected


def test_long_tar_splits_into_parts_that_cover_it_once(tmp_path: Path, picture: Draw, encoded: Encode) -> None:
    members = []
    for number in range(30):
        members += sample_members(f"{number:03d}", encoded(picture(number, (300, 200)), "BMP"), [f"text {number}"])
    path = write_tar(tmp_path / "long.tar", members)
    config = SourceConfig(part_mb=1)
    parts = list_parts(config, path)
    assert len(parts) > 1
    keys = [row.key for part in parts for row in read_part(config, part)]
    assert keys == [f"{number:03d}" for number in range(30)]


def test_webdataset_bad_samples_are_rejects(tmp_path: Path, picture: Draw, encoded: Encode) -> None:
    image = encoded(picture(0), "PNG")
    members = [
        *sample_members("good", image, ["text"]),
        ("no-image.json", b'{"captions": ["text"]}'),
        *sample_members("blank", image, ["", " \0 "]),
        ("alone.png", image),
        ("torn.png", image),
        ("torn.json", b'{"captions": ["te'),
        *sample_members("good", image, ["again"]),
    ]
    rows = read_all(write_tar(tmp_path / "x.tar", members), format="webdataset")
    assert reasons_of(rows) == {
        "no-image": "missing file",
        "blank": "empty caption",
        "alone": "empty caption",
        "torn": "unreadable record",
        "good": "duplicate key",
    }
    assert len(rows) == 6


def test_samples_under_one_key_are_rejects_each_and_not_mixed(tmp_path: Path, picture: Draw, encoded: Encode) -> None:
    image = encoded(picture(0), "PNG")
    members = [(f"photo.{n}.{suffix}", data) for n in range(3) for suffix, data in (("png", image), ("txt", b"text"))]
    members += [("seg.png", image), ("seg.txt", b"text"), ("seg.mask.PNG", image), ("two.png", image)]
    members += [("two.1.json", b"{}"), ("two.json", b"{}"), ("other.en.txt", b"text"), ("other.v1.png", image)]
    rows = read_all(write_tar(tmp_path / "x.tar", members))
    assert [row.key for row in rows] == ["photo"] * 3 + ["seg"] * 2 + ["two"] * 2 + ["other"]
    assert set(reasons_of(rows[:-1]).values()) == {"unreadable record"}
    assert rows[0].detail.startswith("3 images, .txt or .json have this key")
    assert rows[-1].captions == ("text",)


def test_extensions_in_capitals_repeat_a_key_too(tmp_path: Path, picture: Draw, encoded: Encode) -> None:
    image = encoded(picture(0), "PNG")
    rows = read_all(write_tar(tmp_path / "x.tar", [("a.PNG", image), ("a.TXT", b"one")] * 2))
    assert rows[0].captions == ("one",)
    assert reasons_of(rows[1:]) == {"a": "duplicate key"}


def test_tar_of_a_folder_with_a_dot_is_read_by_its_list(images: Path, tmp_path: Path) -> None:
    write_json(images)
    moved = images.rename(tmp_path / "flickr.v1")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(moved, "flickr.v1")
    assert captions_of(read_all(tmp_path / "x.tar")) == CAPTIONS


@pytest.mark.parametrize("size", [0, 100, 10_240, 20_000])
def test_cut_tar_is_refused_alone_and_in_a_folder(tmp_path: Path, picture: Draw, encoded: Encode, size: int) -> None:
    members = [item for n in range(5) for item in sample_members(f"{n}", encoded(picture(n), "PNG"), ["text"])]
    whole = write_tar(tmp_path / "whole.tar", members)
    (tmp_path / "x.tar").write_bytes(whole.read_bytes()[:size])
    for source in (tmp_path, tmp_path / "x.tar"):
        with pytest.raises(ValueError, match=r"x\.tar cannot be read as a tar"):
            list_parts(SourceConfig(), source)


def test_tars_joined_by_cat_are_refused_when_they_are_read(tmp_path: Path, picture: Draw, encoded: Encode) -> None:
    image, joined = encoded(picture(0), "PNG"), tmp_path / "folder" / "joined.tar"
    whole = [write_tar(tmp_path / f"{n}.tar", sample_members(f"{n}", image, ["text"])) for n in range(2)]
    joined.parent.mkdir()
    joined.write_bytes(whole[0].read_bytes() + whole[1].read_bytes())
    for source in (joined, joined.parent):
        with pytest.raises(ValueError, match=r"joined\.tar .*more follows its end mark at byte \d+.*--ignore-zeros"):
            read_all(source)
    joined.write_bytes(whole[0].read_bytes() + b"\0" * 3_000_000)
    assert captions_of(read_all(joined)) == {"0": ["text"]}


def test_tar_with_a_damaged_header_is_refused_when_it_is_read(tmp_path: Path, picture: Draw, encoded: Encode) -> None:
    members = [item for n in range(5) for item in sample_members(f"{n}", encoded(picture(n), "PNG"), ["text"])]
    path = write_tar(tmp_path / "x.tar", members)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"3.bmp", b"\xff.bmp"))
    parts = list_parts(SourceConfig(), tmp_path)
    with pytest.raises(ValueError, match=r"x\.tar cannot be read as a tar"):
        list(read_part(SourceConfig(), parts[0]))


@pytest.mark.parametrize("kind", ["bytes", "struct", "path"])
def test_parquet_images_as_bytes_structs_and_paths(images: Path, kind: str) -> None:
    columns = {
        "bytes": [(images / name).read_bytes() for name in CAPTIONS],
        "struct": [{"bytes": (images / name).read_bytes(), "path": name} for name in CAPTIONS],
        "path": list(CAPTIONS),
    }
    table = pa.table({"image": columns[kind], "text": list(CAPTIONS.values())})
    pq.write_table(table, images / "pairs.parquet", row_group_size=2)
    rows = read_all(images / "pairs.parquet", part_rows=2)
    expected = {f"pairs/0000000{number}": texts for number, texts in enumerate(CAPTIONS.values())}
    assert captions_of(rows) == expected
    assert [row.image for row in rows] == columns["bytes"]
    assert len(list_parts(SourceConfig(part_rows=2), images / "pairs.parquet")) == 2


def test_parquet_columns_keys_split_and_bad_rows(images: Path, picture: Draw, encoded: Encode) -> None:
    image = encoded(picture(0))
    table = pa.table(
        {
            "picture": [image, image, None, image, image],
            "alt": ["one", "two", "three", None, "other split"],
            "id": ["a", "a", "b", "c", "d"],
            "split": ["train"] * 4 + ["test"],
        }
    )
    pq.write_table(table, images / "pairs.parquet", row_group_size=1)
    options = {"image_column": "picture", "caption_column": "alt", "key_column": "id"}
    rows = read_all(images / "pairs.parquet", **options)
    assert rows[0].captions == ("one",)
    assert [row.reason for row in rows[1:]] == ["duplicate key", "missing file", "empty caption"]


@pytest.mark.parametrize(
    ("row_group_size", "part_rows", "expected"),
    [
        (1000, 300, [300, 300, 300, 100]),
        (300, 350, [300, 300, 300, 100]),
        (100, 450, [400, 400, 200]),
        (700, 350, [350, 350, 300]),
    ],
)
def test_parquet_parts_are_no_longer_than_asked_and_cover_the_file_once(
    images: Path, row_group_size: int, part_rows: int, expected: list[int]
) -> None:
    path, texts = images / "pairs.parquet", [f"text {number}" for number in range(1000)]
    split = ["test" if number % 7 == 3 else "train" for number in range(1000)]
    table = pa.table({"image": [b"%d" % number for number in range(1000)], "text": texts, "split": split})
    pq.write_table(table, path, row_group_size=row_group_size)
    config = SourceConfig(part_rows=part_rows)
    parts = list_parts(config, path)
    assert [part.num_rows for part in parts] == expected
    rows = [row for part in parts for row in read_part(config, part)]
    assert rows == [
        Sample(f"pairs/{number:08d}", b"%d" % number, (texts[number],), row.source)
        for row, number in zip(rows, (number for number in range(1000) if number % 7 != 3), strict=True)
    ]


@pytest.mark.parametrize("row_group_size", [2, 9])
def test_parquet_keys_repeated_in_another_part_are_seen(images: Path, row_group_size: int) -> None:
    keys, split = [1, 2, 1, 3, 4, 2, 5, 6, 6], ["train"] * 7 + ["test", "train"]
    table = pa.table({"image": [b"x"] * 9, "text": ["text"] * 9, "id": keys, "split": split})
    pq.write_table(table, images / "pairs.parquet", row_group_size=row_group_size)
    rows = read_all(images / "pairs.parquet", key_column="id", part_rows=2)
    assert [row.key for row in rows if isinstance(row, Sample)] == [f"pairs/{key}" for key in (1, 2, 3, 4, 5, 6)]
    assert reasons_of(rows) == {"pairs/1": "duplicate key", "pairs/2": "duplicate key"}
    assert len(list_parts(SourceConfig(key_column="id", part_rows=2), images / "pairs.parquet")) == 5


def test_parquet_without_the_column_names_those_it_has(tmp_path: Path) -> None:
    pq.write_table(pa.table({"pixels": [b""], "alt": [""]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"no image column .*its columns: pixels, alt.*source\.image_column"):
        list_parts(SourceConfig(), tmp_path / "x.parquet")


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(ValueError, match=r"x\.parquet is not a readable Parquet file"):
        list_parts(SourceConfig(), tmp_path)


def test_odd_captions_are_kept_in_one_clean_line(images: Path) -> None:
    (images / "captions.json").write_text(json.dumps({"a.jpg": ODD_CAPTIONS, "b.jpg": ["\ud83d half", "z" * 10_001]}))
    found = captions_of(read_all(images))
    assert found["a.jpg"] == [*ODD_CAPTIONS[:3], "two lines and NUL"]
    assert found["b.jpg"] == ["? half", "z" * 10_000]


def test_missing_files_blank_captions_and_bad_lines_are_rejects(images: Path) -> None:
    lines = [
        '{"image": "a.jpg", "caption": "fine"}',
        '{"image": "gone.jpg", "caption": "no such file"}',
        '{"image": "b.jpg", "caption": " \\u0000 "}',
        '{"image": "sub/c.jpg", "cap',
    ]
    (images / "captions.jsonl").write_text("\n".join(lines))
    rows = read_all(images)
    assert reasons_of(rows) == {
        "gone.jpg": "missing file",
        "b.jpg": "empty caption",
        "captions.jsonl:4": "unreadable record",
    }


def test_stray_quote_in_a_comma_separated_file_names_its_line(images: Path) -> None:
    lines = ["image,caption", 'a.jpg,"she said', 'b.jpg,"a ""big"" dog"', "sub/c.jpg,a cow"]
    (images / "captions.csv").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"captions\.csv cannot be parsed .*line 3"):
        read_all(images)
    (images / "captions.csv").write_text("\n".join([*lines[:1], 'a.jpg,the "A" sign', *lines[2:]]))
    assert captions_of(read_all(images)) == {
        "a.jpg": ['the "A" sign'],
        "b.jpg": ['a "big" dog'],
        "sub/c.jpg": ["a cow"],
    }


def test_commas_of_a_caption_without_quotes_are_the_captions_or_make_the_record_unreadable(images: Path) -> None:
    (images / "captions.csv").write_text("image,caption\na.jpg,a cat, a dog,and a cow\nb.jpg,a dog\n")
    assert captions_of(read_all(images)) == {"a.jpg": ["a cat, a dog,and a cow"], "b.jpg": ["a dog"]}
    (images / "captions.csv").write_text("caption,image\na cat, a dog,a.jpg\na dog,b.jpg\n")
    rows = read_all(images)
    assert captions_of(rows[:1]) == {"b.jpg": ["a dog"]}
    assert reasons_of(rows[1:]) == {"captions.csv:1": "unreadable record"}


@pytest.mark.parametrize("stray", ['"stop" says the sign', '"she said', 'the "A" sign'])
def test_quotes_in_tab_separated_captions_are_kept(images: Path, stray: str) -> None:
    (images / "captions.tsv").write_text(f"image\tcaption\na.jpg\t{stray}\nb.jpg\ta dog\nsub/c.jpg\ta cow\n")
    assert captions_of(read_all(images)) == {"a.jpg": [stray], "b.jpg": ["a dog"], "sub/c.jpg": ["a cow"]}


def test_well_quoted_tab_separated_captions_lose_their_quotes(images: Path) -> None:
    (images / "captions.tsv").write_text('image\tcaption\na.jpg\t"a ""big""\n dog"\n')
    assert captions_of(read_all(images)) == {"a.jpg": ['a "big" dog']}


ODD_RECORDS = [["a.jpg", "a cat"], 5, None, {"caption": "no image"}, {"image": "", "caption": "no name"}]


@pytest.mark.parametrize("name", ["captions.json", "captions.jsonl"])
def test_each_record_without_an_image_name_is_a_reject(images: Path, name: str) -> None:
    records = [*ODD_RECORDS, {"image": "a.jpg", "caption": "fine"}]
    lines = "\n".join(map(json.dumps, records))
    (images / name).write_text(lines if name.endswith("l") else json.dumps(records))
    rows = read_all(images)
    assert reasons_of(rows[1:]) == {f"{name}:{number}": "unreadable record" for number in range(1, 6)}
    assert rows[0].captions == ("fine",)


def test_odd_records_of_karpathy_and_coco_are_rejects(images: Path) -> None:
    odd = [5, {"split": "train"}, {"filename": 5}, {"filename": "b.jpg", "filepath": None, "sentences": ["bare", None]}]
    (images / "dataset.json").write_text(json.dumps({"images": [*karpathy()[:1], *odd]}))
    rows = read_all(images / "dataset.json")
    assert rows[0].captions == ("a cat", "one cat")
    odd_numbers = {f"dataset.json:{number}": "unreadable record" for number in (2, 3, 4)}
    assert reasons_of(rows[1:]) == {"b.jpg": "empty caption"} | odd_numbers
    table = [{"id": 0, "file_name": "a.jpg"}, {"id": [1], "file_name": "b.jpg"}, {"id": 2}, 5]
    captions = [{"image_id": 0, "caption": "a cat"}, {"caption": "whose?"}, {"image_id": [0], "caption": "x"}, 5]
    (images / "coco.json").write_text(json.dumps({"images": table, "annotations": captions}))
    rows = read_all(images / "coco.json")
    assert rows[0].captions == ("a cat",)
    expected = [f"coco.json:{table}:{number}" for table in ("annotations", "images") for number in (2, 3, 4)]
    assert reasons_of(rows[1:]) == dict.fromkeys(expected, "unreadable record")


@pytest.mark.parametrize("content", [5, "text", None, [["a.jpg", "a cat"]]])
def test_captions_file_without_records_is_a_clear_error(images: Path, content: object) -> None:
    (images / "captions.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"captions\.json names no image"):
        read_all(images)


def test_byte_order_marks_are_no_part_of_a_caption(images: Path, tmp_path: Path) -> None:
    (images / "a.txt").write_text("a cat\none cat", "utf-8-sig")
    assert captions_of(read_all(images)[:1]) == {"a.jpg": ["a cat", "one cat"]}
    members = [("x.jpg", (images / "a.jpg").read_bytes()), ("x.txt", (images / "a.txt").read_bytes())]
    assert captions_of(read_all(write_tar(tmp_path / "x.tar", members))) == {"x": ["a cat one cat"]}


def test_file_names_that_are_not_utf_8_give_keys_that_are(images: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    (images / "a.jpg").rename(images / name)
    (images / "captions.json").write_text(json.dumps({name: "a cat"}))
    assert captions_of(read_all(images)) == {"caf\\udce9.jpg": ["a cat"]}
    folder = tmp_path / os.fsdecode(b"d\xe9")
    folder.mkdir()
    path = folder / os.fsdecode(b"\xe9.tar")
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT, encoding="latin-1") as archive:
        archive.add(images / name, "\xe9.jpg")
        archive.add(images / "captions.json", "\xe9.txt")
    for source, key in ((path, "\\udce9"), (folder, "\\udce9/\\udce9")):
        (sample,) = read_all(source)
        assert (sample.key, sample.source) == (key, "\\udce9.tar")
        ((found, _),) = image_ranges(list_parts(SourceConfig(), source)[0])
        assert found == key
        assert len(source_digest(source)) == 64


def test_a_missing_image_is_not_replaced_by_another_of_its_name(images: Path) -> None:
    for folder in ("dog", "x/cow", "y/cow"):
        (images / folder).mkdir(parents=True)
        (images / folder / "1.jpg").write_bytes((images / "a.jpg").read_bytes())
    (images / "lists").mkdir()
    names = ["cat/1.jpg", "cow/1.jpg", "1.jpg", "../dog/1.jpg", "/home/me/data/sub/c.jpg", "c.jpg", "data/a.jpg"]
    (images / "lists" / "captions.json").write_text(json.dumps(dict.fromkeys(names, "text")))
    rows = read_all(images)
    assert reasons_of(rows) == dict.fromkeys(["cat/1.jpg", "cow/1.jpg", "1.jpg"], "missing file")
    assert [row.key for row in rows if isinstance(row, Sample)] == names[3:]


def test_file_that_goes_away_after_listing_is_a_reject(images: Path) -> None:
    write_json(images)
    parts = list_parts(SourceConfig(), images)
    (images / "b.jpg").unlink()
    assert reasons_of(list(read_part(SourceConfig(), parts[0]))) == {"b.jpg": "missing file"}


def test_duplicate_keys_are_rejects_across_parts(images: Path) -> None:
    (images / "dataset.json").write_text(json.dumps({"images": karpathy() * 2}))
    rows = read_all(images, part_rows=2)
    assert len(rows) == 6
    assert reasons_of(rows[:3]) == {}
    assert set(reasons_of(rows[3:]).values()) == {"duplicate key"}


def test_parts_split_rows_evenly_and_have_stable_digests(images: Path, tmp_path: Path) -> None:
    write_json(images)
    parts = list_parts(SourceConfig(part_rows=2), images)
    assert [part.num_rows for part in parts] == [2, 1]
    moved = images.rename(tmp_path / "moved")
    assert [part.digest() for part in list_parts(SourceConfig(part_rows=2), moved)] == [part.digest() for part in parts]


@pytest.mark.parametrize("name", ["nowhere", "data.tar.gz"])
def test_source_that_cannot_be_read_says_why(tmp_path: Path, name: str) -> None:
    if name != "nowhere":
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=r"does not exist|unpack it"):
        list_parts(SourceConfig(), tmp_path / name)


def test_unknown_layout_says_what_was_looked_for(images: Path) -> None:
    with pytest.raises(ValueError, match=r"Karpathy.*captions\.jsonl.*\.txt beside each image"):
        list_parts(SourceConfig(), images)


def test_source_digest_ignores_the_place_and_sees_changes(images: Path, tmp_path: Path) -> None:
    write_json(images)
    before = source_digest(images)
    moved = images.rename(tmp_path / "elsewhere")
    assert source_digest(moved) == before
    text = (moved / "captions.json").read_text()
    (moved / "captions.json").write_text(text.replace("cow", "cat"))
    assert source_digest(moved) != before
    assert source_digest(moved / "a.jpg") != source_digest(moved / "b.jpg")


@pytest.mark.parametrize(
    ("names", "is_divided"),
    [
        (["train-0.tar", "train-1.tar"], False),
        (["a/captions.json", "a/b/captions.json", "a/test.jpg"], False),
        (["train-0.tar", "test-0.tar"], True),
        (["train/0.parquet", "test/0.parquet"], True),
        (["a/train/metadata.csv", "test/metadata.csv"], True),
        (["a/captions.json", "b/captions.json"], True),
    ],
)
def test_only_sources_cut_by_split_or_folder_are_more_than_a_listing(
    tmp_path: Path, names: list[str], is_divided: bool
) -> None:
    """Of these alone other files are read than once were: what was made of them must not be taken for what is there."""
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    listing = "".join(f"{name}\x000\n" for name in sorted(names)).encode()
    assert (source_digest(tmp_path) != hashlib.sha256(listing).hexdigest()) == is_divided


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("is_large", [False, True])
def test_digest_of_an_annotation_file_sees_its_images_and_nothing_else_beside_it(
    images: Path, tmp_path: Path, layout: str, is_large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    LAYOUTS[layout](images)
    (listed,) = (path for path in images.rglob("*.*") if path.suffix != ".jpg" and "instances" not in path.name)
    given = listed.rename(images / listed.name)
    image = (images / "b.jpg").read_bytes()
    (images / "b.jpg").unlink()
    if is_large:
        monkeypatch.setattr("curation.sources.HASHED_WHOLE_BYTES", 10)
    before = source_digest(given)
    (images / "README.md").write_text("not read")
    assert source_digest(given) == before
    (images / "b.jpg").write_bytes(image)
    after = source_digest(given)
    assert after != before
    assert source_digest(images.rename(tmp_path / "elsewhere") / given.name) == after


def test_digest_of_a_file_that_lists_no_image_is_that_of_its_bytes(images: Path, tmp_path: Path) -> None:
    for folder in (images, tmp_path):
        (folder / "metadata.json").write_text(json.dumps(["a cat", "a dog"]))
    assert source_digest(images / "metadata.json") == source_digest(tmp_path / "metadata.json")
