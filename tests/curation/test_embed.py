"""The embed step end to end with a tiny random ViT: contents, rejects, budget, resume after kill
-9.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from cluster.files import sha256_file
from cluster.resources import Resources
from curation.config import EmbedConfig
from curation.embed import RejectBudgetError, run, with_resources
from curation.embed_worker import EmbedWorker, Task
from curation.embedded import EarlierShard
from curation.encoders.backbone import load_backbone, pool_patches
from curation.encoders.captions import CaptionEncoder
from curation.encoders.config import BackboneConfig, CaptionConfig
from curation.encoders.resolve import resolve
from curation.pairs.config import SourceConfig
from curation.pairs.images import decode
from curation.pairs.sample import Part
from curation.pairs.sources import estimated_rows, list_parts
from curation.shards.codec import Dtype
from curation.shards.manifest import Manifest, ShardEntry, verify, write_manifest
from curation.shards.reader import EmbeddingShards
from curation.shards.schema import CAPTION_EMBEDDING, CLS, PATCHES, REGISTERS, Content

pytestmark = pytest.mark.ray

Embedded = tuple[Path, dict[str, float]]
ROOT = Path(__file__).resolve().parents[2]
CONFIG = EmbedConfig(
    source=SourceConfig(part_rows=16),
    backbone=BackboneConfig(name="random-vit", image_size=28),
    captions=CaptionConfig(dim=16),
    precision="float32",
    batch_size=8,
    resources=Resources(workers=1),
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pairs."""
    folder = tmp_path_factory.mktemp("pairs")
    lines = []
    for i in range(40):
        coarse = np.random.default_rng(i).integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((48, 40), Image.Resampling.BICUBIC).save(
            folder / f"{i:02d}.png"
        )
        lines.append(
            json.dumps({"image": f"{i:02d}.png", "captions": [f"picture {i}", f"number {i}"]})
        )
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def embedded(source: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Embedded:
    """(folder, summary) of an undisturbed run."""
    out = tmp_path_factory.mktemp("embedded")
    return out, run(CONFIG, out=out, source=source)


def contents_of(folder: Path) -> dict[str, str]:
    """Names with checksums; hidden files, which no reader looks at and the runner removes, left
    out.
    """
    return {path.name: sha256_file(path) for path in folder.glob("[!.]*")}


def test_shards_hold_what_the_backbone_gives(embedded: Embedded, source: Path) -> None:
    shards = EmbeddingShards(embedded[0])
    backbone = load_backbone(CONFIG.backbone)
    images = [decode((source / key).read_bytes()) for key in shards.keys().to_pylist()]
    expected = backbone(torch.stack([backbone.preprocess(image) for image in images]))
    rows = np.arange(40)
    for column, features in (
        (CLS, expected.cls[:, None]),
        (REGISTERS, expected.registers),
        (PATCHES, expected.patches),
    ):
        np.testing.assert_allclose(
            shards.gather(rows, column), features.numpy(), rtol=2e-3, atol=2e-3
        )


def test_caption_embedding_is_the_unit_mean(embedded: Embedded) -> None:
    shards = EmbeddingShards(embedded[0])
    vectors = CaptionEncoder(CONFIG.captions).encode(shards.captions(np.array([7]))[0])
    expected = vectors.mean(axis=0) / np.linalg.norm(vectors.mean(axis=0))
    np.testing.assert_allclose(
        shards.gather(np.array([7]), CAPTION_EMBEDDING)[0, 0], expected, atol=1e-3
    )


def test_rows_follow_the_source_and_the_summary_counts_them(embedded: Embedded) -> None:
    out, summary = embedded
    shards = EmbeddingShards(out)
    assert shards.keys().to_pylist() == [f"{i:02d}.png" for i in range(40)]
    assert shards.captions(np.array([3])) == [["picture 3", "number 3"]]
    assert shards.offsets.tolist() == [0, 16, 32, 40]
    assert (summary["rows"], summary["rejects"], summary["captions"]) == (40, 0, 80)
    assert summary["bytes"] == sum(path.stat().st_size for path in out.glob("*.arrow"))
    assert len(set(shards.hashes("pixel_hash").tolist())) == 40
    assert all(thumbnail.startswith(b"\xff\xd8") for thumbnail in shards.thumbnails(np.arange(40)))
    assert verify(out) == []


def worker_and_tasks(
    config: EmbedConfig, source: Path, out: Path
) -> tuple[EmbedWorker, list[Task]]:
    """One worker in this process and its tasks."""
    # As in a worker of CONFIG: with AVX2 alone, MKL's products by two threads have other last bits.
    torch.set_num_threads(1)
    config = replace(config, backbone=resolve(config.backbone))
    tasks = [
        Task(i, part, f"digest {i}") for i, part in enumerate(list_parts(config.source, source))
    ]
    return EmbedWorker(config, out), tasks


def embed(worker: EmbedWorker, task: Task) -> dict[str, Any]:
    """The record of a task that is embedded in this process."""
    counts = worker.embed(task)
    while True:
        try:
            next(counts)
        except StopIteration as end:
            return end.value


@pytest.mark.parametrize("content", ["pooled", "grid"])
def test_pooled_and_grid_are_averages_of_the_tokens(
    embedded: Embedded, source: Path, tmp_path: Path, content: Content
) -> None:
    tokens = EmbeddingShards(embedded[0])
    worker, tasks = worker_and_tasks(replace(CONFIG, content=content, grid=1), source, tmp_path)
    records = [embed(worker, task) for task in tasks]
    write_manifest(
        tmp_path, Manifest(worker.spec, tuple(ShardEntry(**record["entry"]) for record in records))
    )
    shards = EmbeddingShards(tmp_path)
    assert (REGISTERS in shards.spec.vector_columns()) == (content == "grid")
    everything = torch.from_numpy(tokens.gather(np.arange(40), PATCHES))
    pooled = pool_patches(everything, tokens.spec.grid, (1, 1)).numpy()
    np.testing.assert_allclose(shards.gather(np.arange(40), PATCHES), pooled, atol=4e-3)


def test_grid_finer_than_the_backbone_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="grid=9 is finer"):
        worker_and_tasks(replace(CONFIG, content="grid", grid=9), source, tmp_path)


