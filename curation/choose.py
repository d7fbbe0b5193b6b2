"""The balance stage: which of the surviving rows are kept, with what probability, and why the others are not."""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from curation.balance import Combine, ImageBalance, TextBalance, combine, entropy, gini, tail_threshold
from curation.decisions import Decisions
from curation.hierarchy import cluster_of_rows
from curation.levels import Level

Method = Literal["both", "image", "text", "random", "none"]


class Goal(NamedTuple):
    """What a selection should be."""

    method: Method
    combine: Combine
    num_rows: int
    threshold: float
    tail_share: float


class Coins(NamedTuple):
    """One number per row of the pool for each purpose."""

    leaf: Float64[np.ndarray, " rows"]
    text: Float64[np.ndarray, " rows"]
    random: Float64[np.ndarray, " rows"]


def choose(decisions: Decisions, goal: Goal, image_levels: list[Level], coins: Coins, seed: int) -> dict[str, float]:
    """Drop what the method does not keep; returns the budgets and the threshold that were found.

    Raises ValueError when fewer rows survive than are asked for.
    """
    rows = decisions.surviving()
    if goal.method == "none":
        return {}
    if goal.num_rows > len(rows):
        raise ValueError(
            f"{goal.num_rows} pairs asked of {len(rows)} left after leakage and duplicates: at most those can be kept; "
            " lower target_rows, or loosen duplicates"
        )
    if goal.method == "random":
        order = rows[np.argsort(coins.random[rows], kind="stable")]
        decisions.drop(order[goal.num_rows :], "random: not drawn")
        return {}
    if goal.method == "image":
        return _by_image(decisions, rows, goal, _image_balance(decisions, rows, image_levels, coins, seed))
    text = TextBalance(decisions.text_cluster[rows], coins.text[rows])
    if goal.method == "text":
        return _by_text(decisions, rows, goal, text)
    return _by_both(decisions, rows, goal, _image_balance(decisions, rows, image_levels, coins, seed), text)


def _image_balance(
    decisions: Decisions, rows: Int64[np.ndarray, " n"], levels: list[Level], coins: Coins, seed: int
) -> ImageBalance:
    parents = [level.labels for level in levels[1:]]
    num_leaves = len(levels[0].centroids)
    return ImageBalance(decisions.image_cluster[rows], parents, num_leaves, coins.leaf[rows], seed)


def _by_image(decisions: Decisions, rows: Int64[np.ndarray, " n"], goal: Goal, image: ImageBalance) -> dict[str, float]:
    decisions.image_keep[rows] = image.keep_probability(goal.num_rows)
    decisions.drop(rows[~image.keep(goal.num_rows)], "balance: image")
    return {"image_budget": float(goal.num_rows)}


def _by_text(decisions: Decisions, rows: Int64[np.ndarray, " n"], goal: Goal, text: TextBalance) -> dict[str, float]:
    given = _given_budget(goal, text)
    budget = goal.num_rows if given is None else given
    decisions.text_keep[rows] = text.keep_probability(text.threshold(budget))
    decisions.drop(rows[~text.keep(budget)], "balance: text")
    return {"text_budget": float(budget), "text_threshold": text.threshold(budget)}


def _by_both(
    decisions: Decisions, rows: Int64[np.ndarray, " n"], goal: Goal, image: ImageBalance, text: TextBalance
) -> dict[str, float]:
    solved = combine(image, text, goal.num_rows, goal.combine, _given_budget(goal, text))
    threshold = text.threshold(solved.text_budget)
    decisions.image_keep[rows] = image.keep_probability(solved.image_budget)
    decisions.text_keep[rows] = text.keep_probability(threshold)
    out = ~solved.kept
    decisions.drop(rows[out & ~solved.image & ~solved.text], "balance: image and text")
    decisions.drop(rows[out & ~solved.image], "balance: image")
    decisions.drop(rows[out], "balance: text")
    return {
        "image_budget": float(solved.image_budget),
        "text_budget": float(solved.text_budget),
        "text_threshold": threshold,
    }


def _given_budget(goal: Goal, text: TextBalance) -> int | None:
    """The rows that a given threshold keeps; none when the threshold is to be found."""
    if goal.threshold:
        return text.budget(goal.threshold)
    if goal.tail_share:
        return text.budget(tail_threshold(text.counts, goal.tail_share))
    return None


def evenness(decisions: Decisions, image_levels: list[Level], text_levels: list[Level]) -> dict[str, float]:
    """Entropy (bits) and Gini coefficient of every level, over all rows and over the kept ones."""
    figures = {}
    for side, levels, bottom in (
        ("image", image_levels, decisions.image_cluster),
        ("text", text_levels, decisions.text_cluster),
    ):
        clustered = bottom >= 0
        kept = (decisions.reason == 0)[clustered]
        for number, labels in enumerate(cluster_of_rows(levels) if levels else [], start=1):
            for when, sizes in _sizes(labels, kept, len(levels[number - 1].centroids)).items():
                figures[f"{side}_level{number}_entropy_{when}"] = entropy(sizes)
                figures[f"{side}_level{number}_gini_{when}"] = gini(sizes)
    return figures


def _sizes(
    labels: Int32[np.ndarray, " n"], kept: Bool[np.ndarray, " n"], num_clusters: int
) -> dict[str, Int64[np.ndarray, " k"]]:
    return {
        "before": np.bincount(labels, minlength=num_clusters),
        "after": np.bincount(labels[kept], minlength=num_clusters),
    }
