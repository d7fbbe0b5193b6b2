"""Files of an object store give the bytes and names that the same files give on a disk."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from cluster.storage import (
    BLOCK_BYTES,
    absolute,
    files_below,
    is_remote,
    kind_of,
    open_arrow,
    open_file,
    read_range,
    size_of,
)

Upload = Callable[[Path, str], Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A file of two blocks and a bit, a small one in a folder with a space, and hidden ones."""
    local = tmp_path / "local"
    for name in ("b c/small é.txt", ".hidden/file", "b c/.hidden"):
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        (local / name).write_text(name)
    (local / "large.bin").write_bytes(np.random.default_rng(0).bytes(2 * BLOCK_BYTES + 1000))
    return local


@pytest.fixture(params=["disk", "store"])
def place(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Path:
    if request.param == "disk":
        return folder
    return request.getfixturevalue("object_store")(folder, tmp_path.name)


def test_visible_files_are_listed_with_their_sizes(place: Path) -> None:
    found = {name: (Path(path), size) for name, path, size in files_below(place)}
    assert found == {
        "b c/small é.txt": (place / "b c" / "small é.txt", 16),
        "large.bin": (place / "large.bin", 2 * BLOCK_BYTES + 1000),
    }
    assert size_of(place / "large.bin") == 2 * BLOCK_BYTES + 1000


def test_links_are_followed_but_not_in_circles(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "image").touch()
    links = {
        "again": ".",
        "b c/up": "..",
        "one": "../elsewhere",
        "two": "../elsewhere",
        "self": "self",
        "gone": "gone!",
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    assert {name for name, _, _ in files_below(folder)} == {
        "b c/small é.txt",
        "large.bin",
        "one/image",
        "two/image",
    }


def test_folder_that_may_not_be_read_is_named_but_not_that_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("image", "lost+found/1", "private/image"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o755)
    for closed in ("lost+found", "private"):
        (tmp_path / closed).chmod(0)
    with (
        no_rights_of_root(),
        pytest.raises(ValueError, match="private may not be read by this user"),
    ):
        list(files_below(Path()))
    (tmp_path / "private").chmod(0o755)
    with no_rights_of_root():
        assert {name for name, _, _ in files_below(Path())} == {"image", "private/image"}
    (tmp_path / "lost+found").chmod(0o755)


@contextmanager
def no_rights_of_root() -> Iterator[None]:
    """As an ordinary user; relative paths alone are sure to be readable."""
    user = os.geteuid()
    try:
        os.seteuid(user or 65534)
    except OSError:
        pytest.skip("root here cannot become another user")
    try:
        yield
    finally:
        os.seteuid(user)


def test_kinds_are_told_apart(place: Path) -> None:
    kinds = [kind_of(place / name) for name in (".", "b c", "large.bin", "large", "absent")]
    assert kinds == ["folder", "folder", "file", "", ""]


def test_ranges_across_blocks_and_past_the_end_are_those_of_the_file(
    folder: Path, place: Path
) -> None:
    whole = (folder / "large.bin").read_bytes()
    size = 2 * BLOCK_BYTES + 1000
    ranges = [
        (0, 10),
        (BLOCK_BYTES - 5, 10),
        (BLOCK_BYTES, 0),
        (5, 2 * BLOCK_BYTES),
        (size - 3, 10),
        (size + 50, 10),
    ]
    for offset, length in ranges:
        assert (
            read_range(str(place / "large.bin"), offset, length) == whole[offset : offset + length]
        )


def test_an_open_file_is_read_and_sought_as_on_disk(folder: Path, place: Path) -> None:
    whole = (folder / "large.bin").read_bytes()
    with open_file(place / "large.bin") as file:
        assert file.read(3) == whole[:3]
        assert file.seek(-7, os.SEEK_END) == len(whole) - 7
        assert file.read() == whole[-7:]
        assert file.seek(BLOCK_BYTES - 1) == BLOCK_BYTES - 1
        assert file.read(2) == whole[BLOCK_BYTES - 1 : BLOCK_BYTES + 1]
        assert file.seek(1, os.SEEK_CUR) == BLOCK_BYTES + 2
    with open_arrow(place / "large.bin") as file:
        assert file.read() == whole


def test_a_file_that_is_not_there_is_an_error(place: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_range(str(place / "absent"), 0, 1)


def test_addresses_of_stores_survive_where_paths_are_made_absolute() -> None:
    address = Path("s3://bucket/a/b.tar")
    assert absolute(address) == address == Path("s3://bucket") / "a" / "b.tar"
    assert absolute(Path("a")) == Path.cwd() / "a"
    assert [is_remote(path) for path in ("s3://b/x", Path("gs://b/x"), "/s3:/x", "s3/x", "c:/x")] == [
        True, True, False, False, False,
    ]  # fmt: skip
