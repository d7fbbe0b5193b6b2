"""Shards: round trips, gathers against plain indexing, atomic commits, faults."""

import errno
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import curation.shards.mapped
import curation.shards.writer
from curation.clusters.vectors import ShardVectors
from curation.shards.codec import Dtype, decode_tokens, encode_tokens
from curation.shards.manifest import Manifest, ShardEntry, read_manifest, verify, write_manifest
from curation.shards.mapped import ShardError
from curation.shards.reader import EmbeddingShards, open_shards
from curation.shards.schema import CAPTIONS, CLS, PATCHES, EmbeddingSpec
from curation.shards.writer import write_shard

MAPS = Path("/proc/self/maps")
Pool = tuple[EmbeddingShards, dict[str, np.ndarray]]
MakeSpec = Callable[..., EmbeddingSpec]
WritePool = Callable[..., dict[str, np.ndarray]]
ROWS_PER_SHARD = (23, 0, 40, 7)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record batches of nine rows, so that a test's shard has several."""
    monkeypatch.setattr(curation.shards.writer, "BATCH_ROWS", 9)


@pytest.fixture(params=["float16", "bfloat16", "int8"])
def pool(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    embedding_spec: MakeSpec,
    write_pool: WritePool,
    small_batches: None,
) -> Pool:
    """(reader, the float32 values that it must give)."""
    spec = embedding_spec(dtype=request.param)
    written = write_pool(tmp_path / "pool", spec, ROWS_PER_SHARD)
    rounded = {name: _rounded(values, spec.dtype_of(name)) for name, values in written.items()}
    return EmbeddingShards(tmp_path / "pool"), rounded


@pytest.fixture
def folder(
    tmp_path: Path,
    embedding_spec: MakeSpec,
    write_pool: WritePool,
    small_batches: None,
) -> Path:
    write_pool(tmp_path / "pool", embedding_spec(), ROWS_PER_SHARD)
    return tmp_path / "pool"


def _rounded(values: np.ndarray, dtype: Dtype) -> np.ndarray:
    return decode_tokens(*encode_tokens(values, dtype), dtype)


def test_gather_equals_indexing_in_the_order_asked(pool: Pool) -> None:
    shards, values = pool
    rows = np.random.default_rng(1).integers(0, shards.num_rows, 200)
    for column, expected in values.items():
        np.testing.assert_array_equal(shards.gather(rows, column), expected[rows])


def test_gather_of_neighbours_and_of_one_row_equals_indexing(pool: Pool) -> None:
    shards, values = pool
    for rows in (np.arange(5, 60), np.arange(60, 5, -1), np.array([7])):
        np.testing.assert_array_equal(shards.gather(rows, PATCHES), values[PATCHES][rows])


def test_strings_have_room_for_more_than_2_gib(pool: Pool) -> None:
    shards, _ = pool
    assert shards.keys().type == pa.large_string()
    captions = shards.strings(CAPTIONS)
    assert captions.type == pa.large_list(pa.large_string())
    assert captions.to_pylist() == shards.captions(np.arange(shards.num_rows))


def test_more_shards_than_a_process_can_map_are_refused(
    tmp_path: Path, embedding_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "most").write_text("3000\n")
    monkeypatch.setattr(curation.shards.mapped, "MOST_MAPS", tmp_path / "most")
    entries = tuple(ShardEntry(f"shard-{index:05d}.arrow", 1, 1, "") for index in range(3000))
    write_manifest(tmp_path, Manifest(embedding_spec(), entries))
    with pytest.raises(ShardError, match=r"3000 shards.*larger source.part_rows"):
        EmbeddingShards(tmp_path)


def test_a_folder_is_mapped_once_by_all_that_read_it(folder: Path) -> None:
    shards = open_shards(folder)
    shards.keys()
    before = MAPS.read_text().count(".arrow")
    readers = [
        open_shards(folder),
        pickle.loads(pickle.dumps(shards)),
        ShardVectors(folder, CLS).shards,
    ]
    assert all(reader is shards and len(reader.keys()) == 70 for reader in readers)
    assert MAPS.read_text().count(".arrow") == before


def test_a_folder_that_was_embedded_again_is_opened_again(
    folder: Path, embedding_spec: MakeSpec, write_pool: WritePool
) -> None:
    shards = open_shards(folder)
    write_pool(folder, embedding_spec(), (3,), seed=1)
    assert (shards.num_rows, open_shards(folder).num_rows) == (70, 3)


