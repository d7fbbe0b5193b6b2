"""A job that gets nowhere ends; one that finishes a little in each try does not."""

from pathlib import Path

import pytest

from cluster.endings import JOB_FOLDER, FruitlessError
from cluster.tries import note_failed_start, note_try


def test_a_job_that_finishes_something_in_every_other_try_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(JOB_FOLDER, str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    for finished in ("nothing", "nothing", "one shard", "one shard", "two shards"):
        note_try(finished)


def test_two_tries_in_a_row_that_finish_nothing_end_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(JOB_FOLDER, str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    for finished in ("nothing", "one shard", "one shard"):
        note_try(finished)
    with pytest.raises(FruitlessError, match="2 tries of this job in a row have finished nothing"):
        note_try("one shard")


def test_a_start_of_ray_that_fails_twice_ends_the_job_and_names_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(JOB_FOLDER, str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    note_try("nothing")
    note_failed_start(tmp_path, "node-7")
    with pytest.raises(FruitlessError, match=r"finished nothing \(2 on node-7\)"):
        note_failed_start(tmp_path, "node-7")


def test_outside_of_a_job_nothing_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(JOB_FOLDER, raising=False)
    for _ in range(5):
        note_try("nothing")
