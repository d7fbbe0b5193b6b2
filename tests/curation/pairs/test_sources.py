"""Any layout, inside and outside a tar, gives the same pairs, parts and identity."""

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_pairs import (
    CAPTIONS,
    LAYOUTS,
    as_tar,
    captions_of,
    karpathy,
    read_all,
    reasons_of,
    sample_members,
    write_json,
    write_tar,
)

from curation.pairs.config import SourceConfig
from curation.pairs.identity import source_digest
from curation.pairs.sources import image_ranges, list_parts, read_part


@pytest.mark.parametrize("in_tar", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_annotated_layouts_give_the_same_pairs(
    images: Path, tmp_path: Path, layout: str, in_tar: bool
) -> None:
    LAYOUTS[layout](images)
    source = as_tar(images, tmp_path / "data.tar") if in_tar else images
    rows = read_all(source)
    assert captions_of(rows) == CAPTIONS
    assert {row.key: row.image for row in rows} == {
        name: (images / name).read_bytes() for name in CAPTIONS
    }


@pytest.mark.parametrize("layout", ["json", "tar of json", "webdataset", "parquet"])
def test_pairs_in_an_object_store_are_those_on_disk(
    images: Path, tmp_path: Path, object_store: Callable[[Path, str], Path], layout: str
) -> None:
    local = tmp_path / "pairs"
    local.mkdir()
    if layout == "webdataset":
        for number, (name, texts) in enumerate(CAPTIONS.items()):
            write_tar(
                local / f"{number}.tar",
                sample_members("key", (images / name).read_bytes(), list(texts)),
            )
    elif layout == "parquet":
        encoded = [(images / name).read_bytes() for name in CAPTIONS]
        pq.write_table(
            pa.table({"image": encoded, "caption": list(CAPTIONS.values())}), local / "0.parquet"
        )
    else:
        write_json(images)
        local = as_tar(images, local / "pairs.tar") if layout == "tar of json" else images
    remote = object_store(local, f"{layout}/{local.name}")
    assert read_all(remote) == read_all(local)
    assert list(captions_of(read_all(remote)).values()) == list(CAPTIONS.values())
    assert source_digest(remote) == source_digest(local)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_annotation_file_that_is_given_is_read_whatever_lies_beside_it(
    images: Path, layout: str
) -> None:
    LAYOUTS[layout](images)
    (given,) = (
        path
        for path in images.rglob("*.*")
        if path.suffix != ".jpg" and "instances" not in path.name
    )
    write_tar(images / "other.tar", sample_members("other", b"no image", ["not asked for"]))
    pq.write_table(
        pa.table({"image": [b"no image"], "text": ["not asked for"]}), images / "other.parquet"
    )
    assert captions_of(read_all(given.rename(images / given.name))) == CAPTIONS


@pytest.mark.parametrize("split", [None, ""])
def test_rows_without_a_split_belong_to_all(images: Path, split: str | None) -> None:
    records = [
        {"image": name, "captions": texts, "split": split} for name, texts in CAPTIONS.items()
    ]
    (images / "captions.json").write_text(
        json.dumps([*records, {"image": "x.jpg", "caption": "x", "split": "val"}])
    )
    assert captions_of(read_all(images)) == CAPTIONS
    table = pa.table(
        {"image": list(CAPTIONS), "text": list(CAPTIONS.values()), "split": ["train", split, "val"]}
    )
    pq.write_table(table, images / "pairs.parquet")
    assert (
        list(captions_of(read_all(images / "pairs.parquet")).values())
        == list(CAPTIONS.values())[:2]
    )


@pytest.mark.parametrize("suffix", [".tar", ".parquet"])
def test_tars_and_parquet_files_named_after_splits_are_those_of_the_split(
    images: Path, suffix: str
) -> None:
    image = (images / "a.jpg").read_bytes()
    folder = images / "files"
    folder.mkdir()
    for split in ("train", "test", "validation"):
        path = folder / f"{split}-00000-of-00001{suffix}"
        if suffix == ".tar":
            write_tar(path, sample_members("a", image, [split]))
        else:
            pq.write_table(pa.table({"image": [image], "text": [split]}), path)
    for split, expected in (
        ("train", ["train"]),
        ("val", ["validation"]),
        ("", ["test", "train", "validation"]),
    ):
        assert [row.captions[0] for row in read_all(folder, split=split)] == expected
    (folder / f"train-00000-of-00001{suffix}").rename(folder / f"more{suffix}")
    assert [row.captions[0] for row in read_all(folder)] == ["train"]
    (folder / f"more{suffix}").unlink()
    with pytest.raises(
        ValueError, match=r"split 'train' is empty: all 2 files are named after another, test-00000"
    ):
        read_all(folder)
    assert [row.captions[0] for row in read_all(folder / f"test-00000-of-00001{suffix}")] == [
        "test"
    ]


def test_byte_order_marks_are_no_part_of_a_caption(images: Path, tmp_path: Path) -> None:
    (images / "a.txt").write_text("a cat\none cat", "utf-8-sig")
    assert captions_of(read_all(images)[:1]) == {"a.jpg": ["a cat", "one cat"]}
    members = [
        ("x.jpg", (images / "a.jpg").read_bytes()),
        ("x.txt", (images / "a.txt").read_bytes()),
    ]
    assert captions_of(read_all(write_tar(tmp_path / "x.tar", members))) == {
        "x": ["a cat", "one cat"]
    }


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
    assert [part.digest() for part in list_parts(SourceConfig(part_rows=2), moved)] == [
        part.digest() for part in parts
    ]


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


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("is_large", [False, True])
def test_digest_of_an_annotation_file_sees_its_images_and_nothing_else_beside_it(
    images: Path, tmp_path: Path, layout: str, is_large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    LAYOUTS[layout](images)
    (listed,) = (
        path
        for path in images.rglob("*.*")
        if path.suffix != ".jpg" and "instances" not in path.name
    )
    given = listed.rename(images / listed.name)
    image = (images / "b.jpg").read_bytes()
    (images / "b.jpg").unlink()
    if is_large:
        monkeypatch.setattr("curation.pairs.identity.HASHED_WHOLE_BYTES", 10)
    before = source_digest(given)
    (images / "README.md").write_text("not read")
    assert source_digest(given) == before
    (images / "b.jpg").write_bytes(image)
    after = source_digest(given)
    assert after != before
    assert source_digest(images.rename(tmp_path / "elsewhere") / given.name) == after


def test_digest_of_a_file_that_lists_no_image_is_that_of_its_bytes(
    images: Path, tmp_path: Path
) -> None:
    for folder in (images, tmp_path):
        (folder / "metadata.json").write_text(json.dumps(["a cat", "a dog"]))
    assert source_digest(images / "metadata.json") == source_digest(tmp_path / "metadata.json")