def test_maps_that_another_reader_will_make_are_counted(
    tmp_path: Path, embedding_spec: MakeSpec, write_pool: WritePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pool", "other"):
        write_pool(tmp_path / name, embedding_spec(), (1,))
        entry = read_manifest(tmp_path / name).shards[0]
        entries = [replace(entry, file=f"shard-{index:05d}.arrow") for index in range(500)]
        for each in entries[1:]:
            (tmp_path / name / each.file).hardlink_to(tmp_path / name / entry.file)
        write_manifest(tmp_path / name, Manifest(embedding_spec(), tuple(entries)))
    (tmp_path / "most").write_text(str(MAPS.read_bytes().count(b"\n") + 750))
    monkeypatch.setattr(curation.shards.mapped, "MOST_MAPS", tmp_path / "most")
    pool = open_shards(tmp_path / "pool")
    with pytest.raises(
        ShardError, match=r"other has 500 shards.* 500 shards of other folders to map"
    ):
        open_shards(tmp_path / "other")
    assert open_shards(tmp_path / "pool") is pool


def test_a_shard_that_finds_no_room_is_not_blamed(folder: Path) -> None:
    """With its address space full, a process maps nothing more."""
    code = (
        "import sys, resource; from pathlib import Path\n"
        "from curation.shards.mapped import ShardError; from curation.shards.reader import "
        "open_shards\n"
        "shards = open_shards(Path(sys.argv[1])); used = "
        "int(Path('/proc/self/statm').read_text().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used, used))\n"
        "try: shards.shard(2)\n"
        "except ShardError as error: print(error)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, folder], capture_output=True, text=True, check=True
    ).stdout
    assert "shard-00002.arrow cannot be mapped" in told
    assert "vm.max_map_count" in told
    assert "delete" not in told


def test_gather_of_no_rows_is_empty(pool: Pool) -> None:
    shards, _ = pool
    assert shards.gather(np.empty(0, np.int64), PATCHES).shape == (0, 4, 8)


def test_gather_outside_the_pool_is_refused(pool: Pool) -> None:
    shards, _ = pool
    for row in (-1, shards.num_rows):
        with pytest.raises(IndexError, match="holds rows 0 to 69"):
            shards.gather(np.array([0, row]), CLS)


def test_gather_stored_fills_the_buffer_given(pool: Pool) -> None:
    shards, values = pool
    rows = np.array([69, 3, 3, 40])
    buffer = np.empty((4, 4, 8), shards.shard(0).views(PATCHES)[0].dtype)
    stored, scale = shards.gather_stored(rows, PATCHES, buffer)
    assert stored is buffer
    np.testing.assert_array_equal(
        decode_tokens(buffer, scale, shards.spec.dtype), values[PATCHES][rows]
    )


def test_vectors_are_views_of_the_file(pool: Pool) -> None:
    shards, _ = pool
    blocks = shards.shard(2).views(CLS)
    assert [len(block) for block in blocks] == [9, 9, 9, 9, 4]
    assert not any(block.flags.owndata or block.flags.writeable for block in blocks)


def test_strings_and_hashes_come_in_row_order(pool: Pool) -> None:
    shards, _ = pool
    assert shards.keys().to_pylist() == [f"key-{row}" for row in range(70)]
    np.testing.assert_array_equal(shards.hashes("pixel_hash"), 2 * np.arange(70, dtype=np.uint64))
    assert shards.captions(np.array([69, 0])) == [
        ["caption 69", "again 69"],
        ["caption 0", "again 0"],
    ]
    assert shards.thumbnails(np.array([30])) == [b"jpeg 30"]


def test_reader_survives_pickling(pool: Pool) -> None:
    shards, _ = pool
    shards.keys()
    copy = pickle.loads(pickle.dumps(shards))
    np.testing.assert_array_equal(
        copy.gather(np.array([4]), CLS), shards.gather(np.array([4]), CLS)
    )


def test_any_text_survives(tmp_path: Path, embedding_spec: MakeSpec, small_batches: None) -> None:
    spec = embedding_spec(
        num_registers=0, grid=(1, 1), content="pooled", caption_dim=0, caption_encoder=""
    )
    captions = ["a" * 10_000, "\N{GRINNING FACE}\N{ZERO WIDTH JOINER}", "قطة على الطاولة", ""]
    batch = {
        "key": ["ключ"],
        "source": ["s"],
        "captions": [captions],
        "cls": np.zeros((1, 1, 8), np.float32),
        "patches": np.zeros((1, 1, 8), np.float32),
        "thumbnail": [b""],
        **{name: np.array([2**64 - 1], np.uint64) for name in ("bytes_hash", "pixel_hash")},
        "perceptual_hash": np.full((1, 1, 32), 255, np.uint8),
    }
    entry = write_shard(tmp_path / "shard-00000.arrow", spec, [batch])
    write_manifest(tmp_path, Manifest(spec, (entry,)))
    shards = EmbeddingShards(tmp_path)
    assert shards.captions(np.array([0])) == [captions]
    assert shards.hashes("bytes_hash")[0] == 2**64 - 1


def test_bytes_do_not_depend_on_batching(
    folder: Path, tmp_path: Path, embedding_spec: MakeSpec
) -> None:
    shards = EmbeddingShards(folder)
    rows = np.arange(40) + shards.offsets[2]
    columns = {
        name: shards.strings(name).to_pylist() for name in shards.shard(2).batches[0].schema.names
    }
    for column in shards.spec.vector_columns():
        columns[column] = shards.gather(np.arange(70), column)
    whole = [{name: values[rows[0] : rows[-1] + 1] for name, values in columns.items()}]
    pieces = [
        {name: values[a:b] for name, values in columns.items()}
        for a, b in ((23, 24), (24, 55), (55, 63))
    ]
    for batches in (whole, pieces):
        entry = write_shard(tmp_path / "again.arrow", shards.spec, batches)
        assert entry.sha256 == shards.manifest.shards[2].sha256


def test_finished_folder_verifies(folder: Path) -> None:
    assert verify(folder) == []


def test_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="run the embed step"):
        read_manifest(tmp_path)
    assert len(verify(tmp_path)) == 1


