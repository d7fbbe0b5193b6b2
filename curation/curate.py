"""The curate step: embeddings to a selection, with a reason for every row.

Stages: rows without a usable vector, low scores, leakage of evaluation images, clusters of captions
and of images, duplicates, balance. The result is a function of the config and of the rows in their
order. It does not depend on workers, shards or interruptions.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Int64

from cluster.fanout import Pool
from cluster.files import write_atomic
from curation.choice.choose import Coins, Goal, choose, evenness
from curation.choice.decisions import Decisions
from curation.choice.draws import coins
from curation.choice.duplicates import PARTS
from curation.choice.entries import match_captions, read_entries
from curation.choice.phases import Phase, Phases
from curation.choice.removal import centroid_distances, drop_duplicates, drop_invalid, drop_leakage
from curation.choice.scores import drop_low_scores
from curation.clusters.config import LevelsConfig, automatic_clusters, automatic_levels
from curation.clusters.hierarchy import cluster_levels
from curation.clusters.levels import Level
from curation.clusters.nearest import choose_engine
from curation.clusters.scan import Points, Scanner, Workers
from curation.clusters.seeding import count_distinct
from curation.clusters.spans import cut_spans
from curation.clusters.vectors import ShardVectors
from curation.config import CurateConfig
from curation.shards.reader import EmbeddingShards, open_shards
from curation.shards.schema import CAPTION_EMBEDDING, CLS
from curation.shards.selection import write_selection

CURATION = "curation.json"
LEAKAGE_INPUT = "leakage_"
UNMATCHED_SHARE = 0.2  # of the pairs: above it, entries and captions hardly belong together
logger = logging.getLogger(__name__)


def run(
    config: CurateConfig,
    *,
    out: Path,
    embeddings: Path,
    metadata: Path | None = None,
    scores: Path | None = None,
    **evaluation: Path,
) -> dict[str, float]:
    """Write selection, decisions and clusters to `out`; return the figures of the step.

    `metadata` is a file with one entry per line: captions are balanced over these entries and are
    not clustered. `scores` is a file of keys and numbers: pairs below `config.min_score` are
    dropped first. Inputs named leakage_* are embeddings of evaluation images. The step continues
    from the levels and iterations that an interrupted run left in `out`.
    """
    with Pool(Scanner, resources=config.resources) as workers:
        return curate(config, workers, out, embeddings, evaluation, metadata, scores)


def curate(
    config: CurateConfig,
    workers: Workers,
    out: Path,
    embeddings: Path,
    evaluation: Mapping[str, Path],
    metadata: Path | None = None,
    scores: Path | None = None,
) -> dict[str, float]:
    """The step on any workers; `run` uses a pool of processes."""
    # The driver decides once for all workers: what is fast on its own machine.
    config = replace(config, engine=choose_engine(config.engine))
    logger.info("engine=%s", config.engine)

    shards = open_shards(embeddings)
    _check(config, shards, evaluation, metadata)
    known = {
        name.removeprefix(LEAKAGE_INPUT): open_shards(path)
        for name, path in sorted(evaluation.items())
    }
    decisions = Decisions(shards, known)
    phases = Phases(workers)
    figures = dict[str, float]()

    # Lengths of the progress bars, in spans: a clustering has a pass per iteration, and about two
    # more for seeds and final labels.
    spans = len(cut_spans(shards.num_rows))
    clustering = spans * (config.kmeans.iterations + 2)

    with phases.phase("check", 2 * spans):
        points = Points(ShardVectors(embeddings, CLS, unit=True), phases, engine=config.engine)
        drop_invalid(decisions, points, config.error_budget)
        captions = None
        if config.method in ("both", "text") and metadata is None:
            vectors = ShardVectors(embeddings, CAPTION_EMBEDDING, unit=True)
            captions = Points(vectors, phases, engine=config.engine)
            drop_invalid(decisions, captions, config.error_budget)
        if scores is not None and config.min_score is not None:
            drop_low_scores(decisions, scores, config.min_score, config.error_budget)
        valid = decisions.surviving()

    with phases.phase("leakage", 2 * spans * len(known)):
        for name in known:
            figures |= drop_leakage(decisions, points, valid, name, config.leakage)
        figures["captions_in_evaluation"] = float((decisions.caption_set >= 0).sum())

    with phases.phase("text_clusters", clustering):
        _match_entries(config, points, metadata, decisions)
        text = _text_levels(config, captions, valid, out, decisions)

    with phases.phase("image_clusters", clustering):
        image = _image_levels(config, points, valid, out, decisions)

    # Duplicates come after clusters, because near vectors are searched within clusters.
    with phases.phase("duplicates", 2 * PARTS):
        figures |= drop_duplicates(decisions, points, image, config.duplicates, config.seed)

    with phases.phase("balance"):
        if decisions.entries is not None and config.text.unmatched == "drop":
            decisions.drop(
                np.flatnonzero(decisions.entries.counts() == 0), "text: no metadata entry"
            )
        figures |= choose(
            decisions,
            _goal(config, decisions),
            image,
            text,
            _coins(config, decisions, image),
            config.seed,
        )

    figures |= evenness(decisions, image, text)
    decisions.write(out)
    merged = decisions.merged_captions() if config.duplicates.captions == "merge" else {}
    figures["captions_merged"] = float(sum(map(len, merged.values())))
    # Each row as often as it is selected, 0 for dropped ones; ascending.
    write_selection(
        out, shards, np.repeat(np.arange(shards.num_rows), decisions.times_selected()), merged
    )

    return _write_summary(config, out, decisions, figures, phases.needs)


def _check(
    config: CurateConfig,
    shards: EmbeddingShards,
    evaluation: Mapping[str, Path],
    metadata: Path | None,
) -> None:
    """Raise ValueError for inputs that do not fit the config, before anything is computed."""
    unknown = [name for name in evaluation if not name.startswith(LEAKAGE_INPUT)]
    if unknown:
        raise ValueError(
            f"inputs {unknown} of curate are unknown: it knows embeddings, metadata, scores and "
            f"{LEAKAGE_INPUT}*; rename or drop them"
        )
    if config.method in ("both", "text") and metadata is None and not shards.spec.caption_dim:
        raise ValueError(
            f"method {config.method} needs caption vectors, which {shards.folder} does not have: "
            "embed with a caption encoder, add metadata entries, or use method image"
        )

    most = config.repeats * shards.num_rows
    if config.target_rows is not None and config.target_rows > most and config.method != "none":
        raise ValueError(
            f"{config.target_rows} pairs are asked for, but {shards.folder} has "
            f"{shards.num_rows}: with repeats {config.repeats}, at most {most} can be kept; lower "
            "target_rows, or raise repeats"
        )

    # A key must stand for one row: selections, decisions and random numbers are by key.
    counts = pc.value_counts(shards.keys())
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if len(repeated):
        raise ValueError(
            f"{len(repeated)} keys occur more than once in {shards.folder}, e.g. "
            f"{repeated[:3].to_pylist()}: keys must be unique over all shards; embed again with "
            "one source per key"
        )


def _image_levels(
    config: CurateConfig,
    points: Points,
    valid: Int64[np.ndarray, " n"],
    out: Path,
    decisions: Decisions,
) -> list[Level]:
    """Levels over the rows with valid vectors; none if neither the method nor duplicates need them.

    Writes the cluster of each row to `decisions`.
    """
    if config.method not in ("both", "image") and not config.duplicates.alike.uses_vectors:
        return []
    # For cosines, vectors are scaled to length one; Euclidean distances need them as stored.
    if config.metric == "euclidean":
        points = replace(points, vectors=ShardVectors(decisions.shards.folder, CLS))

    levels = _levels(config, _subset(points, valid), config.levels, out / "image")
    decisions.image_cluster[valid] = levels[0].labels

    return levels


def _text_levels(
    config: CurateConfig,
    captions: Points | None,
    valid: Int64[np.ndarray, " n"],
    out: Path,
    decisions: Decisions,
) -> list[Level]:
    """Levels over the rows with valid vectors; none if captions are not clustered.

    Writes the cluster of each row to `decisions`.
    """
    if captions is None:
        return []

    levels = _levels(config, _subset(captions, valid), config.text.levels, out / "text")
    decisions.text_cluster[valid] = levels[0].labels

    return levels


def _match_entries(
    config: CurateConfig, points: Points, metadata: Path | None, decisions: Decisions
) -> None:
    """Search the metadata entries in all captions, if captions are balanced over them."""
    if metadata is not None and config.method in ("both", "text"):
        decisions.entry_names = read_entries(metadata)
        decisions.entries = match_captions(points, metadata)
        _warn_of_unmatched(decisions)


def _warn_of_unmatched(decisions: Decisions) -> None:
    """Log a warning when many captions have no metadata entry: they may be in other languages."""
    assert decisions.entries is not None
    unmatched = np.flatnonzero(np.diff(decisions.entries.offsets) == 0)
    share = len(unmatched) / len(decisions.reason)
    if share > UNMATCHED_SHARE:
        shown = [captions[0] for captions in decisions.shards.captions(unmatched[:3])]
        logger.warning("%.0f %% of the pairs have no metadata entry, e.g. %s", 100 * share, shown)


def _subset(points: Points, valid: Int64[np.ndarray, " n"]) -> Points:
    return points.subset(valid) if len(valid) < points.num_rows else points


def _levels(
    config: CurateConfig, points: Points, levels: LevelsConfig, folder: Path
) -> list[Level]:
    if not levels.clusters:
        levels = automatic_levels(*_automatic_clusters(points))
    folder.mkdir(parents=True, exist_ok=True)
    return cluster_levels(
        points, levels.resolve(points.num_rows), config.kmeans, config.seed, folder
    )


def _automatic_clusters(points: Points) -> tuple[int, int]:
    """(number of clusters, split) by default: a single stage of fewer if too few are distinct.

    Only the first stage needs distinct points: the second makes as many clusters as there are.
    """
    num_clusters, split = automatic_clusters(points.num_rows)
    first = num_clusters // max(1, split)
    num_distinct = count_distinct(points, first)
    return (num_clusters, split) if num_distinct == first else (max(1, num_distinct), 0)


def _goal(config: CurateConfig, decisions: Decisions) -> Goal:
    """The goal of the balance stage: the target size, or a share of the survivors, at least one."""
    surviving = len(decisions.surviving())
    num_rows = config.target_rows or min(surviving, max(1, round(config.share * surviving)))
    return Goal(
        config.method,
        config.combine,
        num_rows,
        config.text.threshold,
        config.text.tail_share,
        config.repeats,
    )


def _coins(config: CurateConfig, decisions: Decisions, image: list[Level]) -> Coins:
    """Random numbers per row; for leaf "central", distances decide within clusters instead."""
    leaf, text, random = (
        coins(decisions.shards.keys(), config.seed, purpose)
        for purpose in ("leaf", "text", "random")
    )
    return Coins(
        centroid_distances(decisions, image) if config.leaf == "central" else leaf, text, random
    )


def _write_summary(
    config: CurateConfig,
    out: Path,
    decisions: Decisions,
    figures: dict[str, float],
    needs: Mapping[str, Phase],
) -> dict[str, float]:
    """Write curation.json, and return the figures of the step."""
    counts = decisions.counts()
    report = {
        "method": config.method,
        "engine": config.engine,
        "rows": len(decisions.reason),
        "counts": counts,
        "figures": figures,
        "phases": {name: phase._asdict() for name, phase in needs.items()},
        "evaluation": decisions.evaluation_names,
    }
    write_atomic(out / CURATION, json.dumps(report, indent=1) + "\n")
    logger.info("method=%s engine=%s kept=%d", config.method, report["engine"], counts["kept"])
    removed = {_name(reason): float(count) for reason, count in counts.items() if reason != "kept"}
    times = {f"seconds_{name}": phase.seconds for name, phase in needs.items()}
    times["peak_mb"] = max(phase.driver_mb + phase.workers_mb for phase in needs.values())

    return {
        "rows": float(len(decisions.reason)),
        "kept": float(counts["kept"]),
        **removed,
        **figures,
        **times,
    }


def _name(reason: str) -> str:
    return "removed_" + reason.replace(": ", "_").replace(" ", "_")
