"""Images in the loop: the live backbone sees what was stored, crops anew each epoch, resumes
exactly; stored views.
"""

import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import TINY

from cluster.files import read_jsonl
from curation.config import EmbedConfig
from curation.embed_worker import EmbedWorker, Task
from curation.encoders.config import BackboneConfig, CaptionConfig
from curation.encoders.resolve import resolve
from curation.pairs.config import SourceConfig
from curation.pairs.sources import list_parts, read_part
from curation.shards.manifest import Manifest, ShardEntry, write_manifest
from curation.shards.reader import EmbeddingShards
from curation.shards.schema import PATCHES, spec_from_dict
from curation.shards.selection import write_selection
from train.config import LiveConfig, ShuffleConfig, TokenizerConfig, TrainConfig, VisionConfig
from train.images import ImageFiles
from train.live import LiveBackbone
from train.loop import Job, read_pairs, train
from train.tokenizer import run as train_tokenizer

ROWS = 60
SOURCE = SourceConfig(part_rows=25)
EMBED = EmbedConfig(
    SOURCE, BackboneConfig("random-vit", image_size=28), CaptionConfig(dim=16), precision="float32"
)
LIVE: TrainConfig = replace(
    TINY,
    live=LiveConfig(enabled=True, source=SOURCE, precision="float32"),
    model=replace(TINY.model, vision=VisionConfig(blocks=1)),
    shuffle=ShuffleConfig("blocks", block_rows=6, window_blocks=3),
    batch_size=12,
)
STORED = replace(LIVE, live=LiveConfig())


