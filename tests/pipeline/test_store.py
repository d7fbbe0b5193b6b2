"""The store: done means recorded; damage is named; one builder at a time."""

import json
import multiprocessing
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from curation.shards.manifest import Manifest, write_manifest
from curation.shards.schema import HASHES, EmbeddingSpec
from curation.shards.writer import write_shard
from pipeline.execution import CHOICES, ERROR
from pipeline.provenance import make_record
from pipeline.record import DamagedOutputError
from pipeline.step import Output, Step
from pipeline.store import Store
from train.failure import REASON
from train.interruption import BEGUN, GROW, STOP
from train.metrics_file import METRICS
from train.metrics_file import STEP as NOTED_STEP
from train.stall import STALLED
from train.train import RAY_FOLDER


def nothing(config: object, *, out: Path, **inputs: Path) -> Mapping[str, float]:
    return {}


STEP = Step("make", "make", nothing, {"size": 3})


def finish(store: Store, step: Step = STEP, text: str = "four") -> Path:
    out = store.partial(step)
    (out / "deep").mkdir(parents=True)
    (out / "deep" / "file.txt").write_text(text)
    store.commit(step, make_record(step, {"rows": 4.0}, out, datetime.now(UTC), 1.5, {}))
    return store.folder(step)


def test_only_a_record_makes_an_output_done(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.folder(STEP).mkdir(parents=True)
    assert store.record(STEP) is None
    store.folder(STEP).rmdir()
    folder = finish(store)
    record = store.record(STEP)
    assert record is not None
    assert record.summary == {"rows": 4.0}
    assert record.files == {"deep/file.txt": 4}
    assert not store.partial(STEP).exists()
    assert json.loads((folder / "record.json").read_text())["config"] == {"size": 3}


def test_commit_replaces_an_earlier_output_whole(tmp_path: Path) -> None:
    store = Store(tmp_path)
    finish(store)
    finish(store, text="longer")
    assert (store.folder(STEP) / "deep" / "file.txt").read_text() == "longer"
    assert [path.name for path in (tmp_path / "make").iterdir()] == [store.folder(STEP).name]


def test_an_output_is_replaced_again_after_a_kill_between_the_renames(tmp_path: Path) -> None:
    store = Store(tmp_path)
    shutil.copytree(finish(store), store.folder(STEP).with_suffix(".replaced"))
    finish(store, text="longer")
    assert (store.folder(STEP) / "deep" / "file.txt").read_text() == "longer"
    assert [path.name for path in (tmp_path / "make").iterdir()] == [store.folder(STEP).name]


def test_inputs_resolve_inside_outputs(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.resolve(Output(STEP, "deep/file.txt")) == store.folder(STEP) / "deep" / "file.txt"


def test_records_are_of_finished_outputs_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = finish(store)
    shutil.copytree(folder, store.partial(STEP))  # killed before it was renamed
    assert [store.folder(record) for record in store.records()] == [folder]


def test_a_flipped_byte_is_found_in_any_output_of_the_workspace(tmp_path: Path) -> None:
    store = Store(tmp_path)
    file = finish(store) / "deep" / "file.txt"
    [record] = store.records()
    assert store.verify(record) == store.verify(STEP) == []
    file.write_text("fouR")
    assert store.verify(record) == [f"{file} has another sha256 than recorded: it was changed"]


def test_shards_are_verified_by_their_manifest(tmp_path: Path) -> None:
    store = Store(tmp_path)
    out = Store(tmp_path).partial(STEP)
    out.mkdir(parents=True)
    spec = EmbeddingSpec("random-vit", "d", "random", 42, 2, 0, (1, 1), "pooled", "float16", "", 0)
    rows = {"key": ["a"], "source": ["x"], "captions": [["red"]], "thumbnail": [b""]}
    rows |= {name: np.ones((1, 1, 2), np.float32) for name in spec.vector_columns()}
    rows |= {name: np.zeros(1, np.uint64) for name in HASHES}
    write_manifest(out, Manifest(spec, (write_shard(out / "shard-00000.arrow", spec, [rows]),)))
    store.commit(STEP, make_record(STEP, {}, out, datetime.now(UTC), 1.5, {}))
    [record] = store.records()
    assert list(record.checksums) == ["manifest.json"]
    shard = store.folder(STEP) / "shard-00000.arrow"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert len(store.verify(record)) == 1


@pytest.mark.parametrize(
    "edit",
    [
        {"summary": {"rows": 5.0}},
        {"config": {"size": 4}},
        {"checksums": {}},
        {"commit": "0" * 40},
        {"files": None},
        {"files": {"deep/file.txt": "four"}},
        {"summary": {"rows": "many"}},
        {"summary": "done"},
        {"seconds": True},
        {"checksums": ["x"]},
    ],
)
def test_an_edited_record_is_damage(tmp_path: Path, edit: dict) -> None:
    store = Store(tmp_path)
    path = finish(store) / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | edit))
    with pytest.raises(
        DamagedOutputError, match=r"record\.json (was edited|cannot be read).*: delete"
    ):
        store.record(STEP)