def test_bytes_do_not_depend_on_workers(embedded: Embedded, source: Path, tmp_path: Path) -> None:
    run(replace(CONFIG, resources=Resources(workers=2)), out=tmp_path, source=source)
    assert contents_of(tmp_path) == contents_of(embedded[0])


def test_bytes_do_not_depend_on_threads(embedded: Embedded, source: Path, tmp_path: Path) -> None:
    worker, tasks = worker_and_tasks(
        replace(CONFIG, resources=Resources(cpus=2.0)), source, tmp_path
    )
    for task in tasks:
        embed(worker, task)
        assert (tmp_path / task.shard).read_bytes() == (embedded[0] / task.shard).read_bytes()


def test_rows_are_counted_while_their_part_is_embedded(source: Path, tmp_path: Path) -> None:
    worker, tasks = worker_and_tasks(replace(CONFIG, batch_size=5), source, tmp_path)
    assert list(worker.embed(tasks[0])) == [5, 10, 15]  # of 16


def test_rows_of_tars_are_estimated_from_the_first_ones(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for i in range(200):
            for name, size in ((f"{i:03d}.jpg", 3000 + i), (f"{i:03d}.txt", 40)):
                info = tarfile.TarInfo(name)
                info.size = size
                archive.addfile(info, io.BytesIO(b"a" * size))
    config = replace(CONFIG, source=SourceConfig(part_mb=1))
    parts = list_parts(config.source, tmp_path)

    assert 150 < estimated_rows(config.source, parts) < 250
    assert 157 < estimated_rows(config.source, [*parts, Part("pairs", "pairs", num_rows=7)]) < 257
    assert estimated_rows(config.source, [Part("pairs", "pairs", num_rows=7)]) == 7


def test_second_run_keeps_every_shard(embedded: Embedded, source: Path) -> None:
    out, first = embedded
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*")}
    again = run(CONFIG, out=out, source=source)
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*")} == before
    assert {**again, "images_per_s": 0} == {**first, "images_per_s": 0}


def test_machine_facts_and_the_budget_keep_every_shard(
    embedded: Embedded, source: Path, tmp_path: Path
) -> None:
    shutil.copytree(embedded[0], tmp_path, dirs_exist_ok=True)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("shard-*")}
    run(
        replace(CONFIG, batch_size=5, error_budget=0.5, resources=Resources(workers=2)),
        out=tmp_path,
        source=source,
    )
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("shard-*")} == before


