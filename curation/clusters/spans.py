"""The spans that a pass over rows is cut into: they depend on the number of rows only."""

# At least 8,192 rows, so that messages to workers cost little beside the work; at most 131,072, so
# that little work is lost with a worker.
LARGEST_SPAN = 1 << 17
SMALLEST_SPAN = 1 << 13
SPANS = 16

Span = tuple[int, int]
"""Start and stop of a range of rows."""


def cut_spans(num_rows: int) -> list[Span]:
    """Ranges of rows, all of one length but the last. At most one worker per span can be busy."""
    # The division rounds up, so that there are SPANS spans at most before the limits apply.
    length = min(max(-(-num_rows // SPANS), SMALLEST_SPAN), LARGEST_SPAN)
    return [(start, min(start + length, num_rows)) for start in range(0, num_rows, length)]
