"""The decision what is read of a source: mixed layouts, several lists, what is left out, and the
account of it all.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_pairs import CAPTIONS, captions_of, read_all, reasons_of, write_tar

from curation.pairs.account import Account
from curation.pairs.config import SourceConfig
from curation.pairs.opening import Source
from curation.pairs.sample import Reject
from curation.pairs.sources import checked, list_parts, open_source

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write({name: bytes or text}): a folder of these files."""

    def write_files(files: dict[str, bytes | str], folder: str = "data") -> Path:
        for name, data in files.items():
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return tmp_path / folder

    return write_files


def named(names: Sequence[str]) -> dict[str, bytes | str]:
    """Files whose bytes are their names: which of them was read can be seen."""
    return {name: name.encode() for name in names}


def images_of(path: Path, **options: Any) -> dict[str, bytes]:
    rows = read_all(path, **options)
    assert not reasons_of(rows)
    return {row.key: row.image for row in rows}


def opened(path: Path, **options: Any) -> Source:
    return open_source(SourceConfig(**options), path)


def reasons(account: Account) -> dict[str, list[str]]:
    return account.unread()


def coco(names: Sequence[str]) -> str:
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    captions = [
        {"image_id": number, "caption": f"text {name}"} for number, name in enumerate(names)
    ]
    return json.dumps({"images": images, "annotations": captions})


def test_four_layouts_in_one_folder_are_all_read(write: Write) -> None:
    folder = write(
        named(["list/a.jpg", "beside/b.jpg"])
        | {"beside/b.txt": "b", "list/captions.csv": "image,text\na.jpg,a\n"}
    )
    write_tar(folder / "shard.tar", [("c.jpg", b"c"), ("c.txt", b"c text")])
    pq.write_table(pa.table({"image": [b"d"], "text": ["d text"]}), folder / "table.parquet")
    source = checked(SourceConfig(), opened(folder))
    assert captions_of(read_all(folder, unread_budget=0.01)) == {
        "shard/c": ["c text"],
        "table/00000000": ["d text"],
        "a.jpg": ["a"],
        "beside/b.jpg": ["b"],
    }
    assert source.account.summary() == {
        "files": 6,
        "files_read_as_pairs": 2,
        "files_of_pairs": 3,
        "files_lists": 1,
        "files_not_read": 0,
    }


def test_too_much_that_is_not_read_stops_with_its_reason_and_the_flag(write: Write) -> None:
    files = named([f"{n}.jpg" for n in range(100)]) | {f"{n}.txt": "text" for n in range(97)}
    folder = write(files)
    with pytest.raises(
        ValueError,
        match=r"3 of 197 .*without a caption.*97\.jpg, 98\.jpg, 99\.jpg.*--embed\.source\.unread-budget",
    ):
        list_parts(SourceConfig(), folder)
    assert len(read_all(folder, unread_budget=0.02)) == 97
    assert reasons(opened(folder).account) == {
        "an image without a caption: no list names it, and no text lies beside it": [
            "97.jpg",
            "98.jpg",
            "99.jpg",
        ]
    }


def test_documents_and_other_files_are_counted_but_do_not_stop(write: Write) -> None:
    folder = write(
        named(["a.jpg"])
        | {"a.txt": "a", "README.txt": "About.", "stats.json": '{"count": 5}', "run.sh": "#"}
    )
    assert captions_of(read_all(folder, unread_budget=0.0)) == {"a.jpg": ["a"]}
    assert opened(folder).account.summary()["files_not_read"] == 3


@pytest.mark.parametrize("name", ["photo.cr2", "photo.svg", "more.zip", "2.txt"])
def test_what_may_be_an_image_or_a_caption_and_is_not_read_stops(write: Write, name: str) -> None:
    folder = write(named(["1.jpg", name]) | {"1.txt": "a"})
    with pytest.raises(ValueError, match=f"1 of 3 files .*{name}"):
        list_parts(SourceConfig(), folder)


