"""Which files of a source belong to another split than the wanted one, by their names alone.

A folder or file belongs to a split if its name says nothing else (`test/`,
`train-00000-of-00002.parquet`, `captions_val2017.json`). If the split is one word among others
(`val_gardena/`, `flickr30k-test.tar`), it may be a word of the subject: it counts only if a name
beside it has the wanted split (`flickr30k-train.tar`).
"""

import re
from collections.abc import Iterable

SPLIT_NAMES = {"train", "val", "valid", "validation", "dev", "test"}
NEUTRAL_WORDS = {
    *(
        "of",
        "captions",
        "caption",
        "images",
        "image",
        "annotations",
        "metadata",
        "data",
        "dataset",
        "coco",
        "shard",
    ),
    *(
        "shards",
        "part",
        "parts",
        "split",
        "set",
        "results",
        "pairs",
        "list",
        "file",
        "files",
        "wds",
        "restval",
    ),
}
"""Words that say nothing about the subject: a name of these and a split belongs to the split."""


class Splits:
    """Decides for the files of one source, whose names are compared with those beside them."""

    def __init__(self, names: Iterable[str], split: str) -> None:
        self.split = split.lower()
        self.doubtful: dict[str, str] = {}
        """By file or folder that is read although its name has another split's word: the word."""
        self._beside: dict[str, set[str]] = {}
        self._known: dict[str, bool] = {}

        # By folder, the names in it that have the wanted split. A set, because files share folders.
        for folder, part in {pair for name in names for pair in _steps(name)}:
            if _names_split(_words(part), self.split):
                self._beside.setdefault(folder, set()).add(part)

    def is_other(self, name: str) -> bool:
        """Whether a file, or a folder above it, belongs to another split by its name.

        Always False if all splits are wanted.
        """
        return bool(self.split) and any(
            self._is_other(folder, part) for folder, part in _steps(name)
        )

    def is_in_folder_of_other(self, name: str) -> bool:
        """The same by the folders alone, for images, whose own names may be anything."""
        folder = name.rpartition("/")[0]
        return bool(folder) and self.is_other(f"{folder}/")

    def _is_other(self, folder: str, part: str) -> bool:
        path = f"{folder}/{part}"
        if path not in self._known:
            self._known[path] = self._judge(folder, part)
        return self._known[path]

    def _judge(self, folder: str, part: str) -> bool:
        words = _words(part)
        splits = [word for word in words if word in SPLIT_NAMES]
        if not splits or _names_split(words, self.split):
            return False
        if all(word in SPLIT_NAMES or word in NEUTRAL_WORDS for word in words):
            return True
        if self._beside.get(folder):
            return True
        self.doubtful[f"{folder}/{part}".lstrip("/")] = splits[0]
        return False


def has_split_folders(names: Iterable[str]) -> bool:
    """Whether a folder of any of these names has a split's name, alone or among other words."""
    folders = {name.rpartition("/")[0] for name in names}
    return any(
        not SPLIT_NAMES.isdisjoint(_words(part)) for folder in folders for part in folder.split("/")
    )


def _steps(name: str) -> list[tuple[str, str]]:
    """(folder, name in it) of each folder of a path, then of the file.

    The path "a/b.tar" gives ("", "a") and ("a", "b.tar").
    """
    parts = name.split("/")
    return [("/".join(parts[:index]), part) for index, part in enumerate(parts) if part]


def _words(part: str) -> list[str]:
    """Words of a name in lower case, without suffix and digits.

    captions_train2017.json has the words captions and train.
    """
    # A longer "suffix" is a word after a dot, as in flickr30k.train.
    stem, dot, suffix = part.rpartition(".")
    return re.findall("[a-z]+", (stem if dot and len(suffix) <= 7 else part).lower())


def _names_split(words: list[str], split: str) -> bool:
    """Whether the words of a name have the wanted split, also in a longer form.

    validation counts for val. The wanted split may have digits, such as train2017.
    """
    wanted = re.sub("[^a-z]", "", split)
    return bool(wanted) and any(
        word.startswith(wanted) and word in SPLIT_NAMES | {wanted} for word in words
    )
