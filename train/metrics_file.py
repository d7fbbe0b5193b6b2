"""metrics.jsonl: written every few steps, cut back on resume, followed as it grows, summarized."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.files import read_jsonl, write_atomic
from cluster.progress import progress

METRICS = "metrics.jsonl"
STEP = "step.txt"
FOLLOW_S = 0.5  # between two looks of the progress bar
NOTE_S = 1.0
SHOWN = ("loss", "pairs_per_s")  # metrics beside the progress bar


class StepNote:
    """Tells the driver how many steps are finished, between two lines of metrics.

    It writes at most once per second.
    """

    def __init__(self, metrics: Path) -> None:
        self.path = metrics.with_name(STEP)
        self.written_s = -NOTE_S

    def __call__(self, step: int) -> None:
        if time.monotonic() - self.written_s >= NOTE_S:
            self.path.write_text(f"{step}\n")
            self.written_s = time.monotonic()


def last_step(metrics: Path) -> int:
    """The last step that was noted beside a metrics file; 0 without a readable note."""
    try:
        return int(metrics.with_name(STEP).read_text())
    except (FileNotFoundError, ValueError):  # no note yet, or one that is being written: empty
        return 0


def keep_metrics(path: Path, step: int) -> None:
    """Drop the lines of steps after a checkpoint: they will be written again."""
    rows = [row for row in read_jsonl(path) if row["step"] <= step]
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))


@contextmanager
def followed(metrics: Path, num_steps: int) -> Iterator[None]:
    """A progress bar that follows the metrics file while the body runs."""
    ended = threading.Event()
    started_at = last_step(metrics)

    def follow() -> None:
        shown = started_at
        with progress(num_steps - started_at, "train", "steps") as meter:
            # The file is read once more after the end, so that the bar shows the last step.
            is_ended = False
            while not is_ended:
                is_ended = ended.wait(FOLLOW_S)
                rows = read_jsonl(metrics)
                row = rows[-1] if rows else {}
                reached = max(last_step(metrics), row.get("step", 0))
                meter(max(0, reached - shown), **{name: row[name] for name in SHOWN if name in row})
                shown = max(shown, reached)

    thread = threading.Thread(target=follow, name="train-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def summary(rows: list[dict], batch_size: int) -> dict[str, float]:
    """The last value of every metric, those of the held-out pairs first.

    Speed and cut captions are over the whole run: pairs per second, number and share of captions.
    """
    # Not every line has every metric: of each, the last line that has it counts.
    last: dict[str, float] = {}
    for row in rows:
        last |= row

    del last["time"]

    num_cut = sum(row["captions_cut"] for row in rows)

    # A line's rate holds for the steps since the line before it. Lines at steps 10 and 12 stand for
    # 10 and 2 steps: their times add up, their rates do not.
    steps = [row["step"] for row in rows]
    num_steps = [after - before for before, after in zip([0, *steps], steps, strict=False)]
    seconds = sum(
        batch_size * count / row["pairs_per_s"] for count, row in zip(num_steps, rows, strict=True)
    )
    num_pairs = batch_size * steps[-1]

    whole = {
        "pairs_per_s": num_pairs / seconds,
        "captions_cut": num_cut,
        "captions_cut_share": num_cut / num_pairs,
    }
    last = {name: float(value) for name, value in (last | whole).items()}

    return dict(sorted(last.items(), key=lambda item: not item[0].startswith("val_")))
