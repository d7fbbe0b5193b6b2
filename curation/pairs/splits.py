"""Which files of a source belong to another split than the wanted one, by their names alone.

A folder or file is of a split when its name says nothing else (`test/`,
`train-00000-of-00002.parquet`, `captions_val2017.json`). Where a split's name is one word of
several (`val_gardena/`, `flickr30k-test.tar`), it counts only if a name beside it has the wanted
split (`flickr30k-train.tar`): it may be a word of the subject.
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
"""Words beside which a split's name is still all that a name says."""


class Splits:
    """Decides for the files of one source; names are compared with those that lie beside them."""

    def __init__(self, names: Iterable[str], split: str) -> None:
        self.split = split.lower()
        self.doubtful: dict[str, str] = {}
        """By folder or file whose name holds another split's as one word of several, and is read:
        that word.
        """
        self._beside: dict[str, set[str]] = {}
        self._known: dict[str, bool] = {}
        for folder, part in {pair for name in names for pair in _steps(name)}:
            if _names_split(_words(part), self.split):
                self._beside.setdefault(folder, set()).add(part)

    def is_other(self, name: str) -> bool:
        """Whether a file's name, or a folder's above it, is another split's; never where all splits
        are wanted.
        """
        return bool(self.split) and any(
            self._is_other(folder, part) for folder, part in _steps(name)
        )

    def is_in_folder_of_other(self, name: str) -> bool:
        """The same, by the folders alone: single images may be called anything."""
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


def _steps(name: str) -> list[tuple[str, str]]:
    """(folder, name in it) of a file and of each folder above it."""
    parts = name.split("/")
    return [("/".join(parts[:index]), part) for index, part in enumerate(parts) if part]


def _words(part: str) -> list[str]:
    """Words of a name in lower case, without its suffix and digits: captions_train2017.json has
    captions, train.
    """
    stem, dot, suffix = part.rpartition(".")
    return re.findall("[a-z]+", (stem if dot and len(suffix) <= 7 else part).lower())


def _names_split(words: list[str], split: str) -> bool:
    """Whether a name holds the wanted split, or begins with it: validation for val, and train for
    train2017.
    """
    wanted = re.sub("[^a-z]", "", split)
    return bool(wanted) and any(
        word.startswith(wanted) and word in SPLIT_NAMES | {wanted} for word in words
    )
