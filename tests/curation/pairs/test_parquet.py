"""Parquet: columns, parts, keys, bad files."""

import base64
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_pairs import CAPTIONS, Draw, Encode, captions_of, read_all, reasons_of

from curation.pairs.config import SourceConfig
from curation.pairs.sample import Sample
from curation.pairs.sources import list_parts, open_source, read_part


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


def test_parquet_columns_keys_split_and_bad_rows(
    images: Path, picture: Draw, encoded: Encode
) -> None:
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
    path = images / "pairs.parquet"
    texts = [f"text {number}" for number in range(1000)]
    split = ["test" if number % 7 == 3 else "train" for number in range(1000)]
    table = pa.table(
        {"image": [b"%d" % number for number in range(1000)], "text": texts, "split": split}
    )
    pq.write_table(table, path, row_group_size=row_group_size)
    config = SourceConfig(part_rows=part_rows)
    parts = list_parts(config, path)
    assert [part.num_rows for part in parts] == expected
    rows = [row for part in parts for row in read_part(config, part)]
    assert rows == [
        Sample(f"pairs/{number:08d}", b"%d" % number, (texts[number],), row.source)
        for row, number in zip(
            rows, (number for number in range(1000) if number % 7 != 3), strict=True
        )
    ]


@pytest.mark.parametrize("row_group_size", [2, 9])
def test_parquet_keys_repeated_in_another_part_are_seen(images: Path, row_group_size: int) -> None:
    keys = [1, 2, 1, 3, 4, 2, 5, 6, 6]
    split = ["train"] * 7 + ["test", "train"]
    table = pa.table({"image": [b"x"] * 9, "text": ["text"] * 9, "id": keys, "split": split})
    pq.write_table(table, images / "pairs.parquet", row_group_size=row_group_size)
    rows = read_all(images / "pairs.parquet", key_column="id", part_rows=2)
    assert [row.key for row in rows if isinstance(row, Sample)] == [
        f"pairs/{key}" for key in (1, 2, 3, 4, 5, 6)
    ]
    assert reasons_of(rows) == {"pairs/1": "duplicate key", "pairs/2": "duplicate key"}
    assert (
        len(list_parts(SourceConfig(key_column="id", part_rows=2), images / "pairs.parquet")) == 5
    )


def test_parquet_without_the_column_names_those_it_has(tmp_path: Path) -> None:
    pq.write_table(pa.table({"pixels": [1], "alt": [""]}), tmp_path / "x.parquet")
    with pytest.raises(
        ValueError, match=r"no image column .*its columns: pixels, alt.*source\.image_column"
    ):
        list_parts(SourceConfig(), tmp_path / "x.parquet")
    pq.write_table(pa.table({"one": [b"x"], "two": [b"x"], "alt": [""]}), tmp_path / "x.parquet")
    with pytest.raises(
        ValueError, match=r"several image columns \(one, two\).*--embed\.source\.image-column"
    ):
        list_parts(SourceConfig(), tmp_path / "x.parquet")


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(ValueError, match=r"x\.parquet is not a readable Parquet file"):
        list_parts(SourceConfig(), tmp_path)


@pytest.mark.parametrize("form", ["base64", "urlsafe", "data"])
def test_images_as_base64_are_decoded(images: Path, form: str) -> None:
    image = (images / "a.jpg").read_bytes()
    encode = base64.urlsafe_b64encode if form == "urlsafe" else base64.b64encode
    text = ("data:image/jpeg;base64," if form == "data" else "") + encode(image).decode()
    pq.write_table(pa.table({"image": [text], "caption": ["a cat"]}), images / "x.parquet")
    (sample,) = read_all(images / "x.parquet")
    assert sample.image == image


def test_texts_that_can_be_no_file_and_addresses_are_short_rejects(tmp_path: Path) -> None:
    texts = ["x/" * 10_000, "https://x.org/a.jpg?" + "y" * 500, "\0", "gone.jpg"]
    pq.write_table(pa.table({"image": texts, "caption": ["a cat"] * 4}), tmp_path / "x.parquet")
    rows = read_all(tmp_path / "x.parquet")
    reasons = ["missing file", "image is an address", "missing file", "missing file"]
    assert [row.reason for row in rows] == reasons
    assert max(len(row.detail) for row in rows) < 200


def test_captions_lie_under_a_path_or_in_several_columns(images: Path) -> None:
    image = (images / "a.jpg").read_bytes()
    talk = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "a cat"}]
    record = {"image": image, "talk": talk, "caption_0": "one", "caption_1": "two"}
    pq.write_table(pa.Table.from_pylist([record]), images / "x.parquet")
    for setting, expected in (
        (None, ("one", "two")),
        ("talk.1.value", ("a cat",)),
        ("caption_1", ("two",)),
    ):
        (sample,) = read_all(images / "x.parquet", caption_column=setting)
        assert sample.captions == expected


def test_metadata_parquet_names_images_beside_it(images: Path) -> None:
    pq.write_table(
        pa.table({"file_name": ["a.jpg", "b.jpg"], "prompt": ["a cat", "a dog"]}),
        images / "metadata.parquet",
    )
    source = open_source(SourceConfig(), images)
    assert list(captions_of(read_all(images)).values()) == [["a cat"], ["a dog"]]
    assert source.account.summary()["files_of_pairs"] == 2
    assert list(source.account.unread().values()) == [["sub/c.jpg"]]
