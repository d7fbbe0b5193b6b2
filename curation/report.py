"""The results of curation as sections of the HTML report, with pictures and thumbnails inline."""

import html
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from curation.choice.balance import keep_probability
from curation.choice.decisions import EXAMPLES, MARGINS
from curation.choice.why import read_decisions
from curation.clusters.groups import Entries, one_entry_each
from curation.clusters.hierarchy import cluster_of_rows
from curation.clusters.levels import Level, read_level
from curation.curate import CURATION
from curation.pairs.account import ACCOUNT, REJECTS
from curation.pictures.galleries import (
    CLUSTERS,
    Clustering,
    before_and_after,
    cluster_strips,
    margin_gallery,
    pair_gallery,
    typical_words,
)
from curation.pictures.plots import cluster_map, funnel, size_curves, threshold_curve
from curation.shards.reader import EmbeddingShards, open_shards

SIDES = {"image": "images", "text": "captions"}
SHARES = ("both", "image_only", "text_only", "neither")
SHARED = ("caption_in", "reason")
CURVE_ROWS = 100_000
NUMBER = re.compile(r"-?[\d,]+(\.\d+)?( %)?")


FILES = {
    "files": "files",
    "files_read_as_pairs": "files of pairs (tars, Parquet)",
    "files_of_pairs": "files that are part of a pair",
    "files_lists": "lists of pairs",
    "files_not_read": "files that were not read",
}
"""How the report calls each count of a source's account."""


class Section(NamedTuple):
    """A part of the report."""

    title: str
    html: str


def curation_sections(curate: Path, embeddings: Path) -> list[Section]:
    """All sections about one curate folder and the embeddings that it was made from."""
    summary = json.loads((curate / CURATION).read_text())
    shards = open_shards(embeddings)
    decisions = read_decisions(curate)
    kept = decisions["kept"].to_numpy()
    sides = {}

    for side in SIDES:
        levels = _levels(curate / side)
        if levels:
            labels = decisions[f"{side}_cluster"].to_numpy()
            sides[side] = levels, Clustering(labels, kept, len(levels[0].centroids))

    sections = [
        Section("What was read", _reading(embeddings)),
        Section("What was kept", _funnel(summary)),
    ]

    if sides:
        sizes = _sizes(sides, decisions["copies"].to_numpy())
        sections += [
            Section("Cluster sizes before and after", sizes),
            Section("Evenness", _evenness(summary)),
        ]
    if "image" in sides:
        sections += _image_galleries(shards, *sides["image"])
    if "text" in sides:
        sections.append(
            Section("Caption clusters", _caption_clusters(shards, *sides["text"], summary))
        )
    if "entries" in decisions.column_names:
        sections.append(Section("Metadata entries", _metadata(decisions, summary)))

    return [
        *sections,
        *_removed(curate, summary),
        *_margins(curate),
        *_shared_captions(shards, decisions, summary),
        Section("Time and memory", _phases(summary)),
    ]


def _reading(embeddings: Path) -> str:
    """A table of the files of the source by use, and of rejected rows by reason."""
    account = json.loads((embeddings / ACCOUNT).read_text())
    rejects = [json.loads(line) for line in (embeddings / REJECTS).read_text().splitlines()]
    reasons = Counter(reject["reason"] for reject in rejects if "key" in reject)
    rows = [[label, f"{int(account['counts'][name]):,}"] for name, label in FILES.items()]
    rows += [[f"rows rejected: {reason}", f"{count:,}"] for reason, count in reasons.most_common()]
    rows += [
        [f"not read: {reason}, such as {entry['first'][0]}", f"{entry['files']:,}"]
        for reason, entry in account["not_read"].items()
    ]
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in account["notes"])

    return _table(("files and rows", "number"), rows) + notes


def _levels(folder: Path) -> list[Level]:
    # level-1.npz is a level; level-1.round-0.npz is a checkpoint that an interrupted run has left.
    return [
        read_level(path) for path in sorted(folder.glob("level-*.npz")) if path.stem.count(".") == 0
    ]