@pytest.mark.parametrize(
    "files",
    [
        {"1.JPG": b"1.JPG", "1.TXT": "text"},
        {"1.jpg": b"1.jpg", "1.jpg.txt": "text"},
        {"1.jfif": b"1.jfif", "1.caption": "text"},
        {"1.jpg": b"1.jpg", "1.json": '{"caption": "text", "width": 5}'},
        {"1.jpg": b"1.jpg", "1.json": '{"width": 5}', "1.txt": "text"},
        {"Images/1.jpg": b"1", "captions.txt": "image,caption\n1.jpg,text\n", "README.txt": "x"},
        {
            "Images/1.jpg": b"1",
            "Flickr8k.token.txt": "1.jpg#0\ttext\n",
            "Flickr_8k.trainImages.txt": "1.jpg\n",
        },
        {"1.jpg": b"1", "metadata.json": '{"/home/me/1": {"caption": "text", "tags": "x"}}'},
        {
            "1.jpg": b"1",
            "x.json": '{"info": {}, "annotations": [{"image_id": "1", "caption": "text"}]}',
        },
        {
            "1.jpg": b"1",
            "x.json": '{"data": [{"image_path": "train/1.jpg", "caption_str": "text", "set_name": "x"}]}',
        },
        {
            "1.jpg": b"1",
            "x.json": '{"train": [{"image": "1.jpg", "caption": "text"}], "val": [{"image": "2.jpg"}]}',
        },
        {
            "1.jpg": b"1",
            "x.json": '{"image": "1.jpg", "caption": "text"}\n{"image": "1.jpg", "caption": "text"}\n',
        },
        {"img/1.jpg": b"1", "captions.csv": "image,caption\nimg\\1.jpg,text\n"},
        {"img/1.jpg": b"1", "captions.csv": "image,caption\nimg//1.jpg,text\n"},
        {"cafe\u0301/1.jpg": b"1", "captions.csv": "image,caption\ncaf\u00e9/1.jpg,text\n"},
    ],
)
def test_conventions_of_others_come_as_they_are(
    write: Write, files: dict[str, bytes | str]
) -> None:
    ((_, captions),) = captions_of(read_all(write(files), unread_budget=0.0)).items()
    assert captions == ["text"]


def test_img2datasets_files_are_pairs_and_its_tables_are_not(write: Write) -> None:
    folder = write(
        {"00000/0.jpg": b"x", "00000/0.txt": "text", "00000/0.json": '{"url": "http://x/a.jpg"}'}
    )
    table = pa.table(
        {"url": ["http://x/a.jpg"], "caption": ["text"], "key": ["0"], "status": ["success"]}
    )
    pq.write_table(table, folder / "00000.parquet")
    assert captions_of(read_all(folder, unread_budget=0.0)) == {"00000/0.jpg": ["text"]}


def test_all_lists_are_read_and_captions_of_one_image_are_joined(write: Write) -> None:
    files = named(["a.jpg", "b.jpg", "c.jpg"])
    lists = {
        "captions.csv": "image,caption\na.jpg,one\nb.jpg,two\n",
        "metadata.jsonl": '{"file_name": "b.jpg", "text": "three"}\n{"file_name": "c.jpg", "text": "four"}\n',
    }
    folder = write(files | lists)
    assert captions_of(read_all(folder)) == {
        "a.jpg": ["one"],
        "b.jpg": ["two", "three"],
        "c.jpg": ["four"],
    }
    assert any("1 images are in several lists" in note for note in opened(folder).account.notes)


def test_a_list_of_which_no_image_is_here_gives_way_to_one_that_fits(write: Write) -> None:
    def listing(names: Sequence[str]) -> str:
        images = [
            {"filename": name, "split": "train", "sentences": [{"raw": "text"}]} for name in names
        ]
        return json.dumps({"images": images})

    folder = write(
        named(["b.jpg"])
        | {"dataset_1.json": listing(["a.jpg"]), "dataset_2.json": listing(["b.jpg"])}
    )
    assert images_of(folder, unread_budget=0.0) == {"b.jpg": b"b.jpg"}
    assert any(
        note.startswith("dataset_1.json: none of the 1 images")
        for note in opened(folder).account.notes
    )


def test_cocos_lists_mean_the_images_of_their_own_folder(write: Write) -> None:
    images = named(["train2017/1.jpg", "val2017/1.jpg"])
    folder = write(
        images
        | {f"annotations/captions_{split}2017.json": coco(["1.jpg"]) for split in ("train", "val")}
    )
    assert images_of(folder, unread_budget=0.0) == {"1.jpg": b"train2017/1.jpg"}
    assert images_of(folder, split="val", unread_budget=0.0) == {"1.jpg": b"val2017/1.jpg"}


def test_an_image_that_karpathy_keeps_for_a_test_is_not_read_through_cocos_list(
    write: Write,
) -> None:
    entries = [
        {"filename": f"{n}.jpg", "split": split, "sentences": ["x"]}
        for n, split in ((1, "train"), (2, "test"))
    ]
    lists = {
        "annotations/captions_train.json": coco(["1.jpg", "2.jpg"]),
        "x.json": json.dumps({"images": entries}),
    }
    folder = write(named(["1.jpg", "2.jpg"]) | lists)
    assert captions_of(read_all(folder, unread_budget=0.0)) == {"1.jpg": ["x", "text 1.jpg"]}


