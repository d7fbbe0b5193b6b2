"""metrics.jsonl: a line every few steps, cut at a checkpoint, followed while it grows, summarized at the end."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.files import read_jsonl, write_atomic
from cluster.progress import progress

METRICS = "metrics.jsonl"
FOLLOW_S = 0.5


def keep_metrics(path: Path, step: int) -> None:
    """Drop the lines of steps after a checkpoint: they will be written again."""
    rows = [row for row in read_jsonl(path) if row["step"] <= step]
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))


@contextmanager
def followed(metrics: Path, num_steps: int) -> Iterator[None]:
    """A progress bar that follows the metrics file while the body runs."""
    ended = threading.Event()

    def follow() -> None:
        shown = 0
        with progress(num_steps, "train", "steps") as advance:
            is_ended = False
            while not is_ended:
                is_ended = ended.wait(FOLLOW_S)
                row = (read_jsonl(metrics) or [{"step": 0}])[-1]
                if row["step"] > shown:
                    names = ("loss", "pairs_per_s")
                    advance(row["step"] - shown, **{name: row[name] for name in names if name in row})
                    shown = row["step"]

    thread = threading.Thread(target=follow, name="train-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def summary(rows: list[dict], batch_size: int) -> dict[str, float]:
    """The last value of every metric, those of the held-out pairs first; speed and cut captions over the whole run."""
    last: dict[str, float] = {}
    for row in rows:
        last |= row
    del last["time"]

    num_cut = sum(row["captions_cut"] for row in rows)
    steps = [row["step"] for row in rows]
    weights = [after - before for before, after in zip([0, *steps], steps, strict=False)]
    seconds = sum(batch_size * count / row["pairs_per_s"] for count, row in zip(weights, rows, strict=True))
    num_pairs = batch_size * steps[-1]

    whole = {"pairs_per_s": num_pairs / seconds, "captions_cut": num_cut, "captions_cut_share": num_cut / num_pairs}
    last = {name: float(value) for name, value in (last | whole).items()}
    return dict(sorted(last.items(), key=lambda item: not item[0].startswith("val_")))
