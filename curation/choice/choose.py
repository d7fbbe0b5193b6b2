"""The balance stage: which of the surviving rows are kept, and with what probability."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int32, Int64

from curation.choice.balance import (
    ImageBalance,
    TextBalance,
    combine,
    entropy,
    gini,
    tail_threshold,
)
from curation.choice.config import Combine, Method
from curation.choice.decisions import Decisions
from curation.choice.entries import check_matched
from curation.clusters.hierarchy import cluster_of_rows
from curation.clusters.levels import Level


class Goal(NamedTuple):
    """What a selection should be."""

    method: Method
    combine: Combine
    num_rows: int
    """Rows to keep, copies included."""
    threshold: float | None
    """MetaCLIP's t; None: whatever reaches `num_rows`."""
    tail_share: float | None
    """Share of all counts that entries below t have, which decides t; None: not used."""
    repeats: int
    """How often a row may be kept."""


class Coins(NamedTuple):
    """One uniform random number per row of the pool for each purpose."""

    leaf: Float64[np.ndarray, " rows"]
    text: Float64[np.ndarray, " rows"]
    random: Float64[np.ndarray, " rows"]


def choose(
    decisions: Decisions,
    goal: Goal,
    image_levels: list[Level],
    text_levels: list[Level],
    coins: Coins,
    seed: int,
) -> dict[str, float]:
    """Drop what the method does not keep; return the budgets and the threshold that it used.

    Writes copies and keep probabilities to `decisions`. Raises ValueError when no row survives, or
    fewer than the goal needs.
    """
    rows = decisions.surviving()
    if goal.method == "none":
        return {}

    if not len(rows):
        dropped = {reason: count for reason, count in decisions.counts().items() if count}
        raise ValueError(
            f"no pair is left to choose from (dropped pairs by reason: {dropped}): at least one is "
            "needed; loosen the setting that drops most"
        )
    if goal.num_rows > goal.repeats * len(rows):
        raise ValueError(
            f"{goal.num_rows} pairs are asked for, but {len(rows)} are left after leakage and "
            f"duplicates: each can be kept at most {goal.repeats} times; lower target_rows, loosen "
            "duplicates, or raise repeats"
        )

    # The rows with the lowest random numbers: a larger selection has all rows of a smaller one.
    if goal.method == "random":
        order = rows[np.argsort(coins.random[rows], kind="stable")]
        decisions.drop(order[goal.num_rows :], "random: not drawn")
        return {}

    if goal.method == "image":
        return _by_image(
            decisions, rows, goal, _image_balance(decisions, rows, image_levels, coins, seed, goal)
        )

    text = _text_balance(decisions, rows, text_levels, coins)
    if goal.method == "text":
        return _by_text(decisions, rows, goal, text)

    return _by_both(
        decisions,
        rows,
        goal,
        _image_balance(decisions, rows, image_levels, coins, seed, goal),
        text,
    )


def _image_balance(
    decisions: Decisions,
    rows: Int64[np.ndarray, " n"],
    levels: list[Level],
    coins: Coins,
    seed: int,
    goal: Goal,
) -> ImageBalance:
    # The labels of a level are the parents of the clusters below it. The labels of the first level
    # are the rows' own clusters, which come from the decisions.
    parents = [level.labels for level in levels[1:]]
    num_leaves = len(levels[0].centroids)
    return ImageBalance(
        decisions.image_cluster[rows], parents, num_leaves, coins.leaf[rows], seed, goal.repeats
    )


def _text_balance(
    decisions: Decisions, rows: Int64[np.ndarray, " n"], levels: list[Level], coins: Coins
) -> TextBalance:
    entries = decisions.text_entries().take(rows)
    if decisions.entries is not None:
        check_matched(entries, decisions.entry_names)
    return TextBalance(entries, coins.text[rows], [level.labels for level in levels[1:]])


def _by_image(
    decisions: Decisions, rows: Int64[np.ndarray, " n"], goal: Goal, image: ImageBalance
) -> dict[str, float]:
    copies = image.copies(goal.num_rows)
    decisions.image_keep[rows] = image.expected_copies(goal.num_rows)
    decisions.copies[rows] = copies
    decisions.drop(rows[copies == 0], "balance: image")
    return {"image_budget": float(goal.num_rows)}


