"""Which files belong to another split: a table of names."""

import pytest

from curation.pairs.splits import Splits

OF_ALL = [
    "a.tar",
    "000/captions.json",
    "latest.json",
    "evaluation/trainees.csv",
    "trainval.json",
    "restval.tar",
]


def others(names: list[str], split: str) -> list[str]:
    splits = Splits(names, split)
    return [name for name in names if splits.is_other(name)]


@pytest.mark.parametrize("split", ["train", "val", "test", ""])
def test_names_without_a_split_belong_to_all(split: str) -> None:
    assert others(OF_ALL, split) == []


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00002.parquet", "train"),
        ("data/validation-0.parquet", "val"),
        ("annotations/captions_train2017.json", "train"),
        ("annotations/captions_train2017.json", "train2017"),
        ("Test/metadata.jsonl", "TEST"),
        ("test-dev2017/0.tar", "test"),
    ],
)
def test_a_name_that_says_nothing_but_a_split_is_of_that_split(name: str, split: str) -> None:
    assert others([name], split) == []
    assert others([name], "") == []
    assert others([name], "another") == [name]


@pytest.mark.parametrize("name", ["test/train.json", "val/0/captions.csv"])
def test_one_folder_of_another_split_is_enough(name: str) -> None:
    assert others([name], "test") == [name]


@pytest.mark.parametrize(
    "name", ["val_gardena/a.json", "colour-test-charts-00.tar", "dev-boards/a.csv"]
)
def test_a_split_among_other_words_counts_only_beside_a_name_of_the_wanted_split(name: str) -> None:
    folder = name.partition("/")[0]
    splits = Splits([name, "dolomites/a.json"], "train")
    assert not splits.is_other(name)
    assert list(splits.doubtful) == [folder]
    assert others([name, "train/a.json"], "train") == [name]
    assert others([f"other/{name}", "train/a.json"], "train") == []


def test_names_that_differ_in_their_split_alone_are_of_splits() -> None:
    names = ["flickr30k-train-0.tar", "flickr30k-test-0.tar", "flickr30k-more.tar"]
    assert others(names, "train") == names[1:2]
    assert others(names, "test") == names[:1]


def test_single_images_may_be_called_anything() -> None:
    splits = Splits(["test/", "cars/"], "train")
    assert not splits.is_in_folder_of_other("cars/test.jpg")
    assert not splits.is_in_folder_of_other("test.jpg")
    assert splits.is_in_folder_of_other("test/1.jpg")
