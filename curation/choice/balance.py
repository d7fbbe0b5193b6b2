"""Which rows a balanced sample keeps: by image clusters, by captions, or by both together.

Image clusters share a budget by water filling, level by level: hierarchical sampling of Vo et al.
2024 (arXiv:2405.15613). Captions have keep probabilities by their clusters or entries: MetaCLIP
(arXiv:2309.16671), extended to levels of clusters. Both selections are nested, that is, a larger
budget keeps all rows of a smaller one. Bisection therefore finds the budgets whose intersection or
union has exactly the wanted size.
Everything is NumPy over arrays, without a loop over clusters.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from curation.choice.config import Combine
from curation.choice.water import Vessels, water_fill
from curation.clusters.groups import Entries, rank_in_groups

HALVINGS = 52  # of an interval: a float64 has 52 bits after its leading one


class Balance(NamedTuple):
    """A solved pair of budgets: both selections, and how often the combination uses each row."""

    image: Bool[np.ndarray, " rows"]
    text: Bool[np.ndarray, " rows"]
    copies: Int64[np.ndarray, " rows"]
    image_budget: int
    text_budget: int


class ImageBalance:
    """Hierarchical balanced sampling of rows whose clusters form a tree.

    Example: three leaves of 6, 2 and 4 rows. The first two have the parent 0, the third has the
    parent 1, and the budget is 8. The parents get 4 rows each. Parent 0 shares its 4 rows among its
    leaves as 2 and 2, so the quotas of the leaves are [2, 2, 4].
    """

    def __init__(
        self,
        leaves: Int32[np.ndarray, " rows"],
        parents: list[Int32[np.ndarray, " _"]],
        num_leaves: int,
        priority: Float64[np.ndarray, " rows"],
        seed: int,
        repeats: int = 1,
    ) -> None:
        """The tree of clusters, and the order in which rows are used.

        `parents` has one array per level from the leaves upwards: the parent of each cluster. A
        leaf uses its rows by ascending `priority`, each up to `repeats` times, and repeats a row
        only after all its other rows have been used as often. `seed` decides which clusters get the
        rows that remain after even sharing.
        """
        self.leaves = leaves
        self.leaf_sizes = np.bincount(leaves, minlength=num_leaves)
        sizes = [repeats * self.leaf_sizes]
        self.parents: list[Int64[np.ndarray, " _"]] = [
            labels.astype(np.int64) for labels in parents
        ]
        # A cluster without children has the size 0. Only the level above tells how many clusters a
        # level has; nothing lies above the last level.
        num_parents = [*(len(labels) for labels in self.parents[1:]), 0]
        for labels, least in zip(self.parents, num_parents, strict=False):
            sizes.append(np.bincount(labels, sizes[-1], least).astype(np.int64))

        # The clusters of the last level share one root, whose budget is the whole budget.
        self.sizes = sizes
        self.parents.append(np.zeros(len(sizes[-1]), np.int64))
        self.order = [
            np.random.default_rng([seed, level]).random(len(size))
            for level, size in enumerate(sizes)
        ]
        self.rank = rank_in_groups(leaves, priority)
        self.most = repeats * len(leaves)

    def quotas(self, budget: int) -> Int64[np.ndarray, " leaves"]:
        """Rows to use from each leaf: the budget, water-filled from the top level down."""
        quotas = np.array([budget])
        for sizes, parents, order in zip(
            reversed(self.sizes), reversed(self.parents), reversed(self.order), strict=True
        ):
            quotas = water_fill(sizes, parents, quotas, order)
        return quotas

    def copies(self, budget: int) -> Int64[np.ndarray, " rows"]:
        """Copies per row, summing to `budget`; within a leaf, counts differ by at most one.

        A leaf of 3 rows with the quota 5 uses its rows 2, 2 and 1 times, by rank.
        """
        # The row of rank r is used at the turns r, r + size, r + 2 size, ... below the quota: the
        # number of these is (quota - r) / size, rounded up.
        rest = self.quotas(budget)[self.leaves] - self.rank
        return np.maximum(0, -(-rest // self.leaf_sizes[self.leaves]))

    def expected_copies(self, budget: int) -> Float64[np.ndarray, " rows"]:
        """Per row, the quota of its leaf per row: its keep probability, above 1 if rows repeat."""
        return (self.quotas(budget) / np.maximum(self.leaf_sizes, 1))[self.leaves]


class TextBalance:
    """MetaCLIP's sampling: keep probabilities of rows by the entries of their captions.

    A row is kept with probability 1 - prod over its entries of (1 - t / max(c, t)), where c is the
    number of rows with the entry and t is the threshold. It is kept if its coin, a uniform random
    number, is below that probability, that is, if t is above the row's critical value. Rows without
    entries come first in `order` and are always kept.

    If the entries are clusters below further levels, t is the water level of the top clusters: each
    keeps min(t, its rows), shared among its children as evenly as their rows allow, and so on down
    to the leaves. A row's critical value is then carried up: when the water in its leaf stands at
    v, the parent holds the sum of min(v, rows) over its leaves, and that is the water level of the
    parent.

    Example: a top cluster has leaves of 2, 4 and 9 rows. A row of the last leaf with the coin 1/3
    has the critical value 9 / 3 = 3 in its leaf. At this level the leaves hold 2, 3 and 3 rows, so
    the row's critical value is 8: it is kept if t is above 8. With t = 8, its keep probability is
    1/3.
    """

    def __init__(
        self,
        entries: Entries,
        coins: Float64[np.ndarray, " rows"],
        parents: Sequence[Int32[np.ndarray, " _"]] = (),
    ) -> None:
        """`parents` has one array per level from the leaves upwards: the parent of each cluster.

        With parents, each row has exactly one entry, which is its leaf. `counts` are the rows of
        each cluster of the top level; without parents, those of each entry.
        """
        self.entries = entries
        self.entry_counts = np.bincount(
            entries.values, minlength=len(parents[0]) if len(parents) else 0
        )
        self.counts = self.entry_counts
        self.floors: list[Vessels] = []
        for number, labels in enumerate(parents, start=1):
            # A cluster without children has no rows. Only the level above tells how many clusters a
            # level has.
            least = len(parents[number]) if number < len(parents) else 0
            floor = Vessels(self.counts, labels.astype(np.int64), least)
            self.floors.append(floor)
            self.counts = floor.capacity()

        self.critical = self._carried_up(self._critical(coins))
        self.num_unmatched = int((entries.counts() == 0).sum())
        self.order = np.lexsort((coins, self.critical))
        self.rank = np.empty(len(coins), np.int64)
        self.rank[self.order] = np.arange(len(coins))

    def _critical(self, coins: Float64[np.ndarray, " rows"]) -> Float64[np.ndarray, " rows"]:
        """Per row, the largest t that does not keep it; 0 for rows without entries."""
        numbers = self.entries.counts()
        critical = np.zeros(len(coins))

        # With one entry the probability is t / c, which exceeds the coin once t exceeds coin * c.
        single = np.flatnonzero(numbers == 1)
        critical[single] = (
            coins[single] * self.entry_counts[self.entries.values[self.entries.offsets[single]]]
        )

        # With several entries there is no closed form: bisection for all rows at once. The rarest
        # entry bounds t from above, because a t of its c keeps the row with certainty.
        several = np.flatnonzero(numbers > 1)
        own = self.entries.take(several)
        low = np.zeros(len(several))
        high = np.full(len(several), np.inf)
        np.minimum.at(high, own.rows(), self.entry_counts[own.values].astype(np.float64))

        for _ in range(HALVINGS):
            middle = (low + high) / 2
            is_kept = coins[several] < keep_probability(own, self.entry_counts, middle)
            low = np.where(is_kept, low, middle)
            high = np.where(is_kept, middle, high)

        critical[several] = low
        return critical

    def _carried_up(self, critical: Float64[np.ndarray, " rows"]) -> Float64[np.ndarray, " rows"]:
        """Critical values of the leaves as those of the top level."""
        clusters = self.entries.values
        for floor in self.floors:
            clusters = floor.parents[clusters]
            critical = floor.held(clusters, critical)
        return critical

    def keep(self, budget: int) -> Bool[np.ndarray, " rows"]:
        """Exactly `budget` rows: those with the lowest critical values."""
        return self.rank < budget

    def threshold(self, budget: int) -> float:
        """The t that keeps `budget` rows: the critical value of the first row that is left out."""
        if budget >= len(self.order):
            return float(self.counts.max(initial=0))
        return float(self.critical[self.order[budget]])

    def budget(self, threshold: float) -> int:
        """The number of rows that a threshold keeps."""
        return int((self.critical < threshold).sum())

    def keep_probability(self, threshold: float) -> Float64[np.ndarray, " rows"]:
        """The published probability of each row; 1 without entries."""
        # From the top down: each parent holds its level, or all its rows if these are fewer.
        levels = np.full(len(self.counts), threshold)
        for floor in reversed(self.floors):
            levels = floor.levels(levels)[floor.parents]

        if not self.floors:
            return keep_probability(
                self.entries, self.entry_counts, np.full(len(self.rank), threshold)
            )
        return keep_probability(self.entries, self.entry_counts, levels[self.entries.values])


def keep_probability(
    entries: Entries,
    counts: Int64[np.ndarray, " entries"],
    thresholds: Float64[np.ndarray, " rows"],
) -> Float64[np.ndarray, " rows"]:
    """1 - prod over a row's entries of (1 - t / max(c, t)), one t per row; 1 without entries.

    With t = 1, a row with an entry of 4 rows has 1 / 4; with a further entry of 2 rows it has
    1 - 3/4 * 1/2 = 5/8.
    """
    rows = entries.rows()
    # The product per row is a sum of logarithms, which bincount adds up by row. log1p and expm1
    # keep the digits of tiny probabilities. log(0), for t >= c, is minus infinity: probability 1.
    with np.errstate(divide="ignore"):
        lost = np.log1p(-np.minimum(1.0, thresholds[rows] / counts[entries.values]))

    probability = -np.expm1(np.bincount(rows, lost, len(thresholds)))
    return np.where(entries.counts() > 0, probability, 1.0)


def tail_threshold(counts: Int64[np.ndarray, " entries"], share: float) -> float:
    """The largest count t such that entries below t have at most `share` of all counts.

    MetaCLIP's rule for choosing t at another scale: the tail keeps its share. With the counts
    [1, 2, 3, 4, 10] and the share 0.3, entries below 4 have 6 of 20 counts, so t is 4.
    """
    ordered = np.sort(counts[counts > 0])
    # Counts of all entries before each position. Equal counts all use the first of their positions,
    # so that what is held is strictly below them.
    held = np.cumsum(ordered) - ordered
    strictly_below = held[np.searchsorted(ordered, ordered, side="left")]
    return float(ordered[np.flatnonzero(strictly_below <= share * ordered.sum())[-1]])


def combine(
    image: ImageBalance,
    text: TextBalance,
    target: int,
    how: Combine,
    text_budget: int | None = None,
) -> Balance:
    """Both selections, with budgets that combine to exactly `target` rows, copies included.

    First, equal budgets for both are searched. Then the image budget stays, and the text budget is
    lowered to the least that reaches the target. If `text_budget` is not None, or if the text
    budget would leave out rows without entries, only the image budget is searched. Raises
    ValueError when no budget reaches the target.
    """
    # Copies by image are numbers, text keeps a row once or not at all. In both: their product; in
    # either: their maximum.
    joined = np.multiply if how == "intersection" else np.maximum

    def copies_at(budget: int) -> Int64[np.ndarray, " rows"]:
        return joined(
            image.copies(budget),
            text.keep(budget if text_budget is None else text_budget).astype(np.int64),
        )

    if copies_at(image.most).sum() < target:
        raise ValueError(
            f"a text threshold that keeps {text_budget} of {len(text.rank)} rows cannot give "
            f"{target}: raise text.threshold, text.tail_share or repeats, or lower target_rows"
        )
    if how == "union" and (text_budget or 0) > target:
        raise ValueError(
            f"a text threshold that keeps {text_budget} rows gives a union above {target}: lower "
            "text.threshold or text.tail_share, or raise target_rows"
        )

    budget = _smallest(image.most, lambda value: int(copies_at(value).sum()) >= target)
    by_image = image.copies(budget)
    if text_budget is None:
        text_budget = _text_budget(by_image, text, target, how)
        if text_budget < text.num_unmatched:
            return combine(image, text, target, how, text.num_unmatched)

    # The last row that text keeps may bring several copies at once and pass the target: it gives
    # back what is too much.
    by_text = text.keep(text_budget)
    copies = joined(by_image, by_text.astype(np.int64))
    if text_budget:
        copies[text.order[text_budget - 1]] -= copies.sum() - target

    return Balance(by_image > 0, by_text, copies, budget, text_budget)


def _text_budget(
    by_image: Int64[np.ndarray, " rows"], text: TextBalance, target: int, how: Combine
) -> int:
    """The least text budget that reaches the target, or passes it with copies of its last row."""
    # Copies after each further row of text's order. An intersection gains the row's copies by
    # image. A union starts with all copies by image and gains rows that image does not keep.
    ordered = by_image[text.order]
    reached = (
        np.cumsum(ordered) if how == "intersection" else by_image.sum() + np.cumsum(ordered == 0)
    )
    if how == "union" and by_image.sum() >= target:
        return 0

    return int(np.searchsorted(reached, target)) + 1


def _smallest(high: int, is_enough: Callable[[int], bool]) -> int:
    """The smallest number from 0 to `high` that is enough, by bisection; `high` is known to be."""
    low = 0
    while low < high:
        middle = (low + high) // 2
        if is_enough(middle):
            high = middle
        else:
            low = middle + 1
    return low


def entropy(counts: Int64[np.ndarray, " n"]) -> float:
    """Entropy in bits of rows over clusters; even clusters reach log2 of their number."""
    shares = counts[counts > 0] / max(1, counts.sum())
    return float(-(shares * np.log2(shares)).sum())


def gini(counts: Int64[np.ndarray, " n"]) -> float:
    """Gini coefficient of cluster sizes: 0 if all are equal, near 1 if one has all rows."""
    ordered = np.sort(counts)
    if not ordered.sum():
        return 0.0
    # sum of (2 i - n - 1) x_i / (n sum of x_i), with x_i ascending and i from 1 to n.
    position = np.arange(1, len(ordered) + 1)
    return float((2 * position - len(ordered) - 1) @ ordered / (len(ordered) * ordered.sum()))
