"""Formats for `benchmarks.loader`: how each writes the same float16 records, and hands them out
shuffled, in batches.

Every format is uncompressed and is read the way its users read it in shuffled order; batches are
NumPy rows. Ours is read through the order and the gather of the training loader, and once more
through the loader itself.
"""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.shards.manifest import Manifest, write_manifest
from curation.shards.reader import EmbeddingShards
from curation.shards.schema import CLS, HASHES, PATCHES, EmbeddingSpec
from curation.shards.selection import write_selection
from curation.shards.writer import write_shard
from train.config import ShuffleConfig, TokenizerConfig, TrainConfig
from train.data import Pairs
from train.shuffle import mix, shuffled
from train.tokenizer import train_tokenizer

SEED = 0
BLOCK_BYTES = 16_000_000  # of a writer's block, a Parquet row group
SHARD_BYTES = 64_000_000
CAPTION = "a photo of record number"
Batches = Iterator[tuple[np.ndarray, ...]]


class Records(NamedTuple):
    """Records of one size: rows of float16, the same for everybody."""

    num: int
    words: int
    batch: int

    def blocks(self, block_bytes: int = BLOCK_BYTES) -> Iterator[np.ndarray]:
        """All records in order, some at a time."""
        step = max(1, block_bytes // (2 * self.words))
        random = np.random.default_rng(SEED)
        for start in range(0, self.num, step):
            shape = min(step, self.num - start), self.words
            yield random.standard_normal(shape, np.float32).astype(np.float16)


class Contestant(NamedTuple):
    """A format: the package that it needs, how its files are written, how batches come out of
    them.
    """

    package: str
    write: Callable[[Path, Records], None]
    read: Callable[[Path, Records], Batches]


def write_ours(folder: Path, records: Records) -> None:
    dim, grid = (1024, (1, 1)) if records.words == 2048 else (512, (1, records.words // 512 - 1))
    content = "pooled" if grid == (1, 1) else "tokens"
    spec = EmbeddingSpec("random", "d", "random", 224, dim, 0, grid, content, "float16", "", 0)  # type: ignore[arg-type]
    entries = []
    start = 0

    for index, block in enumerate(records.blocks(SHARD_BYTES)):
        names = [f"{row:09d}" for row in range(start, start + len(block))]
        start += len(block)
        vectors = {CLS: block[:, :dim], PATCHES: block[:, dim:]}
        plain = {"key": names, "source": ["random"] * len(block), "thumbnail": [b""] * len(block)}
        captions = {"captions": [[f"{CAPTION} {name}"] for name in names]}
        hashes = dict.fromkeys(HASHES, np.arange(len(block), dtype=np.uint64))
        entries.append(
            write_shard(
                folder / f"shard-{index:05d}.arrow",
                spec,
                [{**plain, **captions, **vectors, **hashes}],
            )
        )

    write_manifest(folder, Manifest(spec, tuple(entries)))
    (folder / "selection").mkdir()
    write_selection(folder / "selection", EmbeddingShards(folder), np.arange(records.num))


open_ours = cache(EmbeddingShards)


def read_ours(folder: Path, records: Records) -> Batches:
    """Any order, for pools that fit in memory."""
    return gathered(folder, records, ShuffleConfig())


def gathered(folder: Path, records: Records, order: ShuffleConfig) -> Batches:
    """The order and the gather of the training loader, without captions."""
    shards = open_ours(folder)
    for start in range(0, records.num, records.batch):
        index = np.arange(start, min(start + records.batch, records.num))
        rows = shuffled(index, records.num, mix(SEED), order)
        yield shards.gather_stored(rows, CLS)[0], shards.gather_stored(rows, PATCHES)[0]


def read_ours_in_blocks(folder: Path, records: Records) -> Batches:
    """Blocks of 12 MB, eight shuffled together, for disks."""
    block = max(1, 12_000_000 // (2 * records.words))
    return gathered(folder, records, ShuffleConfig("blocks", block_rows=block, window_blocks=8))


@cache
def open_pairs(folder: Path) -> Pairs:
    words = train_tokenizer(
        TokenizerConfig(vocab_size=300), (f"{CAPTION} {row}" for row in range(1000))
    )
    return Pairs(folder, folder / "selection", words, TrainConfig(seed=SEED, holdout=0.0))


def read_pairs(folder: Path, records: Records) -> Batches:
    """The training loader itself: with keys, a caption each, tokens and packing, which the others
    do not give.
    """
    pairs = open_pairs(folder)
    for step in range(pairs.epoch_steps(records.batch)):
        yield tuple(stored.values.numpy() for stored in pairs.batch(step, records.batch).vision)


def write_webdataset(folder: Path, records: Records) -> None:
    import webdataset

    row = 0
    for index, block in enumerate(records.blocks(SHARD_BYTES)):
        with webdataset.TarWriter(str(folder / f"{index:05d}.tar")) as tar:
            for record in block:
                tar.write({"__key__": f"{row:09d}", "bin": record.tobytes()})
                row += 1


def read_webdataset(folder: Path, records: Records) -> Batches:
    """Shards in random order, and a shuffle buffer of some batches."""
    import webdataset

    files = [str(path) for path in sorted(folder.glob("*.tar"))]
    data = webdataset.WebDataset(files, shardshuffle=len(files), seed=SEED, empty_check=False)
    return stacked(
        (sample["bin"] for sample in data.shuffle(4 * records.batch, seed=SEED)), records
    )


def write_mds(folder: Path, records: Records) -> None:
    streaming = import_streaming()
    with streaming.MDSWriter(
        out=str(folder), columns={"bin": "bytes"}, size_limit=SHARD_BYTES
    ) as writer:
        for block in records.blocks():
            for record in block:
                writer.write({"bin": record.tobytes()})


def read_mds(folder: Path, records: Records) -> Batches:
    streaming = import_streaming()
    streaming.base.util.clean_stale_shared_memory()
    data = streaming.StreamingDataset(
        local=str(folder),
        shuffle=True,
        shuffle_seed=SEED,
        batch_size=records.batch,
        num_canonical_nodes=1,
    )
    return stacked((sample["bin"] for sample in data), records)


def import_streaming() -> ModuleType:
    """mosaicml-streaming, which needs torchvision; with torch for CPUs torchvision's own operators
    are missing.
    """
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

    import streaming

    return streaming


def stacked(samples: Iterator[bytes], records: Records) -> Batches:
    """Batches of records that come one by one, each copied once."""
    batch = np.empty((records.batch, records.words), np.float16)
    filled = 0
    for sample in samples:
        batch[filled] = np.frombuffer(sample, np.float16)
        filled += 1
        if filled == len(batch):
            yield (batch,)
            batch = np.empty_like(batch)
            filled = 0

    if filled:
        yield (batch[:filled],)


def table_of(block: np.ndarray) -> pa.Table:
    """Records as a column of fixed-size lists."""
    return pa.table(
        {"bin": pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), block.shape[1])}
    )


def rows_of(column: pa.ChunkedArray, records: Records) -> np.ndarray:
    """A column as rows of float16; copied where it is in pieces."""
    chunk = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if pa.types.is_fixed_size_binary(chunk.type):
        words = np.frombuffer(
            chunk.buffers()[1],
            np.float16,
            len(chunk) * records.words,
            chunk.offset * 2 * records.words,
        )
    else:
        words = chunk.flatten().to_numpy(zero_copy_only=True)
    return words.reshape(-1, records.words)


def write_datasets(folder: Path, records: Records) -> None:
    import datasets

    table = pa.concat_tables([table_of(block) for block in records.blocks()])
    datasets.disable_progress_bars()
    datasets.Dataset(table).save_to_disk(str(folder), max_shard_size="64MB")


@cache
def open_datasets(folder: Path) -> Any:
    import datasets

    return datasets.load_from_disk(str(folder))


def read_datasets(folder: Path, records: Records) -> Batches:
    """As Arrow tables, which is the quickest and not what a training loop asks for."""
    for table in open_datasets(folder).shuffle(seed=SEED).with_format("arrow").iter(records.batch):
        yield (rows_of(table["bin"], records),)


def read_datasets_numpy(folder: Path, records: Records) -> Batches:
    """In the format that a training loop would ask for."""
    data = open_datasets(folder).shuffle(seed=SEED).with_format("numpy", dtype=np.float16)
    for batch in data.iter(records.batch):
        yield (batch["bin"],)


def write_parquet(folder: Path, records: Records) -> None:
    _write_parquet(folder, records, table_of)


def write_parquet_binary(folder: Path, records: Records) -> None:
    _write_parquet(folder, records, binary_table)


def _write_parquet(folder: Path, records: Records, make: Callable[[np.ndarray], pa.Table]) -> None:
    rows = max(1, BLOCK_BYTES // (2 * records.words))
    for index, block in enumerate(records.blocks(SHARD_BYTES)):
        path = folder / f"{index:05d}.parquet"
        pq.write_table(
            make(block), path, row_group_size=rows, compression="none", use_dictionary=False
        )


def binary_table(block: np.ndarray) -> pa.Table:
    """Records as fixed-size binary, which Parquet reads an order of magnitude faster than lists."""
    kind = pa.binary(block[0].nbytes)
    return pa.table({"bin": pa.Array.from_buffers(kind, len(block), [None, pa.py_buffer(block)])})


def read_parquet(folder: Path, records: Records) -> Batches:
    """Row groups in random order, the rows of four shuffled together."""
    random = np.random.default_rng(SEED)
    files = [pq.ParquetFile(path) for path in sorted(folder.glob("*.parquet"))]
    groups = [(file, group) for file in files for group in range(file.metadata.num_row_groups)]
    order = random.permutation(len(groups)).tolist()

    for start in range(0, len(order), 4):
        window = [groups[index] for index in order[start : start + 4]]
        tables = [file.read_row_group(group, use_threads=False) for file, group in window]
        rows = np.concatenate([rows_of(table["bin"], records) for table in tables])
        mixed = random.permutation(len(rows))
        for first in range(0, len(rows), records.batch):
            yield (rows[mixed[first : first + records.batch]],)


def write_lance(folder: Path, records: Records) -> None:
    import lance

    tables = pa.concat_tables([table_of(block) for block in records.blocks()])
    lance.write_dataset(tables, str(folder / "data.lance"), max_bytes_per_file=SHARD_BYTES)


@cache
def open_lance(folder: Path) -> Any:
    import lance

    return lance.dataset(str(folder / "data.lance"))


def read_lance(folder: Path, records: Records) -> Batches:
    data = open_lance(folder)
    order = np.random.default_rng(SEED).permutation(records.num)
    for start in range(0, records.num, records.batch):
        yield (rows_of(data.take(order[start : start + records.batch].tolist())["bin"], records),)


CONTESTANTS = {
    "ours": Contestant("", write_ours, read_ours),
    "ours, blocks": Contestant("", write_ours, read_ours_in_blocks),
    "ours, with captions": Contestant("", write_ours, read_pairs),
    "WebDataset": Contestant("webdataset", write_webdataset, read_webdataset),
    "MDS": Contestant("streaming", write_mds, read_mds),
    "HF datasets, numpy": Contestant("datasets", write_datasets, read_datasets_numpy),
    "HF datasets, arrow": Contestant("datasets", write_datasets, read_datasets),
    "Parquet, lists": Contestant("", write_parquet, read_parquet),
    "Parquet, binary": Contestant("", write_parquet_binary, read_parquet),
    "Lance": Contestant("lance", write_lance, read_lance),
}
