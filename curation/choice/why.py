"""The decision on one pair, read from the decisions of a curate folder."""

import math
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

DECISIONS = "decisions.arrow"


def read_decisions(folder: Path) -> pa.Table:
    """The decision table of a curate folder, memory-mapped."""
    return pa.ipc.open_file(pa.memory_map(str(folder / DECISIONS))).read_all()


def why(folder: Path, key: str) -> dict[str, object]:
    """The decision on one pair: clusters, keep probabilities, reason, and the image it copies.

    Keys of the result are the columns of the table, and `row`; NaN becomes None. Raises KeyError
    when no row of the pool has that key.
    """
    table = read_decisions(folder)
    row = pc.index(table["key"], pa.scalar(key, table["key"].type)).as_py()
    if row < 0:
        raise KeyError(
            f"no pair {key!r} in {folder / DECISIONS}: keys are those of the embeddings; see its "
            "key column"
        )

    answer: dict[str, object] = {"row": row}
    for name in table.column_names:
        value = table[name][row].as_py()
        answer[name] = None if isinstance(value, float) and math.isnan(value) else value

    return answer
