"""Galleries for the report: which rows it shows, and their thumbnails as HTML."""

import base64
import functools
import html
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int32, Int64

from curation.shards.reader import EmbeddingShards

MEMBERS = 14
CLUSTERS = 8
WORDS = 8
CAPTIONS_PER_CLUSTER = 400
WORD = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True)
class Clustering:
    """The bottom cluster of each row, and whether the row was kept."""

    labels: Int32[np.ndarray, " rows"]
    """-1 for rows without a cluster."""
    is_kept: Bool[np.ndarray, " rows"]
    num_clusters: int

    @property
    def before(self) -> Int64[np.ndarray, " k"]:
        """Number of rows per cluster."""
        return np.bincount(self.labels[self.labels >= 0], minlength=self.num_clusters)

    @property
    def after(self) -> Int64[np.ndarray, " k"]:
        """Number of kept rows per cluster."""
        return np.bincount(
            self.labels[(self.labels >= 0) & self.is_kept], minlength=self.num_clusters
        )

    def largest(self, count: int) -> Int64[np.ndarray, " n"]:
        """The `count` largest clusters, by the number of rows."""
        return np.argsort(-self.before, kind="stable")[:count]

    def smallest(self, count: int) -> Int64[np.ndarray, " n"]:
        """The `count` smallest clusters with rows."""
        before = self.before
        filled = np.flatnonzero(before)
        return filled[np.argsort(before[filled], kind="stable")][:count]


def before_and_after(
    shards: EmbeddingShards, clustering: Clustering, clusters: Int64[np.ndarray, " n"]
) -> str:
    """HTML: per cluster, some of its members, and beside them some of those that were kept."""
    cells = []
    for cluster in clusters.tolist():
        rows = np.flatnonzero(clustering.labels == cluster)
        kept = rows[clustering.is_kept[rows]]
        words = typical_words(shards, clustering, np.array([cluster]))[0]
        title = f"cluster {cluster}: {len(kept):,} of {len(rows):,} kept; {words}"
        sides = "".join(
            f'<div style="flex:1 1 300px;min-width:0">{_note(name)}{strip(shards, _spaced(chosen, MEMBERS))}</div>'
            for name, chosen in (("before", rows), ("kept", kept))
        )
        cells.append(
            f'{_note(title)}<div style="display:flex;flex-wrap:wrap;gap:0 28px">{sides}</div>'
        )

    return "".join(cells)


def cluster_strips(
    shards: EmbeddingShards, clustering: Clustering, clusters: Int64[np.ndarray, " n"]
) -> str:
    """HTML: one strip of members per cluster, in which dropped ones are faint."""
    strips = []
    for cluster in clusters.tolist():
        rows = np.flatnonzero(clustering.labels == cluster)
        title = f"cluster {cluster}: {clustering.is_kept[rows].sum():,} of {len(rows):,} kept"
        shown = rows[:MEMBERS]
        strips.append(
            f'<div style="flex:0 1 auto">{_note(title)}{strip(shards, shown, clustering.is_kept[shown])}</div>'
        )
    return f'<div style="display:flex;flex-wrap:wrap;gap:0 28px">{"".join(strips)}</div>'


def _spaced(rows: Int64[np.ndarray, " n"], most: int) -> Int64[np.ndarray, " m"]:
    """At most `most` of the rows, evenly spaced."""
    # np.unique, because rounding may choose a position twice.
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int))]


def strip(
    shards: EmbeddingShards,
    rows: Int64[np.ndarray, " n"],
    is_kept: Bool[np.ndarray, " n"] | None = None,
) -> str:
    """HTML: thumbnails side by side, with the first caption as a tool tip; faint if not kept."""
    is_clear = np.ones(len(rows), bool) if is_kept is None else is_kept
    pictures = zip(shards.thumbnails(rows), shards.captions(rows), is_clear.tolist(), strict=True)
    images = [
        image(data, captions[0] if captions else "", shown) for data, captions, shown in pictures
    ]
    return f'<div style="display:flex;flex-wrap:wrap;gap:4px;margin:2px 0 10px">{"".join(images)}</div>'