def test_a_file_never_stands_in_for_images_of_several_folders(write: Write) -> None:
    lines = "image,caption\ncats/1.jpg,a cat\ndogs/1.jpg,a dog\nbirds/2.jpg,a bird\n"
    rows = read_all(write(named(["1.jpg", "2.jpg"]) | {"captions.csv": lines}))
    assert reasons_of(rows) == {"cats/1.jpg": "ambiguous name", "dogs/1.jpg": "ambiguous name"}
    assert [row.image for row in rows if row.key == "birds/2.jpg"] == [b"2.jpg"]


def test_a_name_that_fits_two_files_is_ambiguous_and_not_missing(write: Write) -> None:
    rows = read_all(
        write(
            named(["x/1.jpg", "y/1.jpg", "2.jpg"])
            | {"captions.csv": "image,caption\n1.jpg,x\n2.jpg,y\n"}
        )
    )
    assert reasons_of(rows) == {"1.jpg": "ambiguous name"}
    assert "x/1.jpg, y/1.jpg" in rows[0].detail


def test_lists_may_name_images_outside_the_source(write: Write) -> None:
    outside = write(named(["1.jpg", "2.jpg"]), "images")
    lines = f"image,caption\n../images/1.jpg,one\n{outside / '2.jpg'},two\n"
    folder = write({"captions.csv": lines}, "lists")
    for source in (folder, folder / "captions.csv"):
        assert images_of(source, unread_budget=0.0) == {
            "../images/1.jpg": b"1.jpg",
            str(outside / "2.jpg"): b"2.jpg",
        }
        assert any("2 images of lists lie outside" in note for note in opened(source).account.notes)


def test_a_list_whose_images_are_all_missing_says_where_they_are_looked_for(write: Write) -> None:
    folder = write(named(["train/1.jpg"]) | {"annotations/captions.json": coco(["1.jpg"])})
    with pytest.raises(ValueError, match=rf"none of the 1 pairs .*missing file.*such as {folder}"):
        list_parts(SourceConfig(), folder / "annotations" / "captions.json")


@pytest.mark.parametrize("in_one_tar", [False, True])
def test_images_in_a_tar_beside_their_list_are_read(write: Write, in_one_tar: bool) -> None:
    folder = write({"captions.json": json.dumps({"images/1.jpg": "one"})})
    members = [("images/1.jpg", b"1")]
    if in_one_tar:
        members.append(("captions.json", (folder / "captions.json").read_bytes()))
        (folder / "captions.json").unlink()
    write_tar(folder / "images.tar", members)
    assert captions_of(read_all(folder, unread_budget=0.0)) == {"images/1.jpg": ["one"]}


def test_texts_beside_images_that_a_list_names_are_chosen_by_a_flag(write: Write) -> None:
    folder = write(
        named(["1.jpg"]) | {"1.txt": "0 0.5 0.5", "captions.csv": "image,caption\n1.jpg,a cat\n"}
    )
    with pytest.raises(ValueError, match=r"1\.txt.*--embed\.source\.format list"):
        list_parts(SourceConfig(), folder)
    assert captions_of(read_all(folder, format="list", unread_budget=0.0)) == {"1.jpg": ["a cat"]}
    assert captions_of(read_all(folder, format="text", unread_budget=0.0)) == {
        "1.jpg": ["0 0.5 0.5"]
    }


def test_a_split_named_among_other_words_is_read_and_said(write: Write) -> None:
    files = named(["dolomites/1.jpg", "val_gardena/2.jpg"]) | {
        "dolomites/1.txt": "a",
        "val_gardena/2.txt": "b",
    }
    folder = write(files)
    assert set(images_of(folder, unread_budget=0.0)) == {"dolomites/1.jpg", "val_gardena/2.jpg"}
    assert any(
        "val_gardena: 'val' is read as a word" in note for note in opened(folder).account.notes
    )


def splits_as_texts() -> dict[str, bytes | str]:
    """Two splits with a caption beside each image; train fills the head by which tars are known."""
    names = [*(f"train/{n:03d}" for n in range(40)), "val/000", "val/001"]
    return {f"{name}.jpg": name.encode() for name in names} | {
        f"{name}.txt": name for name in names
    }