def test_workers_decode_in_as_many_threads_as_their_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 24.0, "GPU": 2.0}}]
    )
    resources = with_resources(EmbedConfig(precision="float32"), num_tasks=9).resources
    assert (resources.workers, resources.threads) == (2, 12)


def test_shard_without_sidecar_or_cut_short_is_made_again(
    embedded: Embedded, source: Path, tmp_path: Path
) -> None:
    shutil.copytree(embedded[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "shard-00000.json").unlink()
    (tmp_path / "shard-00000.arrow").write_bytes(b"not a shard")
    (tmp_path / "shard-00001.arrow").write_bytes(b"cut")
    run(CONFIG, out=tmp_path, source=source)
    assert contents_of(tmp_path) == contents_of(embedded[0])


@pytest.mark.slow
def test_changed_settings_make_shards_anew(
    embedded: Embedded, source: Path, tmp_path: Path
) -> None:
    run(CONFIG, out=tmp_path, source=source)
    run(replace(CONFIG, dtype="int8"), out=tmp_path, source=source)
    assert EmbeddingShards(tmp_path).spec.dtype == "int8"
    assert verify(tmp_path) == []


DRIVER = """
import sys
from pathlib import Path
from cluster.session import session
from curation.embed import run
from tests.curation.test_embed import CONFIG
with session(num_cpus=1):
    run(CONFIG, out=Path(sys.argv[2]), source=Path(sys.argv[1]))
"""


def test_run_killed_at_any_moment_ends_with_the_same_bytes(
    embedded: Embedded, source: Path, tmp_path: Path
) -> None:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}", "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(source), str(tmp_path)], env=environment, cwd=ROOT
    )
    while not list(tmp_path.glob("shard-*.arrow")):
        with contextlib.suppress(subprocess.TimeoutExpired):
            pytest.fail(f"the driver ended by itself, code {driver.wait(timeout=0.05)}")
    children = psutil.Process(driver.pid).children(recursive=True)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    psutil.wait_procs(children, timeout=60)
    run(CONFIG, out=tmp_path, source=source)
    assert contents_of(tmp_path) == contents_of(embedded[0])


def test_bad_images_are_counted_rejects(source: Path, tmp_path: Path, ray_session: None) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    good = (source / "00.png").read_bytes()
    files = {
        "good.png": good,
        "cut.png": good[:100],
        "zero.png": b"",
        "page.png": b"<html>",
        "gone.png": None,
    }
    for name, data in files.items():
        if data is not None:
            (folder / name).write_bytes(data)
    Image.new("RGB", (1, 1)).save(folder / "pixel.png")
    Image.fromarray(np.full((40, 50), 40_000, np.uint16)).save(folder / "deep.png")
    captions = {
        **dict.fromkeys(files, "text"),
        "pixel.png": "text",
        "deep.png": "a\0b \N{GRINNING FACE} قطة",
    }
    (folder / "captions.json").write_text(json.dumps(captions))
    summary = run(replace(CONFIG, error_budget=0.8), out=tmp_path / "out", source=folder)
    assert EmbeddingShards(tmp_path / "out").keys().to_pylist() == ["good.png", "deep.png"]
    rejects = [
        json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    ]
    assert {reject["key"]: reject["reason"] for reject in rejects} == {
        "cut.png": "corrupt image",
        "zero.png": "empty file",
        "page.png": "not an image",
        "gone.png": "missing file",
        "pixel.png": "too small",
    }
    assert (summary["rows"], summary["rejects"], summary["rejects_missing_file"]) == (2, 5, 1)
    with pytest.raises(
        RejectBudgetError, match=r"5 of the first 7 rows .*missing file 1.*rejects\.jsonl"
    ):
        run(replace(CONFIG, error_budget=0.5), out=tmp_path / "out", source=folder)


def test_one_reject_in_a_small_first_tar_is_judged_by_the_size_of_all(
    source: Path, tmp_path: Path, ray_session: None
) -> None:
    folder = tmp_path / "tars"
    folder.mkdir()
    for name, count in (("a", 3), ("b", 120)):
        with tarfile.open(folder / f"{name}.tar", "w") as archive:
            for i in range(count):
                archive.add(source / f"{i % 40:02d}.png", f"{i:03d}.png")
                text = tarfile.TarInfo(f"{i:03d}.txt")
                text.size = 4 if (name, i) != ("a", 0) else 0
                archive.addfile(text, io.BytesIO(b"text"))
    summary = run(replace(CONFIG, error_budget=0.02), out=tmp_path / "out", source=folder)
    assert (summary["rows"], summary["rejects"]) == (122, 1)


