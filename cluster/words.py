"""The nearest valid word, for error messages."""

import difflib
from collections.abc import Iterable


def nearest(word: str, words: Iterable[str]) -> str:
    """': did you mean X?', or nothing when no word is near."""
    near = difflib.get_close_matches(word, list(words), 1)
    return f": did you mean {near[0]!r}?" if near else ""
