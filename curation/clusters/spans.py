"""The spans that a pass over rows is cut into: they depend on the number of rows only."""

LARGEST_SPAN = 1 << 17
SMALLEST_SPAN = 1 << 13
SPANS = 16

Span = tuple[int, int]
"""Start and stop of a range of rows."""


def cut_spans(num_rows: int) -> list[Span]:
    """Row ranges whose length depends on `num_rows` only; at most this many workers can be busy."""
    length = min(max(-(-num_rows // SPANS), SMALLEST_SPAN), LARGEST_SPAN)
    return [(start, min(start + length, num_rows)) for start in range(0, num_rows, length)]