def test_wrong_data_stops_its_part_early(tmp_path: Path) -> None:
    lines = [json.dumps({"image": f"{i}.png", "caption": "text"}) for i in range(2000)]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    for i in range(2000):
        (tmp_path / f"{i}.png").touch()
    worker, tasks = worker_and_tasks(
        replace(CONFIG, source=SourceConfig(part_rows=2000)), tmp_path, tmp_path / "out"
    )
    (tmp_path / "out").mkdir()
    record = embed(worker, tasks[0])
    assert record["is_stopped"]
    assert (record["read"], len(record["rejects"])) == (256, 256)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_rows_that_are_all_taken_over_have_the_same_bytes(
    source: Path, tmp_path: Path, dtype: Dtype
) -> None:
    config = replace(CONFIG, dtype=dtype)
    (tmp_path / "first").mkdir()
    worker, tasks = worker_and_tasks(config, source, tmp_path / "first")
    entry = embed(worker, tasks[0])["entry"]

    (tmp_path / "second").mkdir()
    again, _ = worker_and_tasks(config, source, tmp_path / "second")
    earlier = EarlierShard(tmp_path / "first" / tasks[0].shard, entry["rows"])
    record = embed(again, replace(tasks[0], earlier=earlier))
    assert (record["taken_over"], record["entry"]) == (16, entry)


def test_retry_embeds_only_what_was_mended_or_changed(
    embedded: Embedded, source: Path, tmp_path: Path, ray_session: None
) -> None:
    folder = shutil.copytree(source, tmp_path / "data")
    (folder / "03.png").write_bytes((source / "03.png").read_bytes()[:90])
    (folder / "20.png").unlink()
    text = (source / "captions.jsonl").read_text()
    (folder / "captions.jsonl").write_text(text.replace("picture 35", "a wrong caption"))
    first = tmp_path / "embed" / "first"
    second = tmp_path / "embed" / "second"
    summary = run(replace(CONFIG, error_budget=0.2), out=first, source=folder)
    assert (summary["rows"], summary["rejects"]) == (38, 2)

    shutil.copytree(source, folder, dirs_exist_ok=True)
    again = run(replace(CONFIG, retry_rejects=True), out=second, source=folder)
    assert (again["rows"], again["rejects"], again["rows_taken_over"]) == (40, 0, 37)
    shards = EmbeddingShards(second)
    undisturbed = EmbeddingShards(embedded[0])
    rows = np.arange(40)
    assert shards.keys() == undisturbed.keys()
    assert shards.captions(rows) == undisturbed.captions(rows)
    assert shards.thumbnails(rows) == undisturbed.thumbnails(rows)
    assert verify(second) == []
    for column in (CLS, REGISTERS, PATCHES, CAPTION_EMBEDDING):
        mended = shards.gather(rows, column)
        expected = undisturbed.gather(rows, column)
        same = ~np.isin(rows, [3, 20, 35])
        np.testing.assert_array_equal(
            mended[same], EmbeddingShards(first).gather(_rows_of(first, rows[same]), column)
        )
        np.testing.assert_allclose(mended, expected, rtol=2e-3, atol=2e-3)


def _rows_of(folder: Path, numbers: np.ndarray) -> np.ndarray:
    """Where the pictures of these numbers are in a folder of shards."""
    keys = EmbeddingShards(folder).keys().to_pylist()
    return np.array([keys.index(f"{number:02d}.png") for number in numbers])


def test_full_disk_is_a_clear_error_and_later_the_shard_completes(
    embedded: Embedded, source: Path, full_disk: Path
) -> None:
    worker, tasks = worker_and_tasks(CONFIG, source, full_disk)
    (full_disk / "ballast").write_bytes(b"x" * 1_020_000)
    with pytest.raises(OSError, match="no space left on the disk"):
        embed(worker, tasks[0])
    assert [path.name for path in full_disk.iterdir()] == ["ballast"]
    (full_disk / "ballast").unlink()
    embed(worker, tasks[0])
    assert (full_disk / "shard-00000.arrow").read_bytes() == (
        embedded[0] / "shard-00000.arrow"
    ).read_bytes()
