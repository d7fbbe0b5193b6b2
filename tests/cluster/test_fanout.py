"""The pool finishes all items, once each, whatever happens to its workers."""

import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from cluster.fanout import Pool
from cluster.resources import Resources

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


class Arithmetic:
    """A worker with every way to answer, fail and die."""

    def __init__(self, offset: int) -> None:
        self.offset = offset

    def add(self, item: int, more: int = 0) -> int:
        return item + self.offset + more

    def refuse(self, item: str) -> NoReturn:
        raise ValueError(f"bad value {len(item)}")

    def die_once(self, item: int, folder: Path, is_signal: bool) -> int:
        """Die at the first sight of item 3, at a random place in the work of the others."""
        marker = folder / "died"
        if item == 3 and not marker.exists():
            marker.touch()
            if is_signal:
                os.kill(os.getpid(), signal.SIGKILL)
            os._exit(1)
        return item + self.offset

    def die(self, item: str) -> NoReturn:
        os._exit(1)

    def wait_for(self, item: Path) -> str:
        """Return once somebody has written to the named pipe, at once for a name that is none."""
        return item.read_text() if item.exists() else "no pipe"

    def note(self, item: int, journal: Path) -> None:
        with journal.open("a") as file:
            file.write(f"{item}\n")

    def count_up(self, item: int, folder: Path) -> Generator[int, None, int]:
        """Count to the item, one at a time; die half-way at the first sight of item 4."""
        marker = folder / "died"
        for count in range(1, item + 1):
            if item == 4 and count == 3 and not marker.exists():
                marker.touch()
                os._exit(1)
            yield count
        return item + self.offset

    def fail_half_way(self, item: int) -> Generator[int, None, int]:
        yield item
        raise ValueError(f"bad value {item}")

    def fill(self, megabytes: int) -> int:
        return int(np.ones(megabytes << 20, np.uint8).sum(dtype=np.int64))

    def threads(self, item: int) -> tuple[int, int, str]:
        import faiss
        import torch

        return torch.get_num_threads(), faiss.omp_get_max_threads(), os.environ["OMP_NUM_THREADS"]


class DiesAtBirth(Arithmetic):
    def __init__(self) -> None:
        os._exit(1)


class RefusesToStart(Arithmetic):
    def __init__(self) -> None:
        raise FileNotFoundError("no weights")


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(Arithmetic, 100, resources=Resources(workers=2)) as pool:
        yield pool


@pytest.mark.parametrize("count", [0, 1, 2, 25])
def test_map_answers_every_item_once(pool: Pool, count: int) -> None:
    items = list(range(count))
    assert sorted(pool.map("add", items, 1000)) == [(item, item + 1100) for item in items]


def test_map_accepts_equal_items(pool: Pool) -> None:
    assert list(pool.map("add", [7, 7, 7])) == [(7, 107)] * 3


def test_map_yields_in_completion_order(pool: Pool, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    results = pool.map("wait_for", [pipe, tmp_path / "none"])
    assert next(results) == (tmp_path / "none", "no pipe")
    pipe.write_text("written")
    assert list(results) == [(pipe, "written")]


def test_map_keeps_at_most_two_calls_in_flight_per_worker(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with Pool(Arithmetic, 0, resources=Resources(), max_workers=1) as pool:
        results = pool.map("note", list(range(20)), journal)
        for finished, _ in enumerate(results, start=1):
            assert finished <= len(journal.read_text().splitlines()) <= finished + 1
    assert journal.read_text().split() == [str(item) for item in range(20)]


@pytest.mark.parametrize("is_signal", [True, False])
def test_map_survives_the_death_of_a_worker(pool: Pool, tmp_path: Path, is_signal: bool) -> None:
    results = sorted(pool.map("die_once", list(range(10)), tmp_path, is_signal))
    assert results == [(item, item + 100) for item in range(10)]
    assert (tmp_path / "died").exists()


def test_a_generator_method_counts_and_returns(pool: Pool, tmp_path: Path) -> None:
    """A worker that dies half-way through an item takes its count of it along."""
    counts: list[int] = []
    items = [1, 2, 3, 4, 5]
    results = sorted(pool.map("count_up", items, tmp_path, on_count=counts.append))
    assert results == [(item, item + 100) for item in items]
    assert (tmp_path / "died").exists()
    assert counts[-1] == 0
    assert max(counts) <= sum(items)


def test_a_generator_method_raises_its_own_exception_with_the_item(pool: Pool) -> None:
    with pytest.raises(ValueError, match="bad value 7") as caught:
        list(pool.map("fail_half_way", [7]))
    assert any("Arithmetic.fail_half_way(7)" in note for note in caught.value.__notes__)
    assert list(pool.map("add", [1])) == [(1, 101)]


def test_map_gives_up_on_an_item_that_kills_every_worker(pool: Pool) -> None:
    with pytest.raises(
        RuntimeError,
        match=r"Arithmetic died 2 times on 'poison' \(workers lost on .*: \d+\): a worker must",
    ):
        list(pool.map("die", ["poison"], retries=1))
    assert list(pool.map("add", [1])) == [(1, 101)]


def test_map_raises_the_workers_own_exception_with_the_item(pool: Pool) -> None:
    with pytest.raises(ValueError, match="bad value 3") as caught:
        list(pool.map("refuse", ["abc"]))
    assert any("Arithmetic.refuse('abc')" in note for note in caught.value.__notes__)
    assert list(pool.map("add", [1])) == [(1, 101)]


def test_map_raises_the_exception_of_a_worker_that_cannot_be_built() -> None:
    with (
        Pool(RefusesToStart, resources=Resources(workers=1)) as pool,
        pytest.raises(FileNotFoundError, match="no weights"),
    ):
        list(pool.map("add", [1]))


def test_map_gives_up_on_a_worker_that_always_dies_at_birth() -> None:
    with (
        Pool(DiesAtBirth, resources=Resources(workers=1)) as pool,
        pytest.raises(
            RuntimeError, match=r"DiesAtBirth died 4 times while starting \(workers lost on .*: 4\)"
        ),
    ):
        list(pool.map("add", [1]))


@pytest.mark.parametrize("cpus", [0.5, 2.0])
def test_workers_use_as_many_threads_as_cores(cpus: float) -> None:
    with Pool(Arithmetic, 0, resources=Resources(workers=1, cpus=cpus)) as pool:
        [(_, threads)] = pool.map("threads", [0])
    expected = max(1, int(cpus))
    assert threads == (expected, expected, str(expected))


def test_the_peak_memory_of_every_worker_is_kept() -> None:
    with Pool(Arithmetic, 0, resources=Resources(workers=1)) as pool:
        assert dict(pool.map("fill", [1])) == {1: 1 << 20}
        (little,) = pool.peaks_mb.values()
        assert sorted(size for _, size in pool.map("fill", [300, 2])) == [2 << 20, 300 << 20]
        (most,) = pool.peaks_mb.values()
    assert little + 250 < most