def image(data: bytes, title: str, shown: bool = True) -> str:
    """HTML of one thumbnail, or of its caption if no thumbnail is stored."""
    style = "height:48px;width:48px;object-fit:contain;border-radius:4px" + (
        "" if shown else ";opacity:.28"
    )
    if not data:
        return (
            f'<span style="{style};overflow:hidden;font-size:9px">{html.escape(title[:40])}</span>'
        )
    source = "data:image/jpeg;base64," + base64.b64encode(data).decode()
    return f'<img src="{source}" alt="" title="{html.escape(title, quote=True)}" style="{style}">'


def pair_gallery(examples: Sequence[dict]) -> str:
    """HTML: removed pictures, each beside the one that it repeats."""
    cells = []
    for row in examples:
        where = f"{row['other']} in {row['other_set']}" if row["other_set"] else row["other"]
        cosine = "" if np.isnan(row["cosine"]) else f"{row['cosine']:.3f}"
        note = cosine if row["bits"] is None else f"{row['bits']} bits"
        cells.append(_pair(row, where, note))
    return _cells(cells)


def margin_gallery(pairs: Sequence[dict]) -> str:
    """HTML: pairs near a threshold, each with the value that was compared with it."""
    return _cells([_pair(row, row["other"], f"{row['value']:.4g}") for row in pairs])


def _pair(row: dict, where: str, note: str) -> str:
    return (
        '<div style="text-align:center;font-size:11px;color:#667080">'
        f"{image(row['thumbnail'], row['key'])}{image(row['other_thumbnail'], where)}<br>{note}</div>"
    )


def _cells(cells: Sequence[str]) -> str:
    return f'<div style="display:flex;flex-wrap:wrap;gap:12px;margin:2px 0 10px">{"".join(cells)}</div>'


def typical_words(
    shards: EmbeddingShards, clustering: Clustering, clusters: Int64[np.ndarray, " n"]
) -> list[str]:
    """Per cluster, the words that are most typical of its captions, compared with the pool."""
    everywhere = _shares_of_pool(shards)
    words_of_clusters = []
    for cluster in clusters.tolist():
        # share * log(share / share in the pool): frequent here and rare elsewhere. A word that the
        # sample of the pool lacks counts as half a caption of the pool.
        shares = _word_shares(shards, np.flatnonzero(clustering.labels == cluster))
        score = {
            word: share * np.log(share / everywhere.get(word, 0.5 / shards.num_rows))
            for word, share in shares.items()
        }
        words_of_clusters.append(
            ", ".join(sorted(score, key=lambda word: (-score[word], word))[:WORDS])
        )

    return words_of_clusters


# Cached, because every gallery compares its clusters with the same pool.
@functools.lru_cache(maxsize=1)
def _shares_of_pool(shards: EmbeddingShards) -> dict[str, float]:
    return _word_shares(shards, np.arange(shards.num_rows))


def _word_shares(shards: EmbeddingShards, rows: Int64[np.ndarray, " n"]) -> dict[str, float]:
    """Share of pairs with each word, from a sample of evenly spaced pairs.

    The sample is larger for the whole pool than for a cluster.
    """
    most = CAPTIONS_PER_CLUSTER * (20 if len(rows) == shards.num_rows else 1)
    rows = _spaced(rows, most)
    counts: Counter[str] = Counter()
    # A set, so that a pair counts once per word, however often its captions have it.
    for captions in shards.captions(rows):
        counts.update({word for caption in captions for word in WORD.findall(caption.lower())})
    return {word: count / max(1, len(rows)) for word, count in counts.items()}


def _note(text: str) -> str:
    return f'<div style="font-size:12px;color:#667080">{html.escape(text)}</div>'
