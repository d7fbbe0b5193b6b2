"""Words as people write them."""

import pytest

from cluster.words import duration, nearest, number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (11264.0, "11,264"),
        (1234567.8, "1,234,568"),
        (122.4, "122"),
        (9.873, "9.87"),
        (0.01234, "0.0123"),
        (-2.5, "-2.5"),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.44, "0.4 s"),
        (45.2, "45 s"),
        (59.7, "1 min 0 s"),
        (125, "2 min 5 s"),
        (3600, "1 h 0 min"),
        (4350, "1 h 12 min"),
        (3 * 86400 + 4 * 3600 + 59, "3 d 4 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_nearest_word_is_named() -> None:
    assert nearest("trian", ["train", "embed"]) == ": did you mean 'train'?"
    assert nearest("xyz", ["train", "embed"]) == ""
