"""Shuffled reading of embedding records: our shards against the usual formats, in CPU seconds and
as share of the disk.

Each contestant runs in processes of its own. The first checks that it gives every byte of every
record exactly once and warms the page cache; the second reads some epochs and keeps the quickest.
With --cold the files are then dropped from the page cache and read once more, in wall seconds,
beside a plain sequential read of them. Peers are installed beside the environment, since their
requirements would change it:

    python -m pip install --no-deps --target peers --requirement benchmarks/peers.txt
    PYTHONPATH=peers python -m benchmarks.loader --record-kb 4 256 --cold
"""

import importlib.util
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from benchmarks.cost import alone
from benchmarks.readers import CONTESTANTS, Records

READ_BYTES = 8_000_000
MOST_EPOCHS = 5
ENOUGH_S = 4.0


@dataclass(frozen=True)
class LoaderConfig:
    """What is timed."""

    record_kb: tuple[int, ...] = (4, 256)
    """Sizes of a record; 4: CLS and patch mean at width 1024; others: tokens of width 512."""
    megabytes: int = 400
    """Data of each size, in each format."""
    batch_mb: int = 16
    """Data of a batch."""
    cold: bool = False
    """Also read each once after its files were dropped from the page cache."""
    folder: Path | None = None
    """Where the data are written, and removed again; the system's temporary folder if not given."""
    contestants: tuple[str, ...] = tuple(CONTESTANTS)
    """Which to run."""


def checksum(name: str, folder: Path, records: Records) -> tuple[int, int]:
    """Number of records that came, and a sum of all their 8-byte words that does not depend on
    their order.
    """
    num = 0
    total = 0
    for columns in CONTESTANTS[name].read(folder, records):
        num += len(columns[0])
        total += sum(_sum_of_words(column) for column in columns)
    return num, total % 2**64


def expected_checksum(records: Records) -> tuple[int, int]:
    return records.num, sum(_sum_of_words(block) for block in records.blocks()) % 2**64


def _sum_of_words(values: np.ndarray) -> int:
    return int(np.ascontiguousarray(values).view(np.uint64).sum())


def read_through(name: str, folder: Path, records: Records) -> tuple[float, float]:
    """CPU and wall seconds of the quickest epoch of some, fewer when they are slow; a first one is
    not timed.
    """
    read_epoch(name, folder, records)
    timed: list[tuple[float, float]] = []
    while len(timed) < MOST_EPOCHS and sum(wall for _, wall in timed) < ENOUGH_S:
        timed.append(read_epoch(name, folder, records))
    return min(timed)


def read_epoch(name: str, folder: Path, records: Records) -> tuple[float, float]:
    wall = time.perf_counter()
    cpu = time.process_time()
    for _ in CONTESTANTS[name].read(folder, records):
        pass
    return time.process_time() - cpu, time.perf_counter() - wall


def read_cold(name: str, folder: Path, records: Records) -> tuple[float, float]:
    """Wall seconds of one pass from the disk, and those of reading the same files from end to
    end.
    """
    small = Records(2, records.words, 2)
    # Imports and compiled code do not count.
    with tempfile.TemporaryDirectory(dir=folder.parent) as warm:
        CONTESTANTS[name].write(Path(warm), small)
        read_epoch(name, Path(warm), small)

    drop_from_cache(folder)
    raw = time.perf_counter()
    for path in data_files(folder):
        with path.open("rb", buffering=0) as file:
            buffer = bytearray(READ_BYTES)
            while file.readinto(buffer):
                pass

    raw = time.perf_counter() - raw
    drop_from_cache(folder)
    return read_epoch(name, folder, records)[1], raw


def data_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def drop_from_cache(folder: Path) -> None:
    """Write what is dirty and let the kernel forget the files; nobody may have them mapped."""
    for path in data_files(folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def measure(
    config: LoaderConfig, name: str, records: Records, expected: tuple[int, int]
) -> tuple[float, str]:
    """CPU seconds of one pass, and the line to print; AssertionError when the bytes are not those
    that were written.
    """
    with tempfile.TemporaryDirectory(dir=config.folder) as temporary:
        folder = Path(temporary) / "data"
        folder.mkdir()
        alone(CONTESTANTS[name].write, folder, records)
        found = alone(checksum, name, folder, records)
        assert found == expected, f"{name} gives {found}, not {expected}"
        cpu_s, wall_s = alone(read_through, name, folder, records)
        size = records.num * records.words * 2 / 1e9
        line = (
            f"{size / cpu_s:8.2f} GB/cpu-s {records.num / cpu_s:12,.0f} records/cpu-s "
            f"{size / wall_s:8.2f} GB/s"
        )
        if config.cold:
            cold_s, raw_s = alone(read_cold, name, folder, records)
            line += f"   cold {size / cold_s:5.2f} GB/s, {raw_s / cold_s:4.0%} of the raw read"

    return cpu_s, line


def main(config: LoaderConfig) -> None:
    """Print one line a contestant, with its time as a multiple of the first one's."""
    for record_kb in config.record_kb:
        batch = max(1, config.batch_mb * 1024 // record_kb)
        records = Records(
            config.megabytes * 1024 // record_kb // batch * batch, record_kb * 512, batch
        )
        expected = alone(expected_checksum, records)
        print(f"{records.num} records of {record_kb} KB, batches of {batch}, shuffled", flush=True)
        first = 0.0
        for name in config.contestants:
            package = CONTESTANTS[name].package
            if package and importlib.util.find_spec(package) is None:
                print(
                    f"{name:22s} not run: {package} is not installed (see the head of "
                    "benchmarks/loader.py)",
                    flush=True,
                )
                continue
            cpu_s, line = measure(config, name, records, expected)
            first = first or cpu_s
            print(f"{name:22s} {line}   {cpu_s / first:6.2f} x the first", flush=True)


if __name__ == "__main__":
    main(tyro.cli(LoaderConfig))