def test_a_record_without_its_seal_is_named_by_verify(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = finish(store) / "record.json"
    assert store.verify(STEP) == []
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seal": ""}))
    assert store.verify(STEP) == [
        f"{path} has no seal: it was edited, or written by an earlier version"
    ]


def test_a_file_that_was_added_is_named_by_verify(tmp_path: Path) -> None:
    store = Store(tmp_path)
    added = finish(store) / "added.txt"
    added.write_text("x")
    assert store.verify(STEP) == [
        f"{added} has no sha256 in the record: it was added, or the record was edited"
    ]


def test_bytes_that_changed_without_a_change_of_size_are_found_before_they_are_read(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path)
    file = finish(store) / "deep" / "file.txt"
    store.check_content(STEP)
    file.write_text("fouR")
    store.check_sizes(STEP)
    with pytest.raises(DamagedOutputError, match=r"file\.txt has another sha256.*--force make"):
        store.check_content(STEP)


@pytest.mark.parametrize("place", [".", "make", ".locks"])
def test_a_file_where_the_workspace_needs_a_folder_is_named(tmp_path: Path, place: str) -> None:
    workspace = tmp_path / "w"
    blocking = workspace / place
    blocking.parent.mkdir(parents=True, exist_ok=True)
    blocking.write_text("mine")
    expected = f"{blocking.resolve()} is a file: the workspace needs a folder"
    with pytest.raises(ValueError, match=expected), Store(workspace).claim(STEP):
        Store(workspace).make_folder(Store(workspace).partial(STEP))


@pytest.mark.parametrize("place", [".locks", "make"])
def test_a_file_in_place_of_a_folder_is_named_before_any_step_runs(
    tmp_path: Path, place: str
) -> None:
    (tmp_path / place).write_text("")
    with pytest.raises(ValueError, match=f"{place} is a file: the workspace needs a folder"):
        Store(tmp_path).make_places([STEP])


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_damage_is_named_with_the_remedy(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path, "python -m pipeline run debug")
    file = finish(store) / "deep" / "file.txt"
    store.check_sizes(STEP)
    if damage == "truncate":
        file.write_text("f")
    else:
        file.unlink()
    with pytest.raises(
        DamagedOutputError, match=r"file\.txt.*`python -m pipeline run debug --force make`$"
    ):
        store.check_sizes(STEP)
    assert len(store.verify(STEP)) == 1


def test_unreadable_record_is_an_error_not_a_missing_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (finish(store) / "record.json").write_text('{"step": "mak')
    with pytest.raises(DamagedOutputError, match=r"record\.json"):
        store.record(STEP)


def test_an_unreadable_record_does_not_hide_the_others(tmp_path: Path) -> None:
    store = Store(tmp_path)
    other = Step("make", "make@other", nothing, {"size": 4})
    (finish(store) / "record.json").write_text('{"step": "mak')
    finish(store, other)
    assert [record.label for record in store.records()] == ["make@other"]
    assert set(store.finished_folders()) == {store.folder(STEP), store.folder(other)}


def append_slowly(workspace: Path, log: Path, turns: int) -> None:
    for _ in range(turns):
        with Store(workspace).claim(STEP):
            before = log.read_text() if log.exists() else ""
            log.write_text(before + "x")


def test_claim_lets_one_process_in_at_a_time(tmp_path: Path) -> None:
    """Lost updates would show as a shorter file."""
    log = tmp_path / "log"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=append_slowly, args=(tmp_path, log, 5)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert log.read_text() == "x" * 10


def test_finished_work_changes_with_a_part_that_is_finished_and_with_nothing_else(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path)
    before = store.finished_work([STEP])
    out = store.partial(STEP)
    out.mkdir(parents=True)
    for name in (STOP, GROW, BEGUN, NOTED_STEP, METRICS, REASON, ERROR, CHOICES):
        (out / name).write_text("x")
    for name in (RAY_FOLDER, STALLED):
        (out / name).mkdir()
        (out / name / "file").write_text("x")
    assert store.finished_work([STEP]) == before

    (out / "shard-00000.arrow").write_text("x")
    with_a_shard = store.finished_work([STEP])
    finish(store)
    assert len({before, with_a_shard, store.finished_work([STEP])}) == 3
