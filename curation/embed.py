"""The embed step: raw pairs to shards of frozen features, one part of the source to one shard.

Workers share nothing except the list of parts. A shard is finished when its sidecar, such as
`shard-00000.json`, lies beside it. The manifest is written last and is made of the sidecars. A run
that was killed at any moment therefore ends with the same bytes.
"""

import dataclasses
import errno
import hashlib
import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster import placement
from cluster.devices import settled
from cluster.fanout import Pool
from cluster.files import write_atomic
from cluster.identity import identity
from cluster.progress import open_label, progress
from curation.config import EmbedConfig
from curation.embed_worker import ROWS_VERSION, EmbedWorker, Task
from curation.embedded import earlier_shards
from curation.encoders.resolve import resolve
from curation.pairs.account import ACCOUNT, REJECTS, Account
from curation.pairs.config import SourceConfig
from curation.pairs.opening import Source
from curation.pairs.sample import Part
from curation.pairs.sources import checked, estimated_rows, open_source
from curation.shards.manifest import Manifest, ShardEntry, write_manifest
from curation.shards.schema import PATCHES, REGISTERS, spec_from_dict

logger = logging.getLogger(__name__)


class RejectBudgetError(ValueError):
    """More rows were rejected than the error budget allows."""


def run(config: EmbedConfig, *, out: Path, source: Path) -> dict[str, float]:
    """Embed every pair of `source` into `out`, where finished shards of an earlier run are kept.

    Raises RejectBudgetError as soon as too many rows are rejected, and ValueError if no row is
    left.
    """
    return embed_source(config, checked(config.source, open_source(config.source, source)), out)


def embed_source(config: EmbedConfig, source: Source, out: Path) -> dict[str, float]:
    """The step for a source that is already open."""
    out.mkdir(parents=True, exist_ok=True)
    config = dataclasses.replace(config, backbone=resolve(config.backbone))
    tasks = _tasks(config, out, source.parts)
    records = {task.index: record for task in tasks if (record := _finished(out, task)) is not None}

    # Finished shards with rejects are made again: repaired rows may be among them.
    if config.retry_rejects:
        records = {index: record for index, record in records.items() if not record["num_rejects"]}
    if records:
        logger.info("embed kept_shards=%d of=%d", len(records), len(tasks))

    # The rate counts the rows of this run alone, without those of finished shards.
    started = time.monotonic()
    kept_rows = _Totals(tasks, records).read
    _embed(config, out, tasks, records)
    seconds = time.monotonic() - started

    # Records came in any order; outputs are in the order of the parts. The budget was checked with
    # estimates during the run, and is checked with exact totals here.
    in_order = [records[task.index] for task in tasks]
    totals = _Totals(tasks, records)
    if totals.rejects > config.error_budget * totals.read:
        raise _budget_error(config, out, in_order)

    manifest = _manifest(in_order)
    if not manifest.num_rows:
        raise ValueError(
            f"{source.path} has no usable row ({_reasons(in_order)}): at least one is needed; "
            "check the data and source.split"
        )

    # The manifest comes last, because it is what makes the folder finished.
    _write_rejects(out, in_order, source.account)
    write_atomic(out / ACCOUNT, json.dumps(source.account.as_json(), indent=1))
    write_manifest(out, manifest)

    summary = (
        _summary(manifest, in_order, (totals.read - kept_rows) / seconds) | source.account.summary()
    )
    if config.retry_rejects:
        summary["rows_taken_over"] = float(sum(record.get("taken_over", 0) for record in in_order))

    return summary


def _tasks(config: EmbedConfig, out: Path, parts: Sequence[Part]) -> list[Task]:
    """One task per part.

    The digest of a task covers the data of its part and every setting that changes the shard.
    """
    settings = json.dumps(identity(config), sort_keys=True)
    of_rows = _settings_of_rows(config)
    earlier = earlier_shards(out, of_rows) if config.retry_rejects else {}

    digests = [
        hashlib.sha256(f"{settings}\n{part.digest()}".encode()).hexdigest() for part in parts
    ]
    tasks = [
        Task(index, part, digest, of_rows, earlier.get(part.name))
        for index, (part, digest) in enumerate(zip(parts, digests, strict=True))
    ]

    if config.retry_rejects and not any(task.earlier for task in tasks):
        logger.warning(
            "retry_rejects: no output beside %s has rows of these settings: every row is embedded",
            out,
        )

    return tasks


def _settings_of_rows(config: EmbedConfig) -> str:
    """Digest of all settings that the columns of a row depend on, whatever its key and data.

    Settings of the source are left out: how the data are stored does not change a row.
    """
    settings = identity(dataclasses.replace(config, source=SourceConfig()))
    return hashlib.sha256(json.dumps([ROWS_VERSION, settings], sort_keys=True).encode()).hexdigest()


def _finished(out: Path, task: Task) -> dict | None:
    """The sidecar of a task that an earlier run finished with the same settings and data."""
    sidecar = out / task.sidecar
    if not sidecar.is_file():
        return None
    record = json.loads(sidecar.read_text())
    shard = out / task.shard
    is_whole = shard.is_file() and shard.stat().st_size == record["entry"]["bytes"]
    return record if is_whole and record["task"] == task.digest else None


