"""Water levels: how parents share rows among their children as evenly as sizes allow.

Each child has min(level, size) rows, where the level is the same for all children of a parent, like
water in vessels of different heights. All parents are computed at once, without a loop.
"""

import numpy as np
from jaxtyping import Bool, Float64, Int64

from curation.clusters.groups import rank_in_groups


class Vessels:
    """Children by parent, then by size: a rising level fills the smallest child first.

    `order` sorts the children; `size` and `parent` are sorted. `parents` is in the given order.
    `first` is the position of each parent's first child, `number` the number of its children.
    """

    def __init__(
        self,
        sizes: Int64[np.ndarray, " children"],
        parents: Int64[np.ndarray, " children"],
        num_parents: int,
    ) -> None:
        self.parents = parents
        self.order = np.lexsort((sizes, parents))
        self.size = sizes[self.order]
        self.parent = parents[self.order]
        self.number = np.bincount(parents, minlength=num_parents)
        self.first = np.cumsum(self.number) - self.number
        # Rows in all children before each position: the difference of two positions of a parent is
        # the number of rows between them.
        self.before = np.concatenate([[0], np.cumsum(self.size)])

    def capacity(self) -> Int64[np.ndarray, " parents"]:
        """The rows of each parent."""
        return self.before[self.first + self.number] - self.before[self.first]

    def full(
        self, rows: Int64[np.ndarray, " parents"] | Float64[np.ndarray, " parents"]
    ) -> Bool[np.ndarray, " children"]:
        """Whether each child, in sorted order, is full when its parent shares so many rows.

        Example: sizes 2, 5 and 9. They are full from 6, 12 and 16 rows on.
        """
        # A child is full if the rows reach a level of its size: then the smaller children are full,
        # and this one and all larger ones have `size` rows each.
        filled_before = self.before[:-1] - self.before[self.first[self.parent]]
        larger = self.number[self.parent] - (np.arange(len(self.size)) - self.first[self.parent])
        return filled_before + self.size * larger <= rows[self.parent]

    def held(
        self, parents: Int64[np.ndarray, " n"], levels: Float64[np.ndarray, " n"]
    ) -> Float64[np.ndarray, " n"]:
        """The rows that a parent holds when the water in its children stands at a level.

        Example: sizes 2, 4 and 9 hold 8 rows at level 3.
        """
        # One ascending key for (parent, size) needs one search for all levels. Sizes are integers,
        # so those up to a level are those up to its integer part.
        base = int(self.size.max(initial=0)) + 1
        keys = self.parent * base + self.size
        whole = np.minimum(levels, base - 1).astype(np.int64)
        position = np.searchsorted(keys, parents * base + whole, side="right")

        in_full = self.before[position] - self.before[self.first[parents]]
        num_open = self.first[parents] + self.number[parents] - position
        return in_full + num_open * levels

    def levels(self, rows: Float64[np.ndarray, " parents"]) -> Float64[np.ndarray, " parents"]:
        """The level at which each parent holds `rows`: infinite where it has no more than these."""
        is_full = self.full(rows)
        num_parents = len(self.number)
        in_full = np.bincount(self.parent, self.size * is_full, num_parents)
        num_open = np.bincount(self.parent[~is_full], minlength=num_parents)
        level = (rows - in_full) / np.maximum(num_open, 1)
        return np.where(num_open > 0, level, np.inf)


def water_fill(
    sizes: Int64[np.ndarray, " children"],
    parents: Int64[np.ndarray, " children"],
    budgets: Int64[np.ndarray, " parents"],
    order: Float64[np.ndarray, " children"],
) -> Int64[np.ndarray, " children"]:
    """The quota of each child when every parent shares its budget as evenly as sizes allow.

    A child has the quota min(level, size), where the level is the same for all children of a
    parent, like water in vessels of different heights. Rows that remain go one each to the children
    that are not full, in ascending `order`. Quotas of a parent sum to its budget exactly, and none
    falls when the budget grows. Raises ValueError when a budget exceeds the sum of the sizes.

    Example: one parent with the budget 11 and children of the sizes [2, 9, 5]. At level 4 they have
    2, 4 and 4 rows. One row remains: with the order [0.3, 0.7, 0.1] it goes to the third child, so
    the quotas are [2, 4, 5].
    """
    available = np.bincount(parents, sizes, len(budgets)).astype(np.int64)
    if (budgets > available).any():
        worst = int(np.argmax(budgets - available))
        raise ValueError(
            f"a budget of {budgets[worst]} rows for {available[worst]} rows: at most as many can "
            "be kept; lower it"
        )

    vessels = Vessels(sizes, parents, len(budgets))
    by_size = vessels.order
    size = vessels.size
    parent = vessels.parent
    is_full = vessels.full(budgets)

    # The open children share what the full ones leave. (11 - 2 = 9 rows for two: level 4, rest 1.)
    rest = budgets - np.bincount(parent, size * is_full, len(budgets)).astype(np.int64)
    num_open = np.bincount(parent[~is_full], minlength=len(budgets))
    level, remainder = np.divmod(rest, np.maximum(num_open, 1))

    # Assigning at `by_size` restores the order of the children. An open child is larger than the
    # level, so one row more always fits.
    quotas = np.empty_like(sizes)
    quotas[by_size] = np.where(is_full, size, level[parent])
    open_children = by_size[~is_full]
    rank = rank_in_groups(parents[open_children], order[open_children])
    quotas[open_children] += rank < remainder[parents[open_children]]

    return quotas
