"""Which rows a balanced sample keeps: water filling down the image clusters, probabilities over
clusters or entries of captions.

Both selections are nested: a larger budget keeps all that a smaller one kept. So the budgets that
give an intersection or a union of exactly the asked size are found by bisection. Pure NumPy over
arrays, no loop over clusters. Balanced sampling: Vo et al. 2024 (arXiv:2405.15613); text: MetaCLIP
(arXiv:2309.16671).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from curation.choice.config import Combine
from curation.clusters.groups import Entries, rank_in_groups

HALVINGS = 52  # of an interval: float64 holds no more


class Balance(NamedTuple):
    """A solved pair of budgets: both selections, and how often the combination takes each row."""

    image: Bool[np.ndarray, " rows"]
    text: Bool[np.ndarray, " rows"]
    copies: Int64[np.ndarray, " rows"]
    image_budget: int
    text_budget: int


def water_fill(
    sizes: Int64[np.ndarray, " children"],
    parents: Int64[np.ndarray, " children"],
    budgets: Int64[np.ndarray, " parents"],
    order: Float64[np.ndarray, " children"],
) -> Int64[np.ndarray, " children"]:
    """Each parent's budget shared among its children as min(level, size); what is left goes one
    each, in `order`.

    Quotas sum to the budget exactly and never fall when it grows. ValueError when a budget exceeds
    its children's sum.
    """
    available = np.bincount(parents, sizes, len(budgets)).astype(np.int64)
    if (budgets > available).any():
        worst = int(np.argmax(budgets - available))
        raise ValueError(
            f"a budget of {budgets[worst]} rows for {available[worst]}: at most what is there can "
            "be kept; lower it"
        )

    by_size = np.lexsort((sizes, parents))
    size = sizes[by_size]
    parent = parents[by_size]
    num_children = np.bincount(parents, minlength=len(budgets))
    first = np.cumsum(num_children) - num_children
    filled_before = np.cumsum(size) - size
    filled_before -= np.repeat(
        filled_before[first[num_children > 0]], num_children[num_children > 0]
    )
    larger = num_children[parent] - (np.arange(len(size)) - first[parent])
    is_full = filled_before + size * larger <= budgets[parent]
    rest = budgets - np.bincount(parent, size * is_full, len(budgets)).astype(np.int64)
    num_open = np.bincount(parent[~is_full], minlength=len(budgets))
    level, remainder = np.divmod(rest, np.maximum(num_open, 1))
    quotas = np.empty_like(sizes)
    quotas[by_size] = np.where(is_full, size, level[parent])
    open_children = by_size[~is_full]
    rank = rank_in_groups(parents[open_children], order[open_children])
    quotas[open_children] += rank < remainder[parents[open_children]]

    return quotas


class ImageBalance:
    """Balanced sampling of rows that lie in a tree of clusters; small clusters may be repeated."""

    def __init__(
        self,
        leaves: Int32[np.ndarray, " rows"],
        parents: list[Int32[np.ndarray, " _"]],
        num_leaves: int,
        priority: Float64[np.ndarray, " rows"],
        seed: int,
        repeats: int = 1,
    ) -> None:
        """`parents` gives each cluster's parent, level by level from the leaves; rows of low
        `priority` go first.

        A row is taken up to `repeats` times, again only when the whole leaf has been taken as
        often.
        """
        self.leaves = leaves
        self.leaf_sizes = np.bincount(leaves, minlength=num_leaves)
        sizes = [repeats * self.leaf_sizes]
        self.parents: list[Int64[np.ndarray, " _"]] = [
            labels.astype(np.int64) for labels in parents
        ]
        num_parents = [
            *(len(labels) for labels in self.parents[1:]),
            0,
        ]  # the last ones may have no child
        for labels, least in zip(self.parents, num_parents, strict=False):
            sizes.append(np.bincount(labels, sizes[-1], least).astype(np.int64))

        self.sizes = sizes
        self.parents.append(np.zeros(len(sizes[-1]), np.int64))
        self.order = [
            np.random.default_rng([seed, level]).random(len(size))
            for level, size in enumerate(sizes)
        ]
        self.rank = rank_in_groups(leaves, priority)
        self.most = repeats * len(leaves)

    def quotas(self, budget: int) -> Int64[np.ndarray, " leaves"]:
        """Rows to take from each leaf, water-filled from the top level down."""
        quotas = np.array([budget])
        for sizes, parents, order in zip(
            reversed(self.sizes), reversed(self.parents), reversed(self.order), strict=True
        ):
            quotas = water_fill(sizes, parents, quotas, order)
        return quotas

    def copies(self, budget: int) -> Int64[np.ndarray, " rows"]:
        """How often each row is taken: `budget` in all, in a leaf once more or once less than its
        neighbour at most.
        """
        rest = self.quotas(budget)[self.leaves] - self.rank
        return np.maximum(0, -(-rest // self.leaf_sizes[self.leaves]))

    def expected_copies(self, budget: int) -> Float64[np.ndarray, " rows"]:
        """The share of its leaf that is taken, a row: its keep probability, above 1 where rows
        repeat.
        """
        return (self.quotas(budget) / np.maximum(self.leaf_sizes, 1))[self.leaves]


class TextBalance:
    """Keep a pair with probability 1 - prod over its entries of (1 - t / max(c, t)), c an entry's
    rows: when its coin is below, that is when t is above the row's critical value. Rows without
    entries come first and are always kept.
    """

    def __init__(self, entries: Entries, coins: Float64[np.ndarray, " rows"]) -> None:
        self.entries = entries
        self.counts = np.bincount(entries.values)
        self.critical = self._critical(coins)
        self.num_unmatched = int((entries.counts() == 0).sum())
        self.order = np.lexsort((coins, self.critical))
        self.rank = np.empty(len(coins), np.int64)
        self.rank[self.order] = np.arange(len(coins))

    def _critical(self, coins: Float64[np.ndarray, " rows"]) -> Float64[np.ndarray, " rows"]:
        """The largest t that does not keep a row: coin times c; for several entries by bisection
        below the rarest.
        """
        numbers = self.entries.counts()
        critical = np.zeros(len(coins))
        single = np.flatnonzero(numbers == 1)
        critical[single] = (
            coins[single] * self.counts[self.entries.values[self.entries.offsets[single]]]
        )
        several = np.flatnonzero(numbers > 1)
        own = self.entries.take(several)
        low = np.zeros(len(several))
        high = np.full(len(several), np.inf)
        np.minimum.at(high, own.rows(), self.counts[own.values].astype(np.float64))

        for _ in range(HALVINGS):
            middle = (low + high) / 2
            is_kept = coins[several] < keep_probability(own, self.counts, middle)
            low = np.where(is_kept, low, middle)
            high = np.where(is_kept, middle, high)

        critical[several] = low
        return critical

    def keep(self, budget: int) -> Bool[np.ndarray, " rows"]:
        """Exactly `budget` rows: the threshold is the order statistic of what each row needs."""
        return self.rank < budget

    def threshold(self, budget: int) -> float:
        """The t that keeps `budget` rows."""
        if budget >= len(self.order):
            return float(self.counts.max(initial=0))
        return float(self.critical[self.order[budget]])

    def budget(self, threshold: float) -> int:
        """How many rows a threshold keeps."""
        return int((self.critical < threshold).sum())

    def keep_probability(self, threshold: float) -> Float64[np.ndarray, " rows"]:
        """The published probability of each row; 1 without entries."""
        return keep_probability(self.entries, self.counts, np.full(len(self.rank), threshold))


def keep_probability(
    entries: Entries,
    counts: Int64[np.ndarray, " entries"],
    thresholds: Float64[np.ndarray, " rows"],
) -> Float64[np.ndarray, " rows"]:
    """1 - prod over a row's entries of (1 - t / max(c, t)), each row with a t of its own; 1 without
    entries.
    """
    rows = entries.rows()
    with np.errstate(divide="ignore"):
        lost = np.log1p(-np.minimum(1.0, thresholds[rows] / counts[entries.values]))

    kept = -np.expm1(np.bincount(rows, lost, len(thresholds)))
    return np.where(entries.counts() > 0, kept, 1.0)


def tail_threshold(counts: Int64[np.ndarray, " entries"], share: float) -> float:
    """The t below which entries hold `share` of all counts: MetaCLIP's rule for choosing t at
    another scale.
    """
    ordered = np.sort(counts[counts > 0])
    held = np.cumsum(ordered) - ordered  # by entries strictly before
    strictly_below = held[np.searchsorted(ordered, ordered, side="left")]
    return float(ordered[np.flatnonzero(strictly_below <= share * ordered.sum())[-1]])


def combine(
    image: ImageBalance,
    text: TextBalance,
    target: int,
    how: Combine,
    text_budget: int | None = None,
) -> Balance:
    """Both selections with budgets such that exactly `target` rows are kept, each counted as often
    as it is taken.

    Equal budgets for both are sought first, then the text budget takes up the slack; with
    `text_budget` given, or where it would leave out rows without entries, only the image budget
    moves. ValueError when no budget reaches the target.
    """
    joined = np.multiply if how == "intersection" else np.maximum

    def taken(budget: int) -> Int64[np.ndarray, " rows"]:
        return joined(
            image.copies(budget),
            text.keep(budget if text_budget is None else text_budget).astype(np.int64),
        )

    if taken(image.most).sum() < target:
        raise ValueError(
            f"a text threshold that keeps {text_budget} of {len(text.rank)} rows cannot give "
            f"{target}: raise text.threshold, text.tail_share or repeats, or lower target_rows"
        )
    if how == "union" and (text_budget or 0) > target:
        raise ValueError(
            f"a text threshold that keeps {text_budget} rows gives a union above {target}: lower "
            "text.threshold or text.tail_share, or raise target_rows"
        )

    budget = _smallest(image.most, lambda value: int(taken(value).sum()) >= target)
    by_image = image.copies(budget)
    if text_budget is None:
        text_budget = _text_budget(by_image, text, target, how)
        if text_budget < text.num_unmatched:
            return combine(image, text, target, how, text.num_unmatched)

    by_text = text.keep(text_budget)
    copies = joined(by_image, by_text.astype(np.int64))
    if text_budget:
        copies[text.order[text_budget - 1]] -= copies.sum() - target

    return Balance(by_image > 0, by_text, copies, budget, text_budget)


def _text_budget(
    by_image: Int64[np.ndarray, " rows"], text: TextBalance, target: int, how: Combine
) -> int:
    """The least that reaches the target; where the last row is repeated, it may pass it by some
    copies.
    """
    ordered = by_image[text.order]
    reached = (
        np.cumsum(ordered) if how == "intersection" else by_image.sum() + np.cumsum(ordered == 0)
    )
    if how == "union" and by_image.sum() >= target:
        return 0

    return int(np.searchsorted(reached, target)) + 1


def _smallest(high: int, is_enough: Callable[[int], bool]) -> int:
    low = 0
    while low < high:
        middle = (low + high) // 2
        if is_enough(middle):
            high = middle
        else:
            low = middle + 1
    return low


def entropy(counts: Int64[np.ndarray, " n"]) -> float:
    """Entropy in bits of rows over clusters; the optimum is log2 of the number of clusters."""
    shares = counts[counts > 0] / max(1, counts.sum())
    return float(-(shares * np.log2(shares)).sum())


def gini(counts: Int64[np.ndarray, " n"]) -> float:
    """Gini coefficient of cluster sizes: 0 when all are equal, towards 1 when one holds
    everything.
    """
    ordered = np.sort(counts)
    if not ordered.sum():
        return 0.0
    position = np.arange(1, len(ordered) + 1)
    return float((2 * position - len(ordered) - 1) @ ordered / (len(ordered) * ordered.sum()))
