"""Which rows a balanced sample keeps: water filling down the image clusters, probabilities over the text clusters.

Both selections are nested: a larger budget keeps all that a smaller one kept. So the budgets that give an intersection
or a union of exactly the asked size are found by bisection. Pure NumPy over arrays, no loop over clusters. Balanced
sampling: Vo et al. 2024 (arXiv:2405.15613); text: MetaCLIP (arXiv:2309.16671).
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from curation.groups import rank_in_groups

Combine = Literal["intersection", "union"]


class Balance(NamedTuple):
    """A solved pair of budgets: both selections, and the rows that the combination keeps."""

    image: Bool[np.ndarray, " rows"]
    text: Bool[np.ndarray, " rows"]
    kept: Bool[np.ndarray, " rows"]
    image_budget: int
    text_budget: int


def water_fill(
    sizes: Int64[np.ndarray, " children"],
    parents: Int64[np.ndarray, " children"],
    budgets: Int64[np.ndarray, " parents"],
    order: Float64[np.ndarray, " children"],
) -> Int64[np.ndarray, " children"]:
    """Each parent's budget shared among its children as min(level, size); what is left goes one each, in `order`.

    Quotas sum to the budget exactly and never fall when it grows. ValueError when a budget exceeds its children's sum.
    """
    available = np.bincount(parents, sizes, len(budgets)).astype(np.int64)
    if (budgets > available).any():
        worst = int(np.argmax(budgets - available))
        raise ValueError(
            f"a budget of {budgets[worst]} rows for {available[worst]}: at most what is there can be kept; lower it"
        )
    by_size = np.lexsort((sizes, parents))
    size, parent = sizes[by_size], parents[by_size]
    num_children = np.bincount(parents, minlength=len(budgets))
    first = np.cumsum(num_children) - num_children
    filled_before = np.cumsum(size) - size
    filled_before -= np.repeat(filled_before[first[num_children > 0]], num_children[num_children > 0])
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
    """Balanced sampling of rows that lie in a tree of clusters."""

    def __init__(
        self,
        leaves: Int32[np.ndarray, " rows"],
        parents: list[Int32[np.ndarray, " _"]],
        num_leaves: int,
        priority: Float64[np.ndarray, " rows"],
        seed: int,
    ) -> None:
        """`parents` gives each cluster's parent, level by level from the leaves; rows of low `priority` go first."""
        self.leaves = leaves
        sizes = [np.bincount(leaves, minlength=num_leaves)]
        self.parents: list[Int64[np.ndarray, " _"]] = [labels.astype(np.int64) for labels in parents]
        for labels in self.parents:
            sizes.append(np.bincount(labels, sizes[-1], labels.max() + 1).astype(np.int64))
        self.sizes = sizes
        self.parents.append(np.zeros(len(sizes[-1]), np.int64))
        self.order = [np.random.default_rng([seed, level]).random(len(size)) for level, size in enumerate(sizes)]
        self.rank = rank_in_groups(leaves, priority)

    def quotas(self, budget: int) -> Int64[np.ndarray, " leaves"]:
        """Rows to keep in each leaf, water-filled from the top level down."""
        quotas = np.array([budget])
        for sizes, parents, order in zip(
            reversed(self.sizes), reversed(self.parents), reversed(self.order), strict=True
        ):
            quotas = water_fill(sizes, parents, quotas, order)
        return quotas

    def keep(self, budget: int) -> Bool[np.ndarray, " rows"]:
        """Exactly `budget` rows."""
        return self.rank < self.quotas(budget)[self.leaves]

    def keep_probability(self, budget: int) -> Float64[np.ndarray, " rows"]:
        """The share of its leaf that is kept, a row."""
        return (self.quotas(budget) / np.maximum(self.sizes[0], 1))[self.leaves]


class TextBalance:
    """Keep a pair with probability min(1, t / c), c the size of its text cluster: when t is above coin times c."""

    def __init__(self, clusters: Int32[np.ndarray, " rows"], coins: Float64[np.ndarray, " rows"]) -> None:
        self.counts = np.bincount(clusters)
        self.count_of_row = self.counts[clusters]
        self.critical = coins * self.count_of_row
        self.order = np.argsort(self.critical, kind="stable")
        self.rank = np.empty(len(clusters), np.int64)
        self.rank[self.order] = np.arange(len(clusters))

    def keep(self, budget: int) -> Bool[np.ndarray, " rows"]:
        """Exactly `budget` rows: the threshold is the order statistic of what each row needs."""
        return self.rank < budget

    def threshold(self, budget: int) -> float:
        """The t that keeps `budget` rows."""
        if budget >= len(self.order):
            return float(self.counts.max())
        return float(self.critical[self.order[budget]])

    def budget(self, threshold: float) -> int:
        """How many rows a threshold keeps."""
        return int((self.critical < threshold).sum())

    def keep_probability(self, threshold: float) -> Float64[np.ndarray, " rows"]:
        return np.minimum(1.0, threshold / self.count_of_row)


def tail_threshold(counts: Int64[np.ndarray, " entries"], share: float) -> float:
    """The t below which entries hold `share` of all counts: MetaCLIP's rule for choosing t at another scale."""
    ordered = np.sort(counts[counts > 0])
    held = np.cumsum(ordered) - ordered  # by entries strictly before
    strictly_below = held[np.searchsorted(ordered, ordered, side="left")]
    return float(ordered[np.flatnonzero(strictly_below <= share * ordered.sum())[-1]])


def combine(
    image: ImageBalance, text: TextBalance, target: int, how: Combine, text_budget: int | None = None
) -> Balance:
    """Both selections with budgets such that exactly `target` rows are kept.

    Equal budgets for both are sought first, then the text budget takes up the slack; with `text_budget` given, only the
    image budget moves. ValueError when no budget reaches the target.
    """
    num_rows = len(text.rank)
    joined: Callable = np.logical_and if how == "intersection" else np.logical_or

    def size(budget: int) -> int:
        chosen = text.keep(budget if text_budget is None else text_budget)
        return int(np.count_nonzero(joined(image.keep(budget), chosen)))

    if size(num_rows) < target:
        raise ValueError(
            f"a text threshold that keeps {text_budget} of {num_rows} rows cannot give {target}: raise text.threshold "
            "or text.tail_share, or lower target_rows"
        )
    budget = _smallest(num_rows, lambda value: size(value) >= target)
    by_image = image.keep(budget)
    if text_budget is None:
        ranks = np.sort(text.rank[by_image if how == "intersection" else ~by_image])
        wanted = target if how == "intersection" else target - budget
        text_budget = int(ranks[wanted - 1]) + 1 if wanted else 0
    by_text = text.keep(text_budget)
    return Balance(by_image, by_text, joined(by_image, by_text), budget, text_budget)


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
    """Gini coefficient of cluster sizes: 0 when all are equal, towards 1 when one holds everything."""
    ordered = np.sort(counts)
    if not ordered.sum():
        return 0.0
    position = np.arange(1, len(ordered) + 1)
    return float((2 * position - len(ordered) - 1) @ ordered / (len(ordered) * ordered.sum()))
