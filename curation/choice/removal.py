"""The stages that remove rows before anything is balanced: unusable vectors, leakage, duplicates."""

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Float64, Int64

from curation.choice.config import DuplicatesConfig, LeakageConfig
from curation.choice.decisions import Decisions, Reason
from curation.choice.draws import coins
from curation.choice.duplicates import Pairs, equal_pairs, perceptual_pairs, semantic_pairs
from curation.choice.leakage import How, find_leakage
from curation.clusters.levels import Level
from curation.clusters.scan import Points
from curation.shards.schema import BYTES_HASH, CAPTIONS, PERCEPTUAL_HASH, PIXEL_HASH

LEAKAGE: dict[How, Reason] = {
    "same image": "leakage: same image",
    "perceptual hash": "leakage: perceptual hash",
    "cosine": "leakage: cosine",
    "caption": "leakage: caption",
}


def drop_invalid(decisions: Decisions, points: Points, error_budget: float) -> None:
    """Count rows whose vector is not finite or zero; ValueError when there are more than the budget allows."""
    not_finite, zero = (
        np.concatenate(parts) for parts in zip(*(found for _, found in points.scan("faults")), strict=True)
    )
    decisions.drop(not_finite, "invalid: value not finite")
    decisions.drop(zero, "invalid: zero vector")
    bad = np.union1d(not_finite, zero)
    if len(bad) > error_budget * points.num_rows:
        keys = decisions.shards.keys().combine_chunks().take(bad[:5]).to_pylist()
        raise ValueError(
            f"{len(not_finite)} vectors with NaN or infinite values and {len(zero)} zero vectors "
            f"among {points.num_rows} (keys {keys}): at most a share of {error_budget} may be; look "
            "at them, or raise error_budget"
        )


def drop_leakage(
    decisions: Decisions, points: Points, valid: Int64[np.ndarray, " n"], name: str, config: LeakageConfig
) -> None:
    """Drop what is found in one evaluation set, and note whose captions occur there."""
    number = decisions.names.index(name)
    for finding in find_leakage(decisions.shards, points, valid, decisions.evaluation[number], config):
        if finding.how == "caption":
            decisions.caption_set[finding.rows] = number
            if config.captions != "remove":
                continue
        pairs = Pairs(finding.evaluation_rows, finding.rows, finding.cosine)
        decisions.drop_for(pairs, LEAKAGE[finding.how], name)


def drop_duplicates(
    decisions: Decisions,
    points: Points,
    levels: list[Level],
    config: DuplicatesConfig,
    seed: int,
) -> None:
    """Drop all but one of each group of duplicates among the surviving rows, the surest kind first."""
    shards, preference = decisions.shards, _preference(decisions, levels, config, seed)

    def in_order() -> Int64[np.ndarray, " n"]:
        rows = decisions.surviving()
        return rows[np.argsort(preference[rows], kind="stable")]

    if config.exact:
        decisions.drop_for(equal_pairs(shards.hashes(BYTES_HASH), in_order()), "duplicate: same bytes")
        decisions.drop_for(equal_pairs(shards.hashes(PIXEL_HASH), in_order()), "duplicate: same pixels")
    if config.perceptual_bits >= 0:
        pairs = perceptual_pairs(points, shards.hashes(PERCEPTUAL_HASH), in_order(), config)
        decisions.drop_for(pairs, "duplicate: perceptual hash")
    if config.cosine <= 1:
        pairs = semantic_pairs(points, decisions.image_cluster, levels[0].centroids, in_order(), config)
        decisions.drop_for(pairs, "duplicate: cosine")


def _preference(
    decisions: Decisions, levels: list[Level], config: DuplicatesConfig, seed: int
) -> Float64[np.ndarray, " rows"]:
    """Lowest for the row that should stay among duplicates; ties are broken by coin."""
    tie = coins(decisions.shards.keys(), seed, "duplicates")
    if config.keep == "caption":
        captions = decisions.shards.strings(CAPTIONS).combine_chunks()
        lengths = pc.binary_length(captions.flatten()).to_numpy(zero_copy_only=False)
        row = np.repeat(np.arange(len(captions)), pc.list_value_length(captions).to_numpy())
        first = -np.bincount(row, lengths, len(captions))
    else:
        first = centroid_distances(decisions, levels)
    rank = np.empty(len(tie))
    rank[np.lexsort((tie, first))] = np.arange(len(tie))
    return rank


def centroid_distances(decisions: Decisions, levels: list[Level]) -> Float64[np.ndarray, " rows"]:
    """Squared distance of each row to its centroid of the first level; 0 without clusters."""
    distances = np.zeros(len(decisions.reason))
    if levels:
        distances[decisions.image_cluster >= 0] = levels[0].distances
    return distances