def _funnel(summary: dict[str, Any]) -> str:
    """One sentence on the selection, and the number of pairs left after each stage."""
    # Reasons are in the order of the stages; those without rows are no stage of this run.
    left = summary["rows"]
    stages = [("pool", summary["rows"])]
    for reason, count in summary["counts"].items():
        if reason != "kept" and count:
            left -= count
            stages.append((f"after {reason}", left))

    how = f"method {html.escape(summary['method'])}, nearest centroids in {summary['engine']}"
    text = f"<p>{summary['counts']['kept']:,} of {summary['rows']:,} pairs, {how}"
    if "text_threshold" in summary["figures"]:
        text += f", caption threshold t = {summary['figures']['text_threshold']:.4g}"
    if len(stages) == 1:
        return text + ": nothing was removed.</p>"
    if not summary["evaluation"]:
        text += ", compared with no evaluation image"

    return (
        text
        + ".</p>"
        + _picture(funnel(stages), "pairs left after each stage")
        + _both_sides(summary["figures"])
    )


def _both_sides(figures: dict[str, float]) -> str:
    """A table of the pairs that images and captions have chosen; empty unless both have."""
    if "in_both" not in figures:
        return ""

    both, image, text, neither = (int(figures[f"in_{name}"]) for name in SHARES)
    rows = [
        ["chosen by images", f"{both:,}", f"{image:,}", f"{both + image:,}"],
        ["not chosen by images", f"{text:,}", f"{neither:,}", f"{text + neither:,}"],
        [
            "together",
            f"{both + text:,}",
            f"{image + neither:,}",
            f"{both + image + text + neither:,}",
        ],
    ]

    return _table(("", "chosen by captions", "not chosen by captions", "together"), rows)


def _sizes(
    sides: dict[str, tuple[list[Level], Clustering]], copies: Int64[np.ndarray, " rows"]
) -> str:
    """Curves of cluster sizes, which count copies, and a map of at least three clusters."""
    curves = {}
    for side, (levels, clustering) in sides.items():
        clustered = copies[clustering.labels >= 0]
        for number, (level, labels) in enumerate(
            zip(levels, cluster_of_rows(levels), strict=True), start=1
        ):
            most = len(level.centroids)
            sizes = (
                np.bincount(labels, minlength=most),
                np.bincount(labels, clustered, most).astype(np.int64),
            )
            curves[f"{SIDES[side]}, level {number} ({most:,} clusters)"] = sizes

    maps = ""
    if "image" in sides and len(sides["image"][0][0].centroids) > 2:
        levels, clustering = sides["image"]
        picture = _picture(
            cluster_map(levels[0].centroids, clustering.before, clustering.after), "map of clusters"
        )
        maps = (
            "<p>Image clusters on two principal axes; area is the size before, color the "
            f"share kept.</p>{picture}"
        )

    return _picture(size_curves(curves), "cluster sizes by rank, log-log") + maps


def _evenness(summary: dict[str, Any]) -> str:
    """A table of entropy and Gini coefficient per level, before and after."""
    figures = summary["figures"]
    rows = []
    for name in figures:
        if name.endswith("_entropy_before"):
            level = name.removesuffix("_entropy_before")
            values = [
                figures[f"{level}_{what}_{when}"]
                for what in ("entropy", "gini")
                for when in ("before", "after")
            ]
            rows.append(
                [level.replace("_level", ", level "), *(f"{value:.3f}" for value in values)]
            )

    return (
        "<p>Entropy in bits (higher is more even), Gini coefficient (0: all clusters equal).</p>"
        + _table(("level", "entropy before", "after", "Gini before", "after"), rows)
    )


def _image_galleries(
    shards: EmbeddingShards, levels: list[Level], clustering: Clustering
) -> Iterator[Section]:
    note = (
        "<p>Evenly spaced members, and what the sampling kept of them; hover for the caption.</p>"
    )
    yield Section(
        "Largest image clusters",
        note + before_and_after(shards, clustering, clustering.largest(CLUSTERS)),
    )
    note = "<p>The smallest clusters; faint pictures were dropped.</p>"
    yield Section(
        "Tail image clusters",
        note + cluster_strips(shards, clustering, clustering.smallest(2 * CLUSTERS)),
    )