def splits_as_lists() -> dict[str, bytes | str]:
    """Two splits with a list beside the images of each."""
    return {
        f"{split}/{name}": data
        for split in ("train", "val")
        for name, data in {
            "1.jpg": f"{split}/1".encode(),
            "metadata.csv": f"file_name,text\n1.jpg,{split}/1\n",
        }.items()
    }


def splits_among_words() -> dict[str, bytes | str]:
    """Folders whose names differ in the split alone, and one that only looks like a split's."""
    names = ["x-train/1", "x-val/1", "y/val_gardena/1"]
    return {f"{name}.jpg": name.encode() for name in names} | {
        f"{name}.txt": name for name in names
    }


@pytest.mark.parametrize("files", [splits_as_texts, splits_as_lists, splits_among_words])
@pytest.mark.parametrize("split", ["train", "val", ""])
def test_folders_of_splits_mean_the_same_in_a_folder_and_in_a_tar(
    write: Write, tmp_path: Path, files: Callable[[], dict[str, bytes | str]], split: str
) -> None:
    folder = write(files(), "plain/data")
    names = sorted(files())
    tar = tmp_path / "tars" / "data.tar"
    tar.parent.mkdir()
    write_tar(tar, [(name, (folder / name).read_bytes()) for name in names])

    expected = {
        name.removesuffix(".jpg")
        for name in names
        if name.endswith(".jpg") and (split in name.split("/")[0] or name.startswith("y/"))
    }
    for source in (folder, folder.parent, tar, tar.parent):
        rows = read_all(source, split=split, unread_budget=0.0)
        texts = captions_of(rows).values()
        assert sorted(texts) == [[text] for text in sorted(expected)]
        assert all(row.image == row.captions[0].encode() for row in rows)

    left_out = {
        source: opened(source, split=split).account.summary()["files_not_read"]
        for source in (folder, tar, tar.parent)
    }
    assert len(set(left_out.values())) == 1


@pytest.mark.parametrize("layout", [splits_as_texts, splits_as_lists])
def test_a_tar_in_which_all_is_of_another_split_says_so(
    write: Write, tmp_path: Path, layout: Callable[[], dict[str, bytes | str]]
) -> None:
    folder = write({name: data for name, data in layout().items() if name.startswith("val")})
    tar = write_tar(tmp_path / "data.tar", [(f"val/{n}", n.encode()) for n in ("1.jpg", "1.txt")])
    for source in (folder, tar):
        with pytest.raises(ValueError, match="split 'train' is empty: all"):
            list_parts(SourceConfig(), source)


@pytest.mark.parametrize("lines", ["captions", "one caption"])
def test_lines_of_a_text_mean_the_same_in_a_folder_and_in_a_tar(
    write: Write, tmp_path: Path, lines: str
) -> None:
    folder = write(named(["1.jpg"]) | {"1.txt": "a cat\none cat\n"})
    tar = write_tar(
        tmp_path / "x.tar", [(name, (folder / name).read_bytes()) for name in ("1.jpg", "1.txt")]
    )
    expected = ["a cat", "one cat"] if lines == "captions" else ["a cat one cat"]
    for source in (folder, tar):
        assert list(captions_of(read_all(source, text_lines=lines)).values()) == [expected]


def test_text_that_is_not_utf_8_is_a_reject_or_follows_the_setting(write: Write) -> None:
    text = "the artist\u2019s caf\u00e9"
    files = named(["1.jpg", "2.jpg"]) | {"1.txt": text.encode("cp1252"), "2.txt": text}
    assert reasons_of(read_all(write(files))) == {"1.jpg": "undecodable text"}
    assert captions_of(read_all(write(files), encoding="cp1252"))["1.jpg"] == [text]
    csv = {"captions.csv": b"image,caption\n1.jpg,caf\xe9\n2.jpg,fine\n"}
    assert reasons_of(read_all(write(named(["1.jpg", "2.jpg"]) | csv, "list"))) == {
        "1.jpg": "undecodable text"
    }


@pytest.mark.parametrize("name", ["x.arrow", "x.xlsx", "x.pkl", "x.bin"])
def test_files_of_unread_kinds_are_named(write: Write, name: str) -> None:
    with pytest.raises(
        ValueError, match=r"which is not read: give a folder, an uncompressed \.tar, \.parquet"
    ):
        list_parts(SourceConfig(), write({name: b"\x00\x01binary\x00\x02\x03"}) / name)


