"""The stages that remove rows before anything is balanced: bad vectors, leakage, duplicates."""

import logging

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Float64, Int64

from curation.choice.config import DuplicatesConfig, LeakageConfig
from curation.choice.decisions import EQUAL_IMAGES, LEAKAGE, Decisions, Margin
from curation.choice.draws import coins
from curation.choice.duplicates import (
    equal_pairs,
    hash_pairs,
    nearest_others,
    neighborhoods,
    pair_distances,
    semantic_pairs,
)
from curation.choice.leakage import captions_in, check_hashed, find_leakage
from curation.choice.likeness import calibrate, hashes_decide, rule_of
from curation.clusters.levels import Level
from curation.clusters.scan import Points
from curation.shards.schema import BYTES_HASH, CAPTIONS, PIXEL_HASH

logger = logging.getLogger(__name__)


def drop_invalid(decisions: Decisions, points: Points, error_budget: float) -> None:
    """Drop rows whose vector is not finite or zero.

    Raises ValueError when they are more than a share of `error_budget` of all rows.
    """
    not_finite, zero = (
        np.concatenate(parts)
        for parts in zip(*(found for _, found in points.scan("faults")), strict=True)
    )
    decisions.drop(not_finite, "invalid: value not finite")
    decisions.drop(zero, "invalid: zero vector")
    bad = np.union1d(not_finite, zero)

    if len(bad) > error_budget * points.num_rows:
        keys = decisions.shards.keys().combine_chunks().take(bad[:5]).to_pylist()
        raise ValueError(
            f"{len(not_finite)} vectors with NaN or infinite values and {len(zero)} zero vectors "
            f"among {points.num_rows} (keys {keys}): at most a share of {error_budget} is allowed; "
            "look at them, or raise error_budget"
        )


def drop_leakage(
    decisions: Decisions,
    points: Points,
    valid: Int64[np.ndarray, " n"],
    name: str,
    config: LeakageConfig,
) -> dict[str, float]:
    """Drop the copies of images of one evaluation set; return the thresholds, by name.

    Also notes which rows share a caption with the set. `valid` are the rows with a usable vector.
    """
    number = decisions.evaluation_names.index(name)
    other = decisions.evaluation[number]
    leaks = find_leakage(decisions.shards, points, valid, other, config)
    for finding in leaks.findings:
        decisions.drop_for(finding.pairs, LEAKAGE[finding.sign], name)

    for margin in leaks.margins:
        decisions.note_margin(margin, name)

    shared = captions_in(points, other)
    decisions.caption_set[shared.right] = number
    if config.captions == "remove":
        decisions.drop_for(shared, "leakage: caption", name)

    return {
        _threshold_name(f"leakage_{name}", margin): float(margin.threshold)
        for margin in leaks.margins
    }


def drop_duplicates(
    decisions: Decisions,
    points: Points,
    levels: list[Level],
    config: DuplicatesConfig,
    seed: int,
) -> dict[str, float]:
    """Drop all but one of each group of duplicates among the surviving rows.

    The most certain sign comes first. Returns the thresholds, by name.
    """
    shards = decisions.shards
    alike = config.alike
    preference = _preference(decisions, levels, config, seed)

    def in_order() -> Int64[np.ndarray, " n"]:
        # Each stage drops rows, so every stage asks for the survivors again.
        rows = decisions.surviving()
        return rows[np.argsort(preference[rows], kind="stable")]

    if alike.exact:
        for column, reason in zip((BYTES_HASH, PIXEL_HASH), EQUAL_IMAGES, strict=True):
            decisions.drop_for(equal_pairs(shards.hashes(column), in_order()), reason)

    thresholds = dict[str, float]()
    has_sure_hashes = False
    if alike.hash_bits is not None:
        check_hashed(shards, "the pool")
        rows = in_order()
        pairs = hash_pairs(shards.perceptual_hashes(rows, 1)[:, 0], rows, alike.hash_bits)
        has_sure_hashes = alike.form_bits is None or hashes_decide(pairs.bits, alike.hash_bits)
        if has_sure_hashes:
            decisions.drop_for(pairs, "duplicate: perceptual hash")
            thresholds["duplicates_hash_bits"] = float(alike.hash_bits)
        else:
            logger.info(
                "hash_pairs=%d: this pool has look-alikes that differ in color alone; near hashes "
                "count only with near vectors",
                len(pairs.bits),
            )

    if alike.uses_vectors:
        rows = in_order()
        near = neighborhoods(decisions.image_cluster[rows], levels[0].centroids, config.neighbors)
        nearest = nearest_others(points, rows, near)

        # Pairs that a form's hash already calls copies are not near by chance. In a pool with many
        # crops they would raise both thresholds until the crops are kept.
        by_chance = nearest
        if has_sure_hashes and alike.hash_bits is not None and alike.form_bits is not None:
            bits = pair_distances(points, nearest.left, nearest.right)
            by_chance = nearest.where(bits > alike.hash_bits)

        rule = rule_of(alike, calibrate(by_chance.cosine, alike.false_rate))
        decisions.drop_for(semantic_pairs(points, rows, near, rule), "duplicate: vector")
        decisions.note_margin(Margin("cosine", rule.least, nearest))
        thresholds["duplicates_cosine"] = rule.least

    return thresholds


def _threshold_name(where: str, margin: Margin) -> str:
    return f"{where}_{margin.sign.replace(' ', '_')}_threshold"


def _preference(
    decisions: Decisions, levels: list[Level], config: DuplicatesConfig, seed: int
) -> Float64[np.ndarray, " rows"]:
    """Per row, its place in the order of preference; the lowest of duplicates stays.

    Ties are broken by a random number per key.
    """
    tie = coins(decisions.shards.keys(), seed, "duplicates")
    if config.keep == "caption":
        captions = decisions.shards.strings(CAPTIONS).combine_chunks()
        lengths = pc.binary_length(captions.flatten()).to_numpy(zero_copy_only=False)
        # The bytes of all captions, summed by row. Negated, because the lowest value stays.
        row = np.repeat(np.arange(len(captions)), pc.list_value_length(captions).to_numpy())
        first = -np.bincount(row, lengths, len(captions))
    else:
        first = centroid_distances(decisions, levels)

    # lexsort sorts by its last key first. The position in the sorted order becomes the row's value.
    rank = np.empty(len(tie))
    rank[np.lexsort((tie, first))] = np.arange(len(tie))
    return rank


def centroid_distances(decisions: Decisions, levels: list[Level]) -> Float64[np.ndarray, " rows"]:
    """Squared distance of each row to its centroid of the first level; 0 if it has no cluster."""
    distances = np.zeros(len(decisions.reason))
    if levels:
        distances[decisions.image_cluster >= 0] = levels[0].distances
    return distances
