"""WebDataset tars: keys, splits into parts, bad samples, damaged files."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_pairs import (
    CAPTIONS,
    Draw,
    Encode,
    captions_of,
    read_all,
    reasons_of,
    sample_members,
    write_json,
    write_tar,
)

from curation.pairs.config import SourceConfig
from curation.pairs.sources import list_parts, read_part
from curation.pairs.webdataset import TarWalk


def test_cut_tar_in_an_object_store_is_refused(
    tmp_path: Path, object_store: Callable[[Path, str], Path]
) -> None:
    (tmp_path / "pairs").mkdir()
    path = write_tar(tmp_path / "pairs" / "x.tar", [("a.txt", b"x" * 20_000)])
    path.write_bytes(path.read_bytes()[:10_240])
    with pytest.raises(ValueError, match=r"x\.tar cannot be read as a tar"):
        list_parts(SourceConfig(), object_store(tmp_path / "pairs", "cut/pairs"))


def test_webdataset_keys_carry_the_tar_where_there_are_several(
    tmp_path: Path, picture: Draw, encoded: Encode
) -> None:
    image = encoded(picture(0), "PNG")
    for number in range(2):
        write_tar(
            tmp_path / f"train-{number}.tar", sample_members("same", image, [f"text {number}"])
        )
    assert captions_of(read_all(tmp_path)) == {
        "train-0/same": ["text 0"],
        "train-1/same": ["text 1"],
    }
    assert captions_of(read_all(tmp_path / "train-1.tar")) == {"same": ["text 1"]}


def test_img2dataset_layout_is_read(tmp_path: Path, picture: Draw, encoded: Encode) -> None:
    members = []
    for number in range(3):
        key = f"00000000{number}"
        record = {
            "caption": f"text {number}",
            "url": "u",
            "key": key,
            "status": "success",
            "width": 48,
        }
        members += [
            (f"{key}.jpg", encoded(picture(number))),
            (f"{key}.json", json.dumps(record).encode()),
        ]
        members.append((f"{key}.txt", f"text {number}".encode()))
    write_tar(tmp_path / "00000.tar", members)
    (tmp_path / "00000_stats.json").write_text('{"count": 3}')
    pq.write_table(pa.table({"url": ["u"]}), tmp_path / "00000.parquet")
    expected = {f"00000/00000000{number}": [f"text {number}"] for number in range(3)}
    assert captions_of(read_all(tmp_path)) == expected


def test_long_tar_splits_into_parts_that_cover_it_once(
    tmp_path: Path, picture: Draw, encoded: Encode
) -> None:
    members = []
    for number in range(30):
        members += sample_members(
            f"{number:03d}", encoded(picture(number, (300, 200)), "BMP"), [f"text {number}"]
        )
    path = write_tar(tmp_path / "long.tar", members)
    config = SourceConfig(part_mb=1)
    parts = list_parts(config, path)
    assert len(parts) > 1
    keys = [row.key for part in parts for row in read_part(config, part)]
    assert keys == [f"{number:03d}" for number in range(30)]


def test_headers_of_a_long_tar_are_read_once_by_what_reads_its_parts_in_order(
    tmp_path: Path, picture: Draw, encoded: Encode
) -> None:
    image = encoded(picture(0, (300, 200)), "BMP")
    names = [f"{number:03d}" for number in range(30)]
    names[20] = names[2]
    path = write_tar(
        tmp_path / "long.tar",
        [item for name in names for item in sample_members(name, image, [name])],
    )
    config = SourceConfig(part_mb=1)
    walks = dict[str, TarWalk]()
    parts = list_parts(config, path)
    apart = [list(read_part(config, part)) for part in parts]
    again = [list(read_part(config, part, walks)) for part in (*parts[:2], *parts[:2])]
    assert again == apart[:2] * 2
    next(read_part(config, parts[2], walks))
    assert list(read_part(config, parts[2], walks)) == apart[2]
    with path.open("r+b") as file:
        file.write(b"\xff" * parts[2].start)
    assert [list(read_part(config, part, walks)) for part in parts[3:]] == apart[3:]
    assert reasons_of([row for rows in apart for row in rows]) == {"002": "duplicate key"}
    with pytest.raises(ValueError, match=r"long\.tar cannot be read as a tar"):
        list(read_part(config, parts[3]))


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


def test_samples_under_one_key_are_rejects_each_and_not_mixed(
    tmp_path: Path, picture: Draw, encoded: Encode
) -> None:
    image = encoded(picture(0), "PNG")
    members = [
        (f"photo.{n}.{suffix}", data)
        for n in range(3)
        for suffix, data in (("png", image), ("txt", b"text"))
    ]
    members += [
        ("seg.png", image),
        ("seg.txt", b"text"),
        ("seg.mask.PNG", image),
        ("two.png", image),
    ]
    members += [
        ("two.1.json", b"{}"),
        ("two.json", b"{}"),
        ("other.en.txt", b"text"),
        ("other.v1.png", image),
    ]
    rows = read_all(write_tar(tmp_path / "x.tar", members))
    assert [row.key for row in rows] == ["photo"] * 3 + ["seg"] * 2 + ["two"] * 2 + ["other"]
    assert set(reasons_of(rows[:-1]).values()) == {"unreadable record"}
    assert rows[0].detail.startswith("3 images, .txt or .json have this key")
    assert rows[-1].captions == ("text",)


def test_extensions_in_capitals_repeat_a_key_too(
    tmp_path: Path, picture: Draw, encoded: Encode
) -> None:
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
def test_cut_tar_is_refused_alone_and_in_a_folder(
    tmp_path: Path, picture: Draw, encoded: Encode, size: int
) -> None:
    members = [
        item
        for n in range(5)
        for item in sample_members(f"{n}", encoded(picture(n), "PNG"), ["text"])
    ]
    whole = write_tar(tmp_path / "whole.tar", members)
    (tmp_path / "x.tar").write_bytes(whole.read_bytes()[:size])
    for source in (tmp_path, tmp_path / "x.tar"):
        with pytest.raises(ValueError, match=r"x\.tar cannot be read as a tar"):
            list_parts(SourceConfig(), source)


def test_tars_joined_by_cat_are_refused_when_they_are_read(
    tmp_path: Path, picture: Draw, encoded: Encode
) -> None:
    image = encoded(picture(0), "PNG")
    joined = tmp_path / "folder" / "joined.tar"
    whole = [
        write_tar(tmp_path / f"{n}.tar", sample_members(f"{n}", image, ["text"])) for n in range(2)
    ]
    joined.parent.mkdir()
    joined.write_bytes(whole[0].read_bytes() + whole[1].read_bytes())
    for source in (joined, joined.parent):
        with pytest.raises(
            ValueError, match=r"joined\.tar .*more follows its end mark at byte \d+.*--ignore-zeros"
        ):
            read_all(source)
    joined.write_bytes(whole[0].read_bytes() + b"\0" * 3_000_000)
    assert captions_of(read_all(joined)) == {"0": ["text"]}


def test_tar_with_a_damaged_header_is_refused_when_it_is_read(
    tmp_path: Path, picture: Draw, encoded: Encode
) -> None:
    members = [
        item
        for n in range(5)
        for item in sample_members(f"{n}", encoded(picture(n), "PNG"), ["text"])
    ]
    path = write_tar(tmp_path / "x.tar", members)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"3.bmp", b"\xff.bmp"))
    parts = list_parts(SourceConfig(), tmp_path)
    with pytest.raises(ValueError, match=r"x\.tar cannot be read as a tar"):
        list(read_part(SourceConfig(), parts[0]))
