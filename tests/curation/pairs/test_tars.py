"""Tars: links of both kinds and sparse members are read as what they mean."""

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from raw_pairs import Draw, Encode, captions_of, read_all, reasons_of, write_tar

from curation.pairs.config import SourceConfig
from curation.pairs.ranges import ByteRange
from curation.pairs.sources import list_parts, read_part
from curation.pairs.tars import tar_members


def write_links(path: Path, links: list[tuple[str, str, bytes]], *, first: bool = False) -> Path:
    """A tar of x/a.jpg and links (name, target, type), before or after it."""
    with tarfile.open(path, "w") as archive:

        def add_file() -> None:
            info = tarfile.TarInfo("x/a.jpg")
            info.size = 5
            archive.addfile(info, io.BytesIO(b"image"))

        if not first:
            add_file()
        for name, target, kind in links:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = target
            archive.addfile(info)
        if first:
            add_file()
    return path


def files_of(path: Path) -> dict[str, ByteRange]:
    return {member.name: member.file for member in tar_members(path)}


@pytest.mark.parametrize("first", [False, True])
def test_links_have_the_bytes_of_their_targets(tmp_path: Path, first: bool) -> None:
    links = [
        ("hard.jpg", "x/a.jpg", tarfile.LNKTYPE),
        ("x/soft.jpg", "a.jpg", tarfile.SYMTYPE),
        ("y/up.jpg", "../x/soft.jpg", tarfile.SYMTYPE),
        ("out.jpg", "../elsewhere.jpg", tarfile.SYMTYPE),
        ("round.jpg", "round.jpg", tarfile.SYMTYPE),
    ]
    members = files_of(write_links(tmp_path / "x.tar", links, first=first))
    assert {name: file.read() for name, file in members.items()} == dict.fromkeys(
        ("x/a.jpg", "hard.jpg", "x/soft.jpg", "y/up.jpg"), b"image"
    )


def test_a_sample_of_links_is_a_sample(tmp_path: Path, picture: Draw, encoded: Encode) -> None:
    """As GNU tar writes files that were deduplicated by hard links."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    (folder / "1.png").write_bytes(encoded(picture(1), "PNG"))
    (folder / "1.txt").write_text("a cat")
    for suffix in ("png", "txt"):
        os.link(folder / f"1.{suffix}", folder / f"2.{suffix}")
    subprocess.run(["tar", "--sort=name", "-cf", tmp_path / "x.tar", "-C", folder, "."], check=True)
    rows = read_all(tmp_path / "x.tar")
    assert captions_of(rows) == {"1": ["a cat"], "2": ["a cat"]}
    assert rows[0].image == rows[1].image


@pytest.mark.parametrize("format", ["gnu", "posix"])
def test_sparse_members_are_read_with_their_holes(tmp_path: Path, format: str) -> None:
    with (tmp_path / "sparse.bin").open("wb") as file:
        for position in (0, 1 << 20, 3 << 20):
            file.seek(position)
            file.write(b"data" * 100)
        file.truncate(4 << 20)
    (tmp_path / "after.txt").write_text("after")
    command = ["tar", "--sparse", f"--format={format}", "-cf", "x.tar", "sparse.bin", "after.txt"]
    subprocess.run(command, cwd=tmp_path, check=True)
    members = files_of(tmp_path / "x.tar")
    assert members["sparse.bin"].read() == (tmp_path / "sparse.bin").read_bytes()
    assert members["after.txt"].read() == b"after"
    if members["sparse.bin"].pieces is None:
        pytest.skip("this file system or tar keeps no holes")
    assert (tmp_path / "x.tar").stat().st_size < 1 << 20


def test_doubled_slashes_are_one_and_hidden_members_are_left_out(tmp_path: Path) -> None:
    members = [("./a//b.jpg", b"1"), (".DS_Store", b"2"), ("a/._b.jpg", b"3"), ("/abs.jpg", b"4")]
    assert [member.name for member in tar_members(write_tar(tmp_path / "x.tar", members))] == [
        "a/b.jpg",
        "abs.jpg",
    ]


def test_samples_that_lie_apart_are_joined(tmp_path: Path, picture: Draw, encoded: Encode) -> None:
    texts = [(f"{n}.txt", f"text {n}".encode()) for n in range(3)]
    images = [(f"{n}.png", encoded(picture(n), "PNG")) for n in range(3)]
    rows = read_all(write_tar(tmp_path / "x.tar", [*images, *texts]))
    assert captions_of(rows) == {f"{n}": [f"text {n}"] for n in range(3)}
    assert [row.image for row in rows] == [data for _, data in images]


def test_many_samples_that_lie_apart_are_joined(tmp_path: Path) -> None:
    members = [(f"{n:03d}.{suffix}", b"x") for suffix in ("jpg", "txt") for n in range(200)]
    assert list(captions_of(read_all(write_tar(tmp_path / "x.tar", members)))) == [
        f"{n:03d}" for n in range(200)
    ]


def test_a_sample_that_comes_again_with_its_other_half_names_the_order(tmp_path: Path) -> None:
    """Far behind the members by which a tar is judged."""
    pairs = [(f"{n:03d}.{suffix}", b"x") for n in range(100) for suffix in ("jpg", "txt")]
    late = [("a.jpg", b"x"), ("b.jpg", b"x"), ("b.txt", b"x"), ("a.txt", b"x")]
    rows = read_all(write_tar(tmp_path / "x.tar", [*pairs, *late]))
    assert list(reasons_of(rows).items()) == [("a", "unreadable record")]
    assert "tar --sort=name" in rows[-1].detail


def test_links_to_members_of_an_earlier_part_belong_to_the_part_of_their_own_header(
    tmp_path: Path,
) -> None:
    names = [f"{n:03d}" for n in range(40)]
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for number, name in enumerate(names):
            for suffix, size in (("jpg", 100_000), ("txt", 5)):
                info = tarfile.TarInfo(f"{name}.{suffix}")
                if number % 10 == 9:
                    info.type = tarfile.LNKTYPE
                    info.linkname = f"000.{suffix}"
                    archive.addfile(info)
                else:
                    info.size = size
                    archive.addfile(info, io.BytesIO(b"x" * size))
    config = SourceConfig(part_mb=1)
    parts = list_parts(config, tmp_path / "x.tar")
    assert len(parts) == 4
    assert [row.key for part in parts for row in read_part(config, part)] == names
