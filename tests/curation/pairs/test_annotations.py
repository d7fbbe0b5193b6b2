"""Karpathy, COCO, captions files and text files beside images: their splits, keys and bad
records.
"""

import json
from pathlib import Path

import pytest
from raw_pairs import (
    CAPTIONS,
    Draw,
    Encode,
    as_tar,
    captions_of,
    karpathy,
    read_all,
    reasons_of,
    write_coco,
    write_jsonl,
    write_karpathy,
    write_siblings,
)

from curation.pairs.annotations import AnnotatedImage, annotated_images, annotation_kind
from curation.pairs.config import SourceConfig
from curation.pairs.sample import Sample
from curation.pairs.sources import list_parts

ODD_CAPTIONS = ["x" * 10_000, "grin \N{GRINNING FACE}", "قطة على الطاولة", "two\nlines\0 and NUL"]


def test_text_files_beside_images_are_their_captions(images: Path) -> None:
    write_siblings(images)
    assert captions_of(read_all(images)) == CAPTIONS


def test_annotation_file_can_be_given_itself(images: Path) -> None:
    write_karpathy(images)
    write_jsonl(images)
    assert captions_of(read_all(images / "dataset.json", format="karpathy")) == CAPTIONS
    assert captions_of(read_all(images / "metadata.jsonl")) == CAPTIONS


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


def test_coco_file_named_after_another_split_is_not_taken(images: Path) -> None:
    write_coco(images)
    assert captions_of(read_all(images)) == CAPTIONS
    with pytest.raises(
        ValueError, match=r"split 'val' is empty: all 1 .*, annotations/captions_train2017\.json"
    ):
        read_all(images, split="val")
    given = (images / "annotations" / "captions_train2017.json").rename(
        images / "captions_train.json"
    )
    assert captions_of(read_all(given, split="val")) == CAPTIONS
    given.rename(images / "latest.json")
    assert captions_of(read_all(images)) == captions_of(read_all(images, split="")) == CAPTIONS


def test_captions_files_of_folders_named_after_splits_are_those_of_the_split(
    images: Path, tmp_path: Path, picture: Draw, encoded: Encode
) -> None:
    for seed, split in enumerate(("test", "train", "validation"), start=3):
        (images / split).mkdir()
        (images / split / f"{split}.jpg").write_bytes(encoded(picture(seed)))
        (images / split / "metadata.jsonl").write_text(
            json.dumps({"file_name": f"{split}.jpg", "text": split})
        )
    for source in (images, as_tar(images, tmp_path / "x.tar")):
        assert captions_of(read_all(source)) == {"train.jpg": ["train"]}
        assert captions_of(read_all(source, split="val")) == {"validation.jpg": ["validation"]}
        splits = ("test", "train", "validation")
        assert captions_of(read_all(source, split="")) == {
            f"{split}/{split}.jpg": [split] for split in splits
        }
    with pytest.raises(
        ValueError,
        match=r"'dev' is empty: all 3 files are named after another, test/metadata\.jsonl",
    ):
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
    assert [part.name for part in list_parts(SourceConfig(), images)] == ["dataset.json:0-3"]
    assert [part.name for part in list_parts(SourceConfig(format="coco"), images)] == [
        "annotations/captions_train2017.json:0-3"
    ]


def test_captions_files_of_several_folders_are_all_read_and_their_keys_told_apart(
    tmp_path: Path, picture: Draw, encoded: Encode
) -> None:
    for number, texts in enumerate(
        ({"a.jpg": "a cat"}, {"a.jpg": "a dog", "gone.jpg": "gone"}, {})
    ):
        folder = tmp_path / f"{number:03d}"
        folder.mkdir()
        (folder / "a.jpg").write_bytes(encoded(picture(number)))
        (folder / "captions.json").write_text(json.dumps(texts))
    rows = read_all(tmp_path)
    assert captions_of(rows[:2]) == {"000/a.jpg": ["a cat"], "001/a.jpg": ["a dog"]}
    assert [row.image for row in rows[:2]] == [
        (tmp_path / row.key).read_bytes() for row in rows[:2]
    ]
    assert reasons_of(rows[2:]) == {"001/gone.jpg": "missing file"}
    (tmp_path / "metadata.csv").write_text("image,caption\n000/a.jpg,nearest the root\n")
    captions = {"000/a.jpg": ["a cat", "nearest the root"], "001/a.jpg": ["a dog"]}
    assert captions_of([row for row in read_all(tmp_path) if isinstance(row, Sample)]) == captions


def test_odd_captions_are_kept_in_one_clean_line(images: Path) -> None:
    (images / "captions.json").write_text(
        json.dumps({"a.jpg": ODD_CAPTIONS, "b.jpg": ["\ud83d half", "z" * 10_001]})
    )
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


def test_commas_of_a_caption_without_quotes_are_the_captions_or_make_the_record_unreadable(
    images: Path,
) -> None:
    (images / "captions.csv").write_text(
        "image,caption\na.jpg,a cat, a dog,and a cow\nb.jpg,a dog\n"
    )
    assert captions_of(read_all(images)) == {
        "a.jpg": ["a cat, a dog,and a cow"],
        "b.jpg": ["a dog"],
    }
    (images / "captions.csv").write_text("caption,image\na cat, a dog,a.jpg\na dog,b.jpg\n")
    rows = read_all(images)
    assert captions_of(rows[:1]) == {"b.jpg": ["a dog"]}
    assert reasons_of(rows[1:]) == {"captions.csv:1": "unreadable record"}