def _embed(config: EmbedConfig, out: Path, tasks: Sequence[Task], records: dict[int, dict]) -> None:
    """Do the tasks that have no record yet, and add their records to `records`."""
    waiting = [task for task in tasks if task.index not in records]
    if not waiting:
        return

    config = with_resources(config, len(waiting))
    totals = _Totals(tasks, records)
    kept_rows = totals.read

    with (
        Pool(EmbedWorker, config, out, resources=config.resources) as pool,
        progress(
            estimated_rows(config.source, [task.part for task in waiting]),
            open_label("embed"),
            "images",
        ) as meter,
    ):
        for task, record in pool.map("embed", waiting, on_count=meter.under_way):
            records[task.index] = record
            totals.add(task, record)
            meter(record["read"], rejects=totals.rejects)
            # The number of rows is an estimate until all parts are read.
            meter.total = round(totals.of_all(totals.read)) - kept_rows

            # Too many rejects for the whole source, even if no further row is rejected.
            if record["is_stopped"] or totals.rejects > config.error_budget * totals.of_all(
                totals.read
            ):
                raise _budget_error(config, out, [records[index] for index in sorted(records)])
            _check_space(out, len(tasks) - len(records), totals.of_all(totals.bytes) - totals.bytes)


def with_resources(config: EmbedConfig, num_tasks: int) -> EmbedConfig:
    """The config with resources and precision for the workers of this Ray session."""
    resources = placement.resolve(config.resources, num_tasks)
    return dataclasses.replace(settled(config, resources), resources=resources)


class _Totals:
    """Sums over the finished parts, and their estimates for all parts."""

    def __init__(self, tasks: Sequence[Task], records: Mapping[int, Mapping[str, Any]]) -> None:
        self._by_rows = all(task.part.num_rows is not None for task in tasks)
        self._of_all = sum(self._size(task.part) for task in tasks)
        self._done = 0
        self.read = self.rejects = self.bytes = 0
        for task in tasks:
            if task.index in records:
                self.add(task, records[task.index])

    def add(self, task: Task, record: Mapping[str, Any]) -> None:
        """Add a finished part."""
        self._done += self._size(task.part)
        self.read += record["read"]
        self.rejects += record["num_rejects"]
        self.bytes += 0 if record["is_stopped"] else record["entry"]["bytes"]

    def of_all(self, total: int) -> float:
        """The estimate of a total for all parts, in proportion to the parts' sizes."""
        return total * self._of_all / self._done

    def _size(self, part: Part) -> int:
        """Rows if they are known for every part, else bytes: all parts have the same unit."""
        return max(1, (part.num_rows or 0) if self._by_rows else part.num_bytes)


def _budget_error(
    config: EmbedConfig, out: Path, records: Sequence[Mapping[str, Any]]
) -> RejectBudgetError:
    read, rejects = (sum(record[count] for record in records) for count in ("read", "num_rejects"))
    return RejectBudgetError(
        f"{rejects} of the first {read} rows were rejected ({rejects / read:.1%}): error_budget "
        f"allows {config.error_budget:.1%}; {_reasons(records)}; each is listed in "
        f"{_write_rejects(out, records)}; raise error_budget and run again (finished shards are "
        "kept), or repair the data or its settings and run again with --embed.retry-rejects (good "
        "rows are copied)"
    )


def _check_space(out: Path, num_shards: int, needed: float) -> None:
    """Raise OSError when the remaining shards will not fit on the disk."""
    free = shutil.disk_usage(out).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"{free / 1e9:.1f} GB are free on the disk of {out}, and the remaining {num_shards} "
            f"shards need about {needed / 1e9:.1f} GB: free space, choose another workspace, or "
            "store less (content, dtype)",
        )


def _write_rejects(
    out: Path, records: Sequence[Mapping[str, Any]], account: Account | None = None
) -> Path:
    """Write every rejected row, then every unread file of the source, one per line with its reason.

    Returns the path of the file.
    """
    path = out / REJECTS
    rows = [reject for record in records for reject in record["rejects"]]
    unread = {} if account is None else account.unread()
    files = [{"file": name, "reason": reason} for reason, names in unread.items() for name in names]
    lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in (*rows, *files))
    write_atomic(path, "".join(lines).encode("utf-8", "replace"))

    return path


def _manifest(records: Sequence[Mapping[str, Any]]) -> Manifest:
    return Manifest(
        spec_from_dict(records[0]["spec"]),
        tuple(ShardEntry(**record["entry"]) for record in records),
    )


def _summary(
    manifest: Manifest, records: Sequence[Mapping[str, Any]], images_per_s: float
) -> dict[str, float]:
    spec = manifest.spec
    tokens = 1 + spec.num_tokens(REGISTERS) + spec.num_tokens(PATCHES)
    counts = _counts(records)
    summary = {
        "rows": manifest.num_rows,
        "rejects": counts.total(),
        **{
            f"rejects_{reason.replace(' ', '_')}": count for reason, count in sorted(counts.items())
        },
        "captions": sum(record["captions"] for record in records),
        "images_per_s": round(images_per_s, 2),
        "shards": len(manifest.shards),
        "bytes": sum(entry.bytes for entry in manifest.shards),
        "tokens": tokens * manifest.num_rows,
    }

    return {name: float(value) for name, value in summary.items()}


def _reasons(records: Sequence[Mapping[str, Any]]) -> str:
    return (
        ", ".join(f"{reason} {count}" for reason, count in _counts(records).most_common())
        or "no row was read"
    )


def _counts(records: Sequence[Mapping[str, Any]]) -> Counter[str]:
    return Counter(reject["reason"] for record in records for reject in record["rejects"])