def test_links_and_names_without_suffix_are_known_by_their_first_bytes(
    write: Write, tmp_path: Path
) -> None:
    folder = write({"x": b""})
    pq.write_table(pa.table({"image": [b"1"], "text": ["one"]}), folder / "9f86d0")
    write_tar(folder / "4e0740", [("1.jpg", b"1"), ("1.txt", b"one")])
    (tmp_path / "link.parquet").symlink_to(folder / "9f86d0")
    for path in (folder / "9f86d0", folder / "4e0740", tmp_path / "link.parquet"):
        assert list(captions_of(read_all(path)).values()) == [["one"]]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_a_list_without_a_known_suffix_is_text_in_any_marked_encoding(
    write: Write, encoding: str
) -> None:
    """`utf-16` and `utf-32` of Python write the byte-order mark, as Excel does."""
    text = "image,caption\n1.jpg,un caf\u00e9\n2.jpg,two\n"
    folder = write(named(["1.jpg", "2.jpg"]) | {"pairs.lst": text.encode(encoding)})
    assert captions_of(read_all(folder / "pairs.lst"))["1.jpg"] == ["un caf\u00e9"]


def test_addresses_are_named_as_such(write: Write) -> None:
    rows = read_all(
        write(
            named(["1.jpg"]) | {"captions.csv": "image,caption\n1.jpg,x\nhttps://x.org/2.jpg,y\n"}
        )
    )
    assert list(reasons_of(rows).values()) == ["image is an address"]


def test_a_blank_line_of_an_image_with_captions_is_counted(write: Write) -> None:
    rows = read_all(write(named(["1.jpg"]) | {"captions.csv": "image,caption\n1.jpg,x\n1.jpg,\n"}))
    assert reasons_of(rows) == {"captions.csv:2": "empty caption"}


def test_json_lines_of_which_none_parses_say_why(write: Write) -> None:
    folder = write(
        named(["1.jpg"]) | {"metadata.jsonl": '{"file_name": "1.jpg", "text": "x"},\n' * 2}
    )
    with pytest.raises(
        ValueError, match=r"metadata\.jsonl has no line that is JSON: line 1 is .*without commas"
    ):
        list_parts(SourceConfig(), folder)


@pytest.mark.parametrize("orient", ["lists", "objects"])
def test_columns_of_pandas_are_records(images: Path, orient: str) -> None:
    columns = {"image": list(CAPTIONS), "captions": list(CAPTIONS.values())}
    by_number = {
        name: {str(number): value for number, value in enumerate(values)}
        for name, values in columns.items()
    }
    (images / "captions.json").write_text(json.dumps(columns if orient == "lists" else by_number))
    assert captions_of(read_all(images)) == CAPTIONS


def test_an_image_is_looked_for_by_its_id_where_its_path_is_that_of_another_folder(
    images: Path,
) -> None:
    (images / "train_images").mkdir()
    (images / "a.jpg").rename(images / "train_images" / "a.jpg")
    records = [{"image_id": "a", "image_path": "train/a.jpg", "caption_str": "text"}]
    (images / "textcaps.json").write_text(json.dumps({"dataset_name": "textcaps", "data": records}))
    assert captions_of(read_all(images)) == {"a": ["text"]}


def test_names_as_in_addresses_are_files(images: Path) -> None:
    (images / "a.jpg").rename(images / "my cat.jpg")
    (images / "captions.json").write_text(
        json.dumps({"my%20cat.jpg": "a cat", "b.jpg": "a dog", "sub/c.jpg": "a cow"})
    )
    assert len(captions_of(read_all(images))) == 3


@pytest.mark.parametrize("image", ["data:image/png;base64,AAAA", "A" * 5000])
def test_an_image_inside_a_list_is_a_reject_of_few_words(images: Path, image: str) -> None:
    lines = [{"image": name, "caption": "text"} for name in CAPTIONS] + [
        {"image": image, "caption": "text"}
    ]
    (images / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    reject = next(row for row in read_all(images) if isinstance(row, Reject))
    assert (reject.key, reject.reason) == ("captions.jsonl:4", "unreadable record")
    assert len(reject.detail) < 200


def test_a_list_means_the_images_below_its_own_folder_where_others_have_the_same_names(
    write: Write,
) -> None:
    files = named(["kaggle/Images/1.jpg", "beside/1.jpg"])
    folder = write(
        {**files, "beside/1.txt": "a dog", "kaggle/captions.txt": "image,caption\n1.jpg,a cat\n"}
    )
    rows = read_all(folder, unread_budget=0.0)
    assert {row.image: row.captions for row in rows} == {
        b"kaggle/Images/1.jpg": ("a cat",),
        b"beside/1.jpg": ("a dog",),
    }
