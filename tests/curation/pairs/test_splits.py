"""Which files hold the pairs of a split: a table of names."""

from pathlib import Path

import pytest

from curation.pairs.ranges import ByteRange
from curation.pairs.splits import captions_files, is_of_other_split, of_split
from curation.pairs.tree import Tree

OF_ALL = ["a.tar", "000/captions.json", "latest.json", "evaluation/trainees.csv", "trainval.json", "restval.tar"]


@pytest.mark.parametrize("split", ["train", "val", "test", ""])
@pytest.mark.parametrize("name", OF_ALL)
def test_names_without_a_split_belong_to_all(name: str, split: str) -> None:
    assert not is_of_other_split(name, split)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00002.parquet", "train"),
        ("data/validation-0.parquet", "val"),
        ("annotations/captions_train2017.json", "train"),
        ("annotations/captions_train2017.json", "train2017"),
        ("Test/metadata.jsonl", "TEST"),
        ("test-dev2017/0.tar", "test"),
        ("latest-test.tar", "test"),
    ],
)
def test_a_split_is_named_by_a_word_of_the_file_or_its_folders(name: str, split: str) -> None:
    assert not is_of_other_split(name, split)
    assert not is_of_other_split(name, "")
    assert is_of_other_split(name, "another")


@pytest.mark.parametrize("name", ["test/train.json", "latest-train.tar", "val/0/captions.csv"])
def test_one_folder_of_another_split_is_enough(name: str) -> None:
    assert is_of_other_split(name, "test")


def test_files_of_the_split_are_kept_in_order_and_a_split_without_any_is_an_error() -> None:
    names = ["train-1.tar", "more.tar", "test-0.tar", "train-0.tar"]
    assert of_split(names, "train") == ["train-1.tar", "more.tar", "train-0.tar"]
    assert of_split(names, "") == names
    assert of_split([], "train") == []
    with pytest.raises(ValueError, match=r"'val' is empty: all 1 files are named after another, test-0\.tar"):
        of_split(["test-0.tar"], "val")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["captions.csv", "captions.json", "a/captions.json"], ["captions.json"]),
        (["b/metadata.csv", "a/captions.json", "a/b/captions.json"], ["a/captions.json", "b/metadata.csv"]),
        (["data/train/metadata.csv", "test/metadata.csv"], ["data/train/metadata.csv"]),
        (["a/captions.txt", "b/captions.txt"], ["a/captions.txt", "b/captions.txt"]),
        (["captions.txt", "a.txt"], []),
        (["a.json"], []),
    ],
)
def test_captions_files_are_the_nearest_one_a_folder(names: list[str], expected: list[str]) -> None:
    tree = Tree(Path("data"), False, {name: ByteRange(name, 0, 1) for name in names})
    assert captions_files(tree, "train") == expected