def _by_text(
    decisions: Decisions, rows: Int64[np.ndarray, " n"], goal: Goal, text: TextBalance
) -> dict[str, float]:
    configured = _configured_threshold(goal, text)
    if configured is None:
        _check_unmatched(goal, text)

    # Either the threshold decides how many rows are kept, or the number decides the threshold.
    budget = goal.num_rows if configured is None else text.budget(configured)
    threshold = text.threshold(budget) if configured is None else configured
    decisions.text_keep[rows] = text.keep_probability(threshold)
    decisions.drop(rows[~text.keep(budget)], "balance: text")
    return {"text_budget": float(budget), "text_threshold": threshold}


def _by_both(
    decisions: Decisions,
    rows: Int64[np.ndarray, " n"],
    goal: Goal,
    image: ImageBalance,
    text: TextBalance,
) -> dict[str, float]:
    configured = _configured_threshold(goal, text)
    if configured is None and goal.combine == "union":
        _check_unmatched(goal, text)

    solved = combine(
        image,
        text,
        goal.num_rows,
        goal.combine,
        None if configured is None else text.budget(configured),
    )
    threshold = text.threshold(solved.text_budget) if configured is None else configured
    decisions.image_keep[rows] = image.expected_copies(solved.image_budget)
    decisions.text_keep[rows] = text.keep_probability(threshold)
    decisions.copies[rows] = solved.copies

    # A row is dropped once, so each line applies to the rows that the lines above have left.
    out = solved.copies == 0
    decisions.drop(rows[out & ~solved.image & ~solved.text], "balance: image and text")
    decisions.drop(rows[out & ~solved.image], "balance: image")
    decisions.drop(rows[out], "balance: text")

    return {
        "image_budget": float(solved.image_budget),
        "text_budget": float(solved.text_budget),
        "text_threshold": threshold,
        "in_both": float((solved.image & solved.text).sum()),
        "in_image_only": float((solved.image & ~solved.text).sum()),
        "in_text_only": float((~solved.image & solved.text).sum()),
        "in_neither": float((~solved.image & ~solved.text).sum()),
    }


def _check_unmatched(goal: Goal, text: TextBalance) -> None:
    if goal.num_rows < text.num_unmatched:
        raise ValueError(
            f"{goal.num_rows} pairs are asked for, but {text.num_unmatched} hold no metadata "
            "entry, and text.unmatched=keep keeps all of these: at least as many must be asked "
            "for; raise target_rows or share, or set text.unmatched=drop"
        )


def _configured_threshold(goal: Goal, text: TextBalance) -> float | None:
    """The t that the config sets, directly or by the tail share; None if the size decides it."""
    if goal.threshold is not None:
        return goal.threshold
    return None if goal.tail_share is None else tail_threshold(text.counts, goal.tail_share)


def evenness(
    decisions: Decisions, image_levels: list[Level], text_levels: list[Level]
) -> dict[str, float]:
    """Entropy (bits) and Gini coefficient of every level and of the metadata entries.

    Each figure is there twice: before, over all rows of the clusters, and after, over the copies of
    the selected rows.
    """
    figures = dict[str, float]()
    copies = decisions.times_selected()
    for side, levels, bottom in (
        ("image", image_levels, decisions.image_cluster),
        ("text", text_levels, decisions.text_cluster),
    ):
        # Labels are those of the rows that were clustered, which are the rows with a cluster.
        clustered = copies[bottom >= 0]
        for number, labels in enumerate(cluster_of_rows(levels) if levels else [], start=1):
            num_clusters = len(levels[number - 1].centroids)
            figures |= _evenness(f"{side}_level{number}", labels, clustered, num_clusters)

    if decisions.entries is not None:
        values = decisions.entries.values
        figures |= _evenness(
            "text_entries", values, copies[decisions.entries.rows()], len(decisions.entry_names)
        )

    return figures


def _evenness(
    name: str, labels: Int32[np.ndarray, " n"], copies: Int64[np.ndarray, " n"], num_clusters: int
) -> dict[str, float]:
    figures = dict[str, float]()
    for when, weights in (("before", None), ("after", copies)):
        sizes = np.bincount(labels, weights, num_clusters).astype(np.int64)
        figures |= {f"{name}_entropy_{when}": entropy(sizes), f"{name}_gini_{when}": gini(sizes)}
    return figures
