"""Text for people: the nearest valid name; numbers and durations."""

import difflib
from collections.abc import Iterable

MINUTE_S = 60
HOUR_S = 60 * MINUTE_S
DAY_S = 24 * HOUR_S


def nearest(word: str, words: Iterable[str]) -> str:
    """': did you mean X?', or an empty text if no word is near."""
    near = difflib.get_close_matches(word, list(words), 1)
    return f": did you mean {near[0]!r}?" if near else ""


def number(value: float | int) -> str:
    """Three significant digits, or a whole number with separators: 0.0123; 9.87; 122; 11,264."""
    is_long = abs(value) >= 100 or float(value).is_integer()
    return f"{value:,.0f}" if is_long else f"{value:.3g}"


def duration(seconds: float | int) -> str:
    """The two largest units: 0.4 s, 45 s, 2 min 5 s, 1 h 12 min, 3 d 4 h."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"

    # Rounded first, so that 59.7 s is 1 min 0 s and not 60 s.
    whole = round(seconds)
    if whole < MINUTE_S:
        return f"{whole} s"
    if whole < HOUR_S:
        return f"{whole // MINUTE_S} min {whole % MINUTE_S} s"
    if whole < DAY_S:
        return f"{whole // HOUR_S} h {whole % HOUR_S // MINUTE_S} min"

    return f"{whole // DAY_S} d {whole % DAY_S // HOUR_S} h"


def counted(count: int, noun: str) -> str:
    """'1 node', '2 nodes'."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