@pytest.mark.parametrize("stray", ['"stop" says the sign', '"she said', 'the "A" sign'])
def test_quotes_in_tab_separated_captions_are_kept(images: Path, stray: str) -> None:
    (images / "captions.tsv").write_text(
        f"image\tcaption\na.jpg\t{stray}\nb.jpg\ta dog\nsub/c.jpg\ta cow\n"
    )
    assert captions_of(read_all(images)) == {
        "a.jpg": [stray],
        "b.jpg": ["a dog"],
        "sub/c.jpg": ["a cow"],
    }


def test_well_quoted_tab_separated_captions_lose_their_quotes(images: Path) -> None:
    (images / "captions.tsv").write_text('image\tcaption\na.jpg\t"a ""big""\n dog"\n')
    assert captions_of(read_all(images)) == {"a.jpg": ['a "big" dog']}


ODD_RECORDS = [
    ["a.jpg", "a cat"],
    5,
    None,
    {"caption": "no image"},
    {"image": "", "caption": "no name"},
]


@pytest.mark.parametrize("name", ["captions.json", "captions.jsonl"])
def test_each_record_without_an_image_name_is_a_reject(images: Path, name: str) -> None:
    records = [*ODD_RECORDS, {"image": "a.jpg", "caption": "fine"}]
    lines = "\n".join(map(json.dumps, records))
    (images / name).write_text(lines if name.endswith("l") else json.dumps(records))
    rows = read_all(images)
    assert reasons_of(rows[1:]) == {
        f"{name}:{number}": "unreadable record" for number in range(1, 6)
    }
    assert rows[0].captions == ("fine",)


def test_odd_records_of_karpathy_and_coco_are_rejects(images: Path) -> None:
    odd = [
        5,
        {"split": "train"},
        {"filename": 5},
        {"filename": "b.jpg", "filepath": None, "sentences": [None]},
    ]
    (images / "dataset.json").write_text(json.dumps({"images": [*karpathy()[:1], *odd]}))
    rows = read_all(images / "dataset.json")
    assert rows[0].captions == ("a cat", "one cat")
    odd_numbers = {f"dataset.json:{number}": "unreadable record" for number in (2, 3, 4)}
    assert reasons_of(rows[1:]) == {"b.jpg": "empty caption"} | odd_numbers
    table = [{"id": 0, "file_name": "a.jpg"}, {"id": [1], "file_name": "b.jpg"}, {"id": 2}, 5]
    captions = [
        {"image_id": 0, "caption": "a cat"},
        {"caption": "whose?"},
        {"image_id": [0], "caption": "x"},
        5,
    ]
    (images / "coco.json").write_text(json.dumps({"images": table, "annotations": captions}))
    rows = read_all(images / "coco.json")
    assert rows[0].captions == ("a cat",)
    expected = [
        f"coco.json:{table}:{number}" for table in ("annotations", "images") for number in (2, 3, 4)
    ]
    assert reasons_of(rows[1:]) == dict.fromkeys(expected, "unreadable record")


@pytest.mark.parametrize("content", [5, "text", None, [["a.jpg", "a cat"]]])
def test_captions_file_without_records_is_a_clear_error(images: Path, content: object) -> None:
    (images / "captions.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"captions\.json names no image"):
        read_all(images)


def test_a_missing_image_is_not_replaced_by_another_of_its_name(images: Path) -> None:
    for folder in ("dog", "x/cow", "y/cow"):
        (images / folder).mkdir(parents=True)
        (images / folder / "1.jpg").write_bytes((images / "a.jpg").read_bytes())
    (images / "lists").mkdir()
    names = [
        "cat/1.jpg",
        "cow/1.jpg",
        "1.jpg",
        "../dog/1.jpg",
        "/home/me/data/sub/c.jpg",
        "c.jpg",
        "data/a.jpg",
    ]
    (images / "lists" / "captions.json").write_text(json.dumps(dict.fromkeys(names, "text")))
    rows = read_all(images)
    ambiguous = dict.fromkeys(["cow/1.jpg", "1.jpg"], "ambiguous name")
    assert reasons_of(rows) == {"cat/1.jpg": "missing file"} | ambiguous
    assert [row.key for row in rows if isinstance(row, Sample)] == names[3:]


def test_karpathys_sentences_may_be_text_objects_or_tokens() -> None:
    sentences = ["bare", {"raw": "raw"}, {"tokens": ["only", "tokens"]}, {}]
    content = {
        "images": [
            {"filename": "a.jpg", "filepath": "x", "split": "val", "sentences": sentences},
            {"split": 5},
        ]
    }
    assert annotation_kind(content) == "karpathy"
    assert annotated_images(content) == [
        AnnotatedImage("1", "a.jpg", "x", "val", ("bare", "raw", "only tokens", None)),
        AnnotatedImage("2", "", "", "", (), 'it has no "filename"'),
    ]


def test_cocos_ids_may_be_numbers_or_text_and_captions_of_no_image_are_records_too() -> None:
    images = [{"id": "7", "file_name": "a.jpg"}, {"id": 8.0, "file_name": "b.jpg"}]
    captions = [
        {"image_id": 7, "caption": "one"},
        {"image_id": 8, "caption": ["two", "three"]},
        {"image_id": 9, "caption": "x"},
    ]
    content = {"images": images, "annotations": captions}
    assert annotation_kind(content) == "coco"
    assert annotated_images(content) == [
        AnnotatedImage("annotations:3", "", "", "", (), 'no record of "images" has the id 9'),
        AnnotatedImage("images:1", "a.jpg", "", "", ("one",)),
        AnnotatedImage("images:2", "b.jpg", "", "", ("two", "three")),
    ]


def test_annotations_without_captions_are_told_apart() -> None:
    boxes = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 1, "bbox": [0, 0, 1, 1]}],
    }
    assert annotation_kind(boxes) == "coco without captions"
    assert [annotation_kind(content) for content in (5, [], {"images": 5}, {"images": [5]})] == [
        None
    ] * 4