def _caption_clusters(
    shards: EmbeddingShards, levels: list[Level], clustering: Clustering, summary: dict[str, Any]
) -> str:
    # np.unique, because the largest and the smallest overlap if there are few clusters.
    clusters = np.unique(
        np.concatenate([clustering.largest(2 * CLUSTERS), clustering.smallest(CLUSTERS)])
    )
    clusters = clusters[np.argsort(-clustering.before[clusters], kind="stable")]
    words = typical_words(shards, clustering, clusters)
    rows = [
        [str(cluster), f"{clustering.before[cluster]:,}", f"{clustering.after[cluster]:,}", words]
        for cluster, words in zip(clusters.tolist(), words, strict=True)
    ]
    table = _table(("cluster", "pairs before", "after", "most typical words"), rows)

    # The threshold is that of the top clusters: each keeps min(t, its rows), whatever lies below.
    return table + _threshold(one_entry_each(cluster_of_rows(levels)[-1]), summary)


def _threshold(entries: Entries, summary: dict[str, Any]) -> str:
    """The curve of the threshold t against the number of rows kept, from at most 100,000 rows."""
    threshold = summary["figures"].get("text_threshold")
    if not threshold:
        return ""

    # Expected sizes need no random numbers: the mean keep probability of evenly spaced rows, times
    # the number of all rows. Counts of entries are those of all rows.
    counts = np.bincount(entries.values)
    num_rows = len(entries.counts())
    some = entries.take(
        np.unique(np.linspace(0, num_rows - 1, min(num_rows, CURVE_ROWS)).astype(int))
    )
    shown = len(some.counts())
    thresholds = np.geomspace(0.5, max(1, counts.max()), 60)
    share = np.array(
        [keep_probability(some, counts, np.full(shown, value)).mean() for value in thresholds]
    )

    return _picture(
        threshold_curve(thresholds, num_rows * share, threshold), "threshold against size"
    )


def _metadata(decisions: pa.Table, summary: dict[str, Any]) -> str:
    """A table of the most frequent and the rarest entries that occur, before and after."""
    # A list column of dictionary values: offsets and indices are Entries as they are.
    column = decisions["entries"].combine_chunks()
    names = column.values.dictionary.to_pylist()
    entries = Entries(column.offsets.to_numpy(), column.values.indices.to_numpy())
    before = np.bincount(entries.values, minlength=len(names))
    copies = decisions["copies"].to_numpy()[entries.rows()]
    after = np.bincount(entries.values, copies, len(names)).astype(np.int64)
    occurring = np.flatnonzero(before)
    order = occurring[np.argsort(-before[occurring], kind="stable")]
    # np.unique, because the first and the last entries overlap if there are few.
    shown = np.unique(
        np.r_[np.arange(min(len(order), 2 * CLUSTERS)), np.arange(len(order))[-CLUSTERS:]]
    )
    rows = [
        [names[entry], f"{before[entry]:,}", f"{after[entry]:,}"] for entry in order[shown].tolist()
    ]
    matched = int((entries.counts() > 0).sum())
    note = (
        f"<p>{len(occurring):,} of {len(names):,} entries occur, "
        f"{len(entries.values) / max(1, matched):.1f} in each of the {matched:,} pairs that have "
        f"one; {int((after[occurring] > 0).sum()):,} occur in what was kept.</p>"
    )
    table = _table(("entry", "pairs before", "after"), rows)

    return note + table + _threshold(entries.take(np.flatnonzero(entries.counts())), summary)


def _removed(curate: Path, summary: dict[str, Any]) -> Iterator[Section]:
    """Per kind of duplicate and leakage, examples of removed pictures beside those they repeat."""
    with pa.memory_map(str(curate / EXAMPLES)) as source:
        examples = pa.ipc.open_file(source).read_all().to_pylist()
    for reason in dict.fromkeys(row["reason"] for row in examples):
        chosen = [row for row in examples if row["reason"] == reason]
        what = "the evaluation image" if reason.startswith("leakage") else "the kept picture"
        note = (
            f"<p>{summary['counts'][reason]:,} pairs: left what was removed, right {what}, "
            "with their cosine.</p>"
        )
        yield Section(reason[0].upper() + reason[1:], note + pair_gallery(chosen))