def embed(config: EmbedConfig, source: Path, out: Path) -> Path:
    """The embed step without Ray."""
    out.mkdir()
    worker = EmbedWorker(replace(config, backbone=resolve(config.backbone)), out)
    for index, part in enumerate(list_parts(SOURCE, source)):
        assert all(read > 0 for read in worker.embed(Task(index, part, "")))

    records = [json.loads(sidecar.read_text()) for sidecar in sorted(out.glob("shard-*.json"))]
    entries = tuple(ShardEntry(**record["entry"]) for record in records)
    write_manifest(out, Manifest(spec_from_dict(records[0]["spec"]), entries))
    return out


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs as a folder and as tars, embeddings of them, a selection and a tokenizer."""
    folder = tmp_path_factory.mktemp("live")
    (folder / "pairs").mkdir()
    (folder / "tars").mkdir()
    lines = []
    for row in range(ROWS):
        coarse = np.random.default_rng(row).integers(0, 256, (5, 6, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((48, 40), Image.Resampling.BICUBIC)
        image.save(folder / "pairs" / f"{row:05d}.jpg", quality=90)
        (folder / "pairs" / f"{row:05d}.txt").write_text(f"picture {row}")
        lines.append(
            json.dumps({"image": f"{row:05d}.jpg", "captions": [f"picture {row}", f"number {row}"]})
        )
    with tarfile.open(folder / "tars" / "a.tar", "w") as tar:
        for path in sorted((folder / "pairs").iterdir()):
            tar.add(path, path.name)
    for text in (folder / "pairs").glob("*.txt"):
        text.unlink()  # there, the list has the captions
    (folder / "pairs" / "captions.jsonl").write_text("\n".join(lines) + "\n")
    shards = EmbeddingShards(
        embed(replace(EMBED, content="tokens"), folder / "pairs", folder / "embeddings")
    )
    (folder / "selection").mkdir()
    write_selection(folder / "selection", shards, np.flatnonzero(np.arange(ROWS) % 7 != 3))
    (folder / "tokenizer").mkdir()
    inputs = {"embeddings": folder / "embeddings", "selection": folder / "selection"}
    train_tokenizer(TokenizerConfig(vocab_size=300), out=folder / "tokenizer", **inputs)
    return folder


def job(pool: Path, out: Path, *views: Path) -> Job:
    out.mkdir(exist_ok=True)
    return Job(
        out, pool / "embeddings", pool / "selection", pool / "tokenizer", pool / "pairs", views
    )


@pytest.mark.parametrize("layout", ["pairs", "tars"])
def test_every_image_is_found_again(pool: Path, tmp_path: Path, layout: str) -> None:
    shards = EmbeddingShards(
        embed(replace(EMBED, content="pooled"), pool / layout, tmp_path / "embeddings")
    )
    rows = np.arange(1, ROWS, 3)
    files = ImageFiles(SOURCE, pool / layout, shards, rows)
    samples = [
        sample for part in list_parts(SOURCE, pool / layout) for sample in read_part(SOURCE, part)
    ]
    assert [files.read(place) for place in range(len(rows))] == [samples[row].image for row in rows]


def test_pairs_that_are_not_those_embedded_are_refused(pool: Path) -> None:
    shards = EmbeddingShards(pool / "embeddings")
    with pytest.raises(ValueError, match=r"has 1 parts, .* 3 shards"):
        ImageFiles(SOURCE, pool / "tars", shards, np.arange(ROWS))


def test_the_live_backbone_sees_held_out_pairs_as_they_were_stored(
    pool: Path, tmp_path: Path
) -> None:
    live, stored = (read_pairs(config, job(pool, tmp_path)) for config in (LIVE, STORED))
    count = len(stored.val_places)
    seen = LiveBackbone(LIVE.live, live.spec).encode(live.val_batch(0, count))
    assert seen.keys == stored.val_batch(0, count).keys
    for given, expected in zip(
        seen.inputs()[1:], stored.val_batch(0, count).inputs()[1:], strict=True
    ):
        torch.testing.assert_close(given, expected.float(), rtol=2e-3, atol=2e-3)


def test_crops_change_from_epoch_to_epoch_and_with_nothing_else(pool: Path, tmp_path: Path) -> None:
    pairs = read_pairs(LIVE, job(pool, tmp_path))
    epoch = pairs.epoch_steps(12)
    whole = pairs.batch(1, 12)
    for world in (2, 4):
        parts = [pairs.batch(1, 12, rank, world).vision[0].values for rank in range(world)]
        assert torch.cat(parts).equal(whole.vision[0].values)
    first = {key: pixels for step in range(epoch) for key, pixels in keyed(pairs.batch(step, 12))}
    second = {
        key: pixels
        for step in range(epoch, 2 * epoch)
        for key, pixels in keyed(pairs.batch(step, 12))
    }
    shared = first.keys() & second.keys()
    assert len(shared) > 20
    assert not any(first[key].equal(second[key]) for key in shared)


def keyed(batch: object) -> list[tuple[str, torch.Tensor]]:
    return list(zip(batch.keys, batch.vision[0].values, strict=True))  # type: ignore[attr-defined]


@pytest.mark.usefixtures("process_group")
def test_stopped_training_with_a_live_backbone_goes_on_bitwise_equal(
    pool: Path, tmp_path: Path
) -> None:
    whole = job(pool, tmp_path / "whole")
    cut = job(pool, tmp_path / "cut")
    assert train(LIVE, whole)
    steps = iter(range(1, 100))
    assert not train(LIVE, cut, lambda: "stop" if next(steps) == 10 else "")
    assert train(LIVE, cut)
    left, right = (load_file(each.out / "model" / "model.safetensors") for each in (whole, cut))
    assert all(left[name].equal(right[name]) for name in left)
    rows = [read_jsonl(each.out / "metrics.jsonl") for each in (whole, cut)]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]


def test_one_view_of_all_is_drawn_for_each_pair_and_epoch(
    pool: Path, tmp_path: Path, make_view: Callable[[int], Path]
) -> None:
    views = [make_view(1), make_view(2)]
    pairs = read_pairs(STORED, job(pool, tmp_path, *views))
    keys = pairs.shards.keys().to_pylist()
    stored = [
        EmbeddingShards(folder).gather(np.arange(ROWS), PATCHES)
        for folder in (pool / "embeddings", *views)
    ]
    assert not np.array_equal(stored[1], stored[2])
    drawn = []
    for step in range(2 * pairs.epoch_steps(12)):
        batch = pairs.batch(step, 12)
        for key, patches in zip(batch.keys, batch.inputs()[3].float().numpy(), strict=True):
            (which,) = [
                view for view in range(3) if np.array_equal(stored[view][keys.index(key)], patches)
            ]
            drawn.append(which)
    assert set(drawn) == {0, 1, 2}
    held_out = pairs.val_batch(0, 3)
    for key, patches in zip(held_out.keys, held_out.inputs()[3].float().numpy(), strict=True):
        np.testing.assert_array_equal(patches, stored[0][keys.index(key)])


@pytest.fixture
def make_view(pool: Path, tmp_path: Path) -> Callable[[int], Path]:
    return lambda view: embed(
        replace(EMBED, content="tokens", view=view), pool / "pairs", tmp_path / f"view{view}"
    )


def test_a_view_of_other_rows_is_refused(pool: Path, tmp_path: Path) -> None:
    other = embed(replace(EMBED, content="pooled", view=1), pool / "pairs", tmp_path / "view")
    with pytest.raises(ValueError, match="is no view of"):
        read_pairs(STORED, job(pool, tmp_path, other))