def test_damaged_manifest_is_refused(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"spec": {}}')
    with pytest.raises(ShardError, match=r"manifest\.json"):
        EmbeddingShards(folder)


def test_truncated_shard_is_refused_by_name(folder: Path) -> None:
    victim = folder / "shard-00002.arrow"
    victim.write_bytes(victim.read_bytes()[:-100])
    with pytest.raises(ShardError, match=r"shard-00002\.arrow.*run the embed step again"):
        EmbeddingShards(folder)
    problems = verify(folder)
    assert len(problems) == 1
    assert "shard-00002.arrow" in problems[0]


def test_missing_shard_is_refused_by_name(folder: Path) -> None:
    (folder / "shard-00003.arrow").unlink()
    with pytest.raises(ShardError, match=r"shard-00003\.arrow is missing"):
        EmbeddingShards(folder)


def test_verify_sees_one_changed_bit(folder: Path) -> None:
    victim = folder / "shard-00000.arrow"
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    EmbeddingShards(folder)
    assert len(verify(folder)) == 1


def test_overwritten_shard_is_refused_when_opened(folder: Path) -> None:
    victim = folder / "shard-00000.arrow"
    victim.write_bytes(b"x" * victim.stat().st_size)
    with pytest.raises(ShardError, match=r"shard-00000\.arrow is not a readable Arrow file"):
        EmbeddingShards(folder).keys()


def test_shard_of_another_pool_is_refused_when_opened(
    folder: Path,
    tmp_path: Path,
    embedding_spec: MakeSpec,
    write_pool: WritePool,
) -> None:
    write_pool(tmp_path / "other", embedding_spec(digest="1" * 64), ROWS_PER_SHARD)
    (tmp_path / "other" / "shard-00000.arrow").replace(folder / "shard-00000.arrow")
    with pytest.raises(
        ShardError, match=r"manifest describes \(digest is '1{64}' and not '\w+'\): "
    ):
        EmbeddingShards(folder).keys()


def test_missing_column_is_refused_by_name(folder: Path) -> None:
    victim = folder / "shard-00003.arrow"
    size = victim.stat().st_size
    table = (
        pa.ipc.open_file(pa.memory_map(str(victim)))
        .read_all()
        .drop_columns(["captions", "thumbnail"])
    )
    victim.unlink()
    with pa.ipc.new_file(str(victim), table.schema) as writer:
        writer.write_table(table)
    with victim.open("ab") as file:
        file.write(b"\0" * (size - victim.stat().st_size))
    manifest = (folder / "manifest.json").read_text()
    assert str(size) in manifest
    with pytest.raises(ShardError, match=r"shard-00003\.arrow"):
        EmbeddingShards(folder).keys()


def test_failed_write_leaves_what_was_there(tmp_path: Path, embedding_spec: MakeSpec) -> None:
    path = tmp_path / "shard-00000.arrow"
    path.write_bytes(b"before")

    def failing() -> Iterator[dict]:
        raise RuntimeError("half way")
        yield {}

    with pytest.raises(RuntimeError, match="half way"):
        write_shard(path, embedding_spec(), failing())
    assert path.read_bytes() == b"before"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_full_disk_is_a_clear_error_and_leaves_nothing(
    full_disk: Path, embedding_spec: MakeSpec, write_pool: WritePool
) -> None:
    with pytest.raises(OSError, match=r"no space left.*run again") as caught:
        write_pool(full_disk, embedding_spec(dim=1024), [300])
    assert caught.value.errno == errno.ENOSPC
    assert list(full_disk.iterdir()) == []


def test_perceptual_hashes_come_in_the_order_asked(
    tmp_path: Path, embedding_spec: MakeSpec, write_pool: WritePool
) -> None:
    """Of the image alone, or with those of its forms; across shards and record batches."""
    stored = np.random.default_rng(0).integers(0, 256, (70, 3, 32), dtype=np.uint8)
    write_pool(
        tmp_path, embedding_spec(num_hashes=3), (40, 30), columns={"perceptual_hash": stored}
    )
    rows = np.random.default_rng(1).permutation(70)
    for num_hashes in (1, 3):
        found = EmbeddingShards(tmp_path).perceptual_hashes(rows, num_hashes)
        np.testing.assert_array_equal(found, stored[rows, :num_hashes])