def _margins(curate: Path) -> Iterator[Section]:
    """Per threshold, the pairs nearest to it on either side, which show whether it is right."""
    with pa.memory_map(str(curate / MARGINS)) as source:
        pairs = pa.ipc.open_file(source).read_all().to_pylist()

    thresholds = dict.fromkeys((row["evaluation"], row["sign"], row["threshold"]) for row in pairs)
    if not thresholds:
        return

    shown = []
    for evaluation, sign, threshold in thresholds:
        unit = "cosine" if sign == "cosine" else "bits"
        where = f"Leakage against {evaluation}" if evaluation else "Duplicates"
        shown.append(
            f"<p><b>{html.escape(where)}, {sign}</b>: threshold {threshold:.4g} {unit}.</p>"
        )
        own = [
            row
            for row in pairs
            if (row["evaluation"], row["sign"], row["threshold"]) == (evaluation, sign, threshold)
        ]
        for is_copy, title in (
            (True, "Counted as copies"),
            (False, "Not counted as copies"),
        ):
            if side := [row for row in own if row["is_copy"] == is_copy]:
                shown.append(f"<p>{title}</p>{margin_gallery(side)}")

    note = (
        "<p>The pairs whose cosine, or number of differing hash bits, is nearest to each "
        "threshold.</p>"
    )
    yield Section("Pairs next to the thresholds", note + "".join(shown))


def _shared_captions(
    shards: EmbeddingShards, decisions: pa.Table, summary: dict[str, Any]
) -> Iterator[Section]:
    """The number of pairs that share a caption with an evaluation set, and some examples."""
    rows = np.flatnonzero(decisions["caption_in"].is_valid())
    if not len(rows):
        return

    kept = int(decisions["kept"].to_numpy()[rows].sum())
    some = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), CLUSTERS)).astype(int))]
    table = _table(
        ("key", "captions", "evaluation set", "decision"),
        [
            [
                decisions["key"][row].as_py(),
                "; ".join(captions),
                *(str(decisions[name][row]) for name in SHARED),
            ]
            for row, captions in zip(some.tolist(), shards.captions(some), strict=True)
        ],
    )
    note = (
        f"<p>{len(rows):,} pairs have a caption that an evaluation set has too; {kept:,} of them "
        "were kept. Their keys are in decisions.arrow, column caption_in; "
        "leakage.captions=remove drops them.</p>"
    )
    yield Section("Captions that occur in evaluation", note + table)


def _phases(summary: dict[str, Any]) -> str:
    """Time and peak memory of each phase."""
    rows = [
        [
            name.replace("_", " "),
            f"{phase['seconds']:.2f}",
            f"{phase['driver_mb']:,.0f}",
            f"{phase['workers_mb']:,.0f}",
        ]
        for name, phase in summary["phases"].items()
    ]
    note = "<p>Peak of private memory, sampled every 20 ms; mapped shards are not counted.</p>"

    return note + _table(("phase", "seconds", "driver, MB", "all workers, MB"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as wide as its content; columns of numbers are aligned on the right."""
    are_numbers = [
        bool(rows) and all(NUMBER.fullmatch(row[place]) for row in rows)
        for place in range(len(head))
    ]

    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = [' class="number"' if is_number else "" for is_number in are_numbers]
        inside = [
            f"<{tag}{kind}>{html.escape(cell)}</{tag}>"
            for kind, cell in zip(kinds, cells, strict=True)
        ]
        return f"<tr>{''.join(inside)}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f'<div class="scroll"><table class="fitted">{line("th", head)}{body}</table></div>'


def _picture(uri: str, alt: str) -> str:
    return f'<div style="overflow-x:auto"><img src="{uri}" alt="{html.escape(alt)}" style="max-width:100%"></div>'
