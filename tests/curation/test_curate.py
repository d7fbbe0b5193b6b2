"""The whole step on synthetic shards with a known truth."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

import curation.clusters.config
from cluster.files import sha256_file
from cluster.resources import Resources
from curation.choice.balance import entropy
from curation.choice.config import OFF, DuplicatesConfig, LeakageConfig, LikenessConfig
from curation.choice.water import water_fill
from curation.choice.why import read_decisions, why
from curation.clusters.config import LevelsConfig
from curation.clusters.scan import InProcess
from curation.clusters.vectors import to_unit
from curation.config import CaptionClustersConfig, CurateConfig
from curation.curate import curate, run
from curation.shards.mapped import ShardError
from curation.shards.reader import EmbeddingShards
from curation.shards.schema import CAPTION_EMBEDDING, CLS, PERCEPTUAL_HASH
from curation.shards.selection import read_selection

SIZES = (400, 150, 80, 40, 20, 10)  # rows per true concept
SUFFIXES = (".npz", ".centroids.npy")
ONLY_EXACT = LikenessConfig(hash_bits=None, form_bits=None, cosine=None)
NO_HASHES = DuplicatesConfig(alike=ONLY_EXACT)
OUTPUTS = (
    "selection.arrow",
    "decisions.arrow",
    *(
        f"{level}{suffix}"
        for level in ("image/level-1", "image/level-2", "text/level-1", "text/level-2")
        for suffix in SUFFIXES
    ),
)
LEVELS = LevelsConfig(clusters=(24, 6))
SPLIT = LevelsConfig(clusters=(24, 6), split=(4, 0))


def _mixture(sizes=SIZES, dim=16, seed=0, noise=0.05):
    """Well-separated concepts: one-hot centres plus noise, rows shuffled."""
    rng = np.random.default_rng(seed)
    concepts = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return concepts, np.eye(dim, dtype=np.float32)[concepts] + noise * rng.standard_normal(
        (len(concepts), dim)
    )


@pytest.fixture
def pool(tmp_path, embedding_spec, write_pool):
    """pool(rows_per_shard, vectors=None): folder and concept of each row."""

    def write(name="pool", cut=(300, 0, 250, 150), images=None, seed=0):
        spec = embedding_spec(
            content="pooled", num_registers=0, grid=(1, 1), dim=16, caption_dim=16
        )
        concepts, vectors = _mixture(seed=seed)
        images = vectors if images is None else images
        captions = _mixture(seed=seed)[1]
        write_pool(
            tmp_path / name,
            spec,
            cut,
            vectors={CLS: images[:, None], CAPTION_EMBEDDING: captions[:, None]},
        )
        return tmp_path / name, concepts

    return write


def _config(workers=1, **changes):
    fields = {
        "levels": LEVELS,
        "text": CaptionClustersConfig(levels=LEVELS),
        "duplicates": NO_HASHES,
    }
    return CurateConfig(**{**fields, **changes}, resources=Resources(workers=workers, cpus=1.0))


def _run(tmp_path, folder, name="out", evaluation=None, **changes):
    """The step inside this process."""
    out = tmp_path / name
    out.mkdir(exist_ok=True)
    return out, curate(_config(**changes), InProcess(), out, folder, evaluation or {})


def test_many_crops_do_not_raise_the_thresholds_that_find_them(
    tmp_path, embedding_spec, write_pool
):
    """Of 410 images 150 have a crop: another hash, the hash of its form, a cosine near 0.9."""
    spec = embedding_spec(content="pooled", num_registers=0, grid=(1, 1), dim=64, num_hashes=3)
    rng = np.random.default_rng(0)
    vectors = to_unit(rng.standard_normal((560, 64)).astype(np.float32))
    vectors[410:] = vectors[:150] + 0.06 * rng.standard_normal((150, 64), np.float32)
    hashes = rng.integers(0, 256, (560, 3, 32), dtype=np.uint8)
    hashes[410:, 0] = hashes[:150, 1]
    folder = tmp_path / "pool"
    write_pool(
        folder, spec, (560,), vectors={CLS: vectors[:, None]}, columns={PERCEPTUAL_HASH: hashes}
    )

    levels = LevelsConfig(clusters=(2,))
    out, _ = _run(tmp_path, folder, method="none", levels=levels, duplicates=DuplicatesConfig())
    kept = read_decisions(out)["kept"].to_numpy()
    assert (kept[:150] ^ kept[410:]).all()
    assert kept[150:410].all()


@pytest.mark.parametrize("combine", ["intersection", "union"])
def test_repeats_fill_small_clusters(tmp_path, pool, combine):
    folder, concepts = pool()
    out, summary = _run(
        tmp_path, folder, method="both", combine=combine, target_rows=300, repeats=4
    )
    rows = read_selection(out, EmbeddingShards(folder)).rows
    assert len(rows) == 300
    assert len(np.unique(rows)) == summary["kept"] < 300
    assert np.bincount(rows).max() <= 4
    np.testing.assert_array_equal(
        np.bincount(rows, minlength=700), read_decisions(out)["copies"].to_numpy()
    )
    sides = [summary[f"in_{name}"] for name in ("both", "image_only", "text_only", "neither")]
    assert sum(sides) == len(concepts)
    assert summary["kept"] == (sides[0] if combine == "intersection" else sum(sides[:3]))


@pytest.mark.parametrize("method", ["both", "image", "text", "random"])
def test_curate_keeps_exactly_the_target(tmp_path, pool, method):
    folder, concepts = pool()
    out, summary = _run(tmp_path, folder, method=method, target_rows=120)
    selection = read_selection(out, EmbeddingShards(folder))
    assert len(selection.rows) == 120 == summary["kept"]
    sizes = np.bincount(concepts[selection.rows], minlength=6)
    if method in ("image", "both"):
        assert sizes.max() <= 40
    if method == "image":
        assert sizes.min() >= 9
    table = read_decisions(out)
    assert table["kept"].to_pylist() == (table["reason"].to_numpy() == "kept").tolist()
    np.testing.assert_array_equal(np.flatnonzero(table["kept"]), selection.rows)


def test_none_keeps_everything(tmp_path, pool):
    folder, concepts = pool()
    out, summary = _run(tmp_path, folder, method="none")
    assert summary["kept"] == len(concepts)
    np.testing.assert_array_equal(read_selection(out).rows, np.arange(len(concepts)))


@pytest.mark.ray
def test_selection_is_the_same_for_any_workers_and_shards(tmp_path, ray_session, pool):
    first, _ = pool("first", (300, 0, 250, 150))
    second, _ = pool("second", (699, 1))
    config = {
        "target_rows": 150,
        "duplicates": DuplicatesConfig(alike=replace(ONLY_EXACT, cosine=0.99)),
    }
    reference, _ = _run(tmp_path, first, "reference", **config)
    for name, folder, workers in (("a", first, 1), ("b", second, 2)):
        out = tmp_path / name
        out.mkdir()
        run(_config(workers, **config), out=out, embeddings=folder)
        for file in OUTPUTS:
            assert (out / file).read_bytes() == (reference / file).read_bytes(), file


def test_duplicates_and_leakage_are_removed_with_reasons(tmp_path, pool):
    _, images = _mixture(noise=0.4)
    images[1] = images[0]
    images[2] = 3 * images[0]
    folder, _ = pool(images=images)
    leaked = images.copy()
    leaked[:] = np.roll(-images, 1, axis=1)  # nothing like the pool ...
    leaked[7] = images[600]  # ... but for one
    evaluation, _ = pool("held_out", images=leaked)
    by_cosine = replace(OFF, cosine=0.999)
    out, summary = _run(
        tmp_path,
        folder,
        method="none",
        duplicates=DuplicatesConfig(alike=by_cosine),
        leakage=LeakageConfig(alike=by_cosine),
        evaluation={"leakage_test": evaluation},
    )
    assert summary["removed_duplicate_vector"] == 2
    assert summary["removed_leakage_cosine"] == 1
    reasons = [why(out, f"key-{row}") for row in (0, 1, 2)]
    assert sorted(reason["kept"] for reason in reasons) == [False, False, True]
    kept = next(reason["key"] for reason in reasons if reason["kept"])
    assert {reason["other"] for reason in reasons if not reason["kept"]} == {kept}
    found = why(out, "key-600")
    assert (found["reason"], found["other"], found["other_set"]) == (
        "leakage: cosine",
        "key-7",
        "test",
    )
    assert summary["captions_in_evaluation"] == 700
    assert {row["caption_in"] for row in read_decisions(out).to_pylist()} == {"test"}
    examples = pa.ipc.open_file(out / "examples.arrow").read_all().to_pylist()
    assert {row["key"]: row["other_thumbnail"] for row in examples}["key-600"] == b"jpeg 7"
    assert json.loads((out / "curation.json").read_text())["counts"]["kept"] == summary["kept"]


def test_equal_hashes_are_duplicates_and_leakage(tmp_path, pool):
    folder, _ = pool()  # row i has bytes hash i and pixel hash 2 i
    out, summary = _run(
        tmp_path,
        folder,
        method="none",
        leakage=LeakageConfig(captions="remove"),
        evaluation={"leakage_self": folder},
    )
    assert summary["removed_leakage_same_image"] == 700
    assert summary["kept"] == 0
    assert why(out, "key-5")["other"] == "key-5"


def test_unusable_vectors_are_counted_or_named(tmp_path, pool):
    _, images = _mixture()
    images[3] = 0
    folder, _ = pool(images=images)
    out, summary = _run(tmp_path, folder, method="image", target_rows=100)
    assert summary["removed_invalid_zero_vector"] == 1
    assert why(out, "key-3")["reason"] == "invalid: zero vector"
    with pytest.raises(ValueError, match="key-3"):
        _run(tmp_path, folder, "strict", method="image", error_budget=0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_damaged_vectors_are_counted_and_named(tmp_path, pool, bad):
    """Writing refuses such values, so they are put into the file."""
    _, images = _mixture()
    images[5] = np.linspace(-7, 7, 16)
    folder, _ = pool(images=images)
    shard = folder / "shard-00000.arrow"
    whole = shard.read_bytes()
    vector = images[5].astype(np.float16)
    assert whole.count(vector.tobytes()) == 1
    vector_with_fault = np.where(np.arange(16) == 3, bad, vector).astype(np.float16)
    shard.write_bytes(whole.replace(vector.tobytes(), vector_with_fault.tobytes()))
    out, summary = _run(tmp_path, folder, target_rows=100)
    assert summary["removed_invalid_value_not_finite"] == 1
    assert why(out, "key-5")["reason"] == "invalid: value not finite"
    with pytest.raises(
        ValueError, match=r"1 vectors with NaN or infinite values and 0 zero vectors.*key-5"
    ):
        _run(tmp_path, folder, "strict", error_budget=0.0)


def test_a_key_that_occurs_twice_is_refused(tmp_path, embedding_spec, write_pool):
    keys = [f"key-{row}" for row in range(9)] + ["key-4"]
    write_pool(tmp_path / "pool", embedding_spec(), (6, 4), columns={"key": keys})
    with pytest.raises(ValueError, match=r"1 keys occur more than once .* \['key-4'\]"):
        _run(tmp_path, tmp_path / "pool")


@pytest.mark.parametrize("change", [{"digest": "1" * 64}, {"dim": 12}])
def test_evaluation_embeddings_of_another_model_are_refused(
    tmp_path, pool, embedding_spec, write_pool, change
):
    folder, _ = pool()
    spec = embedding_spec(
        **{"content": "pooled", "num_registers": 0, "grid": (1, 1), "dim": 16, **change}
    )
    write_pool(tmp_path / "other", spec, (5,))
    with pytest.raises(ValueError, match="leakage needs one backbone for both"):
        _run(tmp_path, folder, evaluation={"leakage_other": tmp_path / "other"})
    assert not list((tmp_path / "out").rglob("level-*"))


def test_shards_of_different_widths_are_refused(tmp_path, pool, embedding_spec, write_pool):
    folder, _ = pool(cut=(300, 400))
    spec = embedding_spec(content="pooled", num_registers=0, grid=(1, 1), dim=8, caption_dim=16)
    write_pool(tmp_path / "narrow", spec, (300, 400))
    (tmp_path / "narrow" / "shard-00001.arrow").replace(folder / "shard-00001.arrow")
    with pytest.raises(ShardError, match="shard-00001"):
        _run(tmp_path, folder)


def test_captions_of_evaluation_are_removed_on_request(tmp_path, pool, embedding_spec, write_pool):
    folder, _ = pool()
    spec = embedding_spec(content="pooled", num_registers=0, grid=(1, 1), dim=16, caption_dim=16)
    captions = [["  Caption 3 "], ["no such caption"], ["again 600", "caption 3"]]
    write_pool(tmp_path / "held_out", spec, (3,), columns={"captions": captions})
    for mode, num_removed in (("list", 0), ("remove", 2)):
        config = LeakageConfig(alike=OFF, captions=mode)
        evaluation = {"leakage_test": tmp_path / "held_out"}
        out, summary = _run(
            tmp_path, folder, mode, method="none", leakage=config, evaluation=evaluation
        )
        assert summary["captions_in_evaluation"] == 2
        assert summary["removed_leakage_caption"] == num_removed
        assert [why(out, f"key-{row}")["caption_in"] for row in (3, 4, 600)] == [
            "test",
            None,
            "test",
        ]
        assert why(out, "key-3")["kept"] == (mode == "list")


@pytest.mark.slow
@pytest.mark.ray
def test_the_hash_of_the_selection_is_the_same_for_one_two_and_four_workers(
    tmp_path, ray_session, pool
):
    folder, _ = pool(cut=(100, 350, 0, 250))
    hashes = set()
    for name, workers in (("one", 1), ("again", 1), ("two", 2), ("four", 4)):
        out = tmp_path / name
        out.mkdir()
        resources = Resources(workers=workers, cpus=0.5)
        run(
            replace(_config(target_rows=150, levels=SPLIT), resources=resources),
            out=out,
            embeddings=folder,
        )
        hashes.add(sha256_file(out / "selection.arrow"))
    assert len(hashes) == 1


def test_a_target_above_what_is_left_is_refused(tmp_path, pool):
    folder, _ = pool()
    with pytest.raises(
        ValueError, match=r"701 pairs are asked for, but .* has 700: .* at most 700 can be kept"
    ):
        _run(tmp_path, folder, method="random", target_rows=701)


@pytest.mark.parametrize("num_distinct", [1, 8, 25, 700])
def test_automatic_clusters_are_no_more_than_distinct_points(
    tmp_path, embedding_spec, write_pool, num_distinct
):
    """Class names as captions; copies of a picture, of which float16 leaves no two alike."""
    rng = np.random.default_rng(0)
    distinct = rng.standard_normal((num_distinct, 1, 32)).astype(np.float32)
    distinct = distinct[rng.permutation(np.arange(1400) % num_distinct)]
    images = distinct * (1 + 1e-4 * rng.random(distinct.shape))
    spec = embedding_spec(content="pooled", num_registers=0, grid=(1, 1), dim=32, caption_dim=32)
    write_pool(
        tmp_path / "pool", spec, (700, 700), vectors={CLS: images, CAPTION_EMBEDDING: distinct}
    )
    changes = {
        "levels": LevelsConfig(),
        "text": CaptionClustersConfig(),
        "duplicates": NO_HASHES,
        "share": 0.1,
    }
    out, summary = _run(tmp_path, tmp_path / "pool", **changes)
    assert summary["kept"] == 140
    expected = {1: [1], 8: [8, 2], 25: [25, 6], 700: [140, 35]}[num_distinct]
    for side in ("image", "text"):
        assert [len(np.load(path)) for path in sorted(out.glob(f"{side}/*.npy"))] == expected


def test_clusters_too_many_for_one_stage_are_made_in_two(
    tmp_path, embedding_spec, write_pool, monkeypatch
):
    monkeypatch.setattr(curation.clusters.config, "LARGEST_STAGE", 4)
    monkeypatch.setattr(curation.clusters.config, "PARTS", 5)
    spec = embedding_spec(content="pooled", num_registers=0, grid=(1, 1), dim=32, caption_dim=32)
    write_pool(tmp_path / "pool", spec, (800,))
    out, _ = _run(
        tmp_path,
        tmp_path / "pool",
        levels=LevelsConfig(),
        text=CaptionClustersConfig(),
        duplicates=NO_HASHES,
    )
    assert [len(np.load(path)) for path in sorted(out.glob("*/*.npy"))] == [80, 20, 80, 20]


def test_a_pool_of_one_row(tmp_path, embedding_spec, write_pool):
    write_pool(tmp_path / "pool", embedding_spec(), (1,))
    assert (
        _run(tmp_path, tmp_path / "pool", levels=LevelsConfig(), text=CaptionClustersConfig())[1][
            "kept"
        ]
        == 1
    )


def test_a_target_above_the_pool_is_refused_before_anything_is_clustered(tmp_path, pool):
    folder, _ = pool()
    with pytest.raises(
        ValueError, match=r"1401 pairs are asked for, but .* has 700: .*at most 1400"
    ):
        _run(tmp_path, folder, target_rows=1401, repeats=2)
    assert not list((tmp_path / "out").rglob("level-*"))


def test_nothing_left_to_choose_from_is_refused(tmp_path, pool):
    folder, _ = pool()
    with pytest.raises(
        ValueError, match=r"no pair is left to choose from .*leakage: same image': 700"
    ):
        _run(tmp_path, folder, evaluation={"leakage_self": folder})


def test_captions_in_two_evaluation_sets_are_counted_once(tmp_path, pool):
    folder, _ = pool()
    leakage = LeakageConfig(alike=OFF)
    evaluation = {"leakage_one": folder, "leakage_two": folder}
    assert (
        _run(tmp_path, folder, leakage=leakage, evaluation=evaluation)[1]["captions_in_evaluation"]
        == 700
    )


def test_more_clusters_than_distinct_points_are_refused(tmp_path, pool):
    folder, _ = pool(images=np.eye(16, dtype=np.float32)[_mixture()[0]])
    with pytest.raises(ValueError, match="24 clusters exceed the number of distinct points"):
        _run(tmp_path, folder, method="image")


def test_an_unknown_input_is_refused(tmp_path, pool):
    folder, _ = pool()
    with pytest.raises(ValueError, match="evaluation"):
        _run(tmp_path, folder, evaluation={"evaluation": folder})


@pytest.mark.parametrize("method", ["image", "text"])
def test_curation_of_a_long_tail_is_more_even_than_chance(
    tmp_path, embedding_spec, write_pool, method
):
    """Concept frequencies Zipf 1.5: entropy of the true concepts, against a random draw and the
    optimum.
    """
    sizes = np.maximum(1, 1500 / np.arange(1, 31) ** 1.5).astype(int)
    concepts, vectors = _mixture(sizes, dim=32)
    spec = embedding_spec(content="pooled", num_registers=0, grid=(1, 1), dim=32, caption_dim=32)
    columns = {CLS: vectors[:, None], CAPTION_EMBEDDING: vectors[:, None]}
    write_pool(tmp_path / "pool", spec, (len(concepts),), vectors=columns)
    shape = {
        "levels": LevelsConfig(clusters=(90, 30)),
        "text": CaptionClustersConfig(levels=LevelsConfig(clusters=(30,))),
        "target_rows": 400,
    }
    found = {}
    for name in (method, "random"):
        out, _ = _run(tmp_path, tmp_path / "pool", name, method=name, **shape)
        found[name] = entropy(np.bincount(concepts[read_selection(out).rows], minlength=30))
    best = entropy(water_fill(sizes, np.zeros(30, np.int64), np.array([400]), np.arange(30.0)))
    assert found[method] > best - 0.5
    assert found["random"] < best - 1.0


def test_a_filter_by_score_comes_before_everything_else(tmp_path, pool):
    folder, concepts = pool()
    path = tmp_path / "scores.csv"
    path.write_text(
        "key,score\n" + "".join(f"key-{row},{row % 2}\n" for row in range(len(concepts)))
    )
    out = tmp_path / "out"
    out.mkdir()
    summary = curate(
        _config(share=1.0, min_score=1.0, scores=str(path)),
        InProcess(),
        out,
        folder,
        {},
        None,
        path,
    )
    odd = np.arange(1, len(concepts), 2)
    assert summary["removed_score_too_low"] == len(concepts) - len(odd)
    np.testing.assert_array_equal(read_selection(out).rows, odd)
    # No cluster has a pair that the score has dropped.
    assert (read_decisions(out)["image_cluster"].to_numpy() >= 0).tolist() == [
        row % 2 == 1 for row in range(len(concepts))
    ]


def test_captions_of_equal_images_stay_with_the_kept_one(tmp_path, embedding_spec, write_pool):
    """Ten images in five rows each, one caption per row and one of them twice."""
    captions = [[f"image {row % 10}, caption {row // 10 % 4}"] for row in range(50)]
    equal = {
        "bytes_hash": np.arange(50, dtype=np.uint64) % 10,
        "pixel_hash": np.arange(50, dtype=np.uint64) % 10,
    }
    write_pool(
        tmp_path / "pool", embedding_spec(), (25, 25), columns={"captions": captions, **equal}
    )
    out, summary = _run(tmp_path, tmp_path / "pool", method="none")
    shards = EmbeddingShards(tmp_path / "pool")
    selection = read_selection(out, shards)
    assert len(selection.rows) == 10
    assert summary["captions_merged"] == 30
    for row, found in zip(
        selection.rows % 10, selection.captions(shards, np.arange(10)), strict=True
    ):
        assert sorted(found) == [f"image {row}, caption {number}" for number in range(4)]

    dropped = DuplicatesConfig(alike=ONLY_EXACT, captions="drop")
    out, summary = _run(tmp_path, tmp_path / "pool", "dropped", method="none", duplicates=dropped)
    assert summary["captions_merged"] == 0
    assert not read_selection(out, shards).num_more_captions().any()


def test_a_threshold_and_a_target_contradict_each_other():
    with pytest.raises(ValueError, match="the threshold decides how many pairs are kept"):
        CurateConfig(method="text", target_rows=300, text=CaptionClustersConfig(threshold=20.0))
    with pytest.raises(ValueError, match="each gives a threshold"):
        CaptionClustersConfig(threshold=20.0, tail_share=0.1)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"threshold": -5.0}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"tail_share": -0.1}, "tail_share"),
    ],
)
def test_thresholds_out_of_range_are_refused(settings, name):
    with pytest.raises(ValueError, match=rf"text.{name} is "):
        CaptionClustersConfig(**settings)
