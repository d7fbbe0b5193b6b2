"""Leakage: images of the pool that are copies of evaluation images, and shared captions.

Evaluation images come as a folder of embeddings by the same backbone. A row of the pool counts
once, by its most certain sign: equal pixels or bytes, a near perceptual hash, an altered form of
its nearest evaluation image, or a near vector.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float32, Int32, Int64, UInt8

from curation.choice.config import LeakageConfig, LikenessConfig
from curation.choice.decisions import Margin, Sign
from curation.choice.duplicates import Pairs, pairs_of
from curation.choice.hashes import HashIndex, form_distances, nearest_turned
from curation.choice.likeness import calibrate, rule_of
from curation.clusters.kmeans import assign
from curation.clusters.scan import Points
from curation.clusters.spans import Span
from curation.clusters.vectors import ShardVectors
from curation.shards.reader import EmbeddingShards
from curation.shards.schema import BYTES_HASH, CAPTIONS, CLS, PIXEL_HASH

HASHED_ROWS = 4096  # at a time, in each of 8 orientations
FORM_ROWS = 1024
FORM_ROUNDS = 2  # the second has thresholds that the copies of the first no longer distort
END_PUNCTUATION = " .!?,;:…。．！？、，；：।"


class Finding(NamedTuple):
    """Rows of the pool (right) that are copies of evaluation images (left), by one sign."""

    sign: Sign
    pairs: Pairs


class Leaks(NamedTuple):
    """The copies of the images of one evaluation set, and the pairs next to each threshold."""

    findings: list[Finding]
    margins: list[Margin]


def find_leakage(
    pool: EmbeddingShards,
    points: Points,
    among: Int64[np.ndarray, " n"],
    other: EmbeddingShards,
    config: LeakageConfig,
) -> Leaks:
    """Copies of the images of one evaluation folder, the most certain sign first.

    A row occurs once. Only the rows in `among`, which must have a usable vector, are compared by
    hash and by vector. Raises ValueError if the folders have different backbones, or lack hashes
    that the config needs.
    """
    alike = config.alike
    leaks = Leaks([], [])
    if not other.num_rows:
        return leaks

    equal = np.empty(0, np.int64)
    if alike.exact:
        for column in (PIXEL_HASH, BYTES_HASH):
            pairs = _equal_hashes(pool, other, column)
            leaks.findings.append(Finding("same image", pairs.where(~np.isin(pairs.right, equal))))
            equal = np.union1d(equal, pairs.right)

    among = np.setdiff1d(among, equal)
    if alike.hash_bits is not None:
        check_hashed(pool, "the pool")
        check_hashed(other, "the evaluation set")
        among = _by_hash(points, among, other, alike.hash_bits, leaks)
    if alike.uses_vectors:
        check_same_model(pool, other)
        _by_vector(points, among, other, alike, leaks)

    return leaks


def check_same_model(pool: EmbeddingShards, other: EmbeddingShards) -> None:
    """Raise ValueError unless the same backbone made both."""
    if (pool.spec.digest, pool.spec.dim) != (other.spec.digest, other.spec.dim):
        raise ValueError(
            f"{other.folder} was embedded by {other.spec.backbone} ({other.spec.digest[:12]}), "
            f"the pool by {pool.spec.backbone} ({pool.spec.digest[:12]}): leakage needs one "
            "backbone for both; embed the evaluation images with the pool's"
        )


def check_hashed(shards: EmbeddingShards, what: str) -> None:
    """Raise ValueError when a folder has no perceptual hashes."""
    if not shards.spec.num_hashes:
        raise ValueError(
            f"{shards.folder}, {what}, has no perceptual hashes: the search for copies needs them; "
            "embed it again, or set hash_bits and form_bits to None"
        )


def pool_of(points: Points) -> EmbeddingShards:
    """The shards whose vectors the points are."""
    assert isinstance(points.vectors, ShardVectors)
    return points.vectors.shards


def _equal_hashes(pool: EmbeddingShards, other: EmbeddingShards, column: str) -> Pairs:
    """Pairs with the same hash: the first evaluation image with it (left), a pool row (right)."""
    # A sorted search in the known hashes; a hash above all of them would be one place too far.
    known, first = np.unique(other.hashes(column), return_index=True)
    hashes = pool.hashes(column)
    place = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    rows = np.flatnonzero(known[place] == hashes)
    return pairs_of(first[place[rows]].astype(np.int64), rows, 1.0)


def _by_hash(
    points: Points,
    among: Int64[np.ndarray, " n"],
    other: EmbeddingShards,
    most_bits: int,
    leaks: Leaks,
) -> Int64[np.ndarray, " rest"]:
    """Add the rows whose hash is near that of an evaluation image; return the other rows."""
    known = other.perceptual_hashes(np.arange(other.num_rows), 1)[:, 0]
    spans = [nearest for _, nearest in points.subset(among).scan("apply", nearest_hashes, known)]
    bits, number = (
        (np.concatenate(columns) for columns in zip(*spans, strict=True)) if spans else _NOTHING
    )

    pairs = pairs_of(number, among, bits=bits)
    is_copy = bits <= most_bits
    leaks.findings.append(Finding("perceptual hash", pairs.where(is_copy)))
    leaks.margins.append(Margin("perceptual hash", most_bits, pairs.where(number >= 0)))

    return among[~is_copy]


_NOTHING = np.empty(0, np.int32), np.empty(0, np.int64)


def nearest_hashes(
    span: Span, points: Points, known: UInt8[np.ndarray, "m bytes"]
) -> tuple[Int32[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """(bits, number) of the nearest known hash, per row of a span: the work of one worker."""
    shards = pool_of(points)
    index = HashIndex(known, len(known))
    index.add(known)

    # A span counts points, the shards count rows.
    rows = np.arange(*span) if points.rows is None else points.rows[span[0] : span[1]]
    bits = [_NOTHING[0]]
    number = [_NOTHING[1]]

    for start in range(0, len(rows), HASHED_ROWS):
        hashes = shards.perceptual_hashes(rows[start : start + HASHED_ROWS], 1)[:, 0]
        nearest = nearest_turned(index, hashes)
        bits.append(nearest.bits)
        number.append(nearest.number)

    return np.concatenate(bits), np.concatenate(number)


def _by_vector(
    points: Points,
    among: Int64[np.ndarray, " n"],
    other: EmbeddingShards,
    alike: LikenessConfig,
    leaks: Leaks,
) -> None:
    """Add the copies of the nearest evaluation image: by a form of it, or by cosine alone."""
    targets = ShardVectors(other.folder, CLS, unit=True).gather(np.arange(other.num_rows))
    _check_finite(other, targets)
    # Evaluation images as centroids: the nearest of each row. Of unit vectors, |x - y|^2 is
    # 2 - 2 cos.
    nearest, squared = assign(points.subset(among), targets)
    pairs = pairs_of(nearest.astype(np.int64), among, 1 - squared / 2)

    rule = rule_of(alike, calibrate(pairs.cosine, alike.false_rate))

    if alike.form_bits is not None:
        check_hashed(pool_of(points), "the pool")
        check_hashed(other, "the evaluation set")
        for _ in range(FORM_ROUNDS):
            asked = np.flatnonzero(pairs.cosine >= rule.cosines.likely)
            bits = _form_bits(points, pairs.where(asked), other)
            compared = pairs.where(asked)._replace(bits=bits)
            is_copy = bits <= alike.form_bits
            leaks.findings.append(Finding("altered form", compared.where(is_copy)))
            leaks.margins.append(Margin("altered form", alike.form_bits, compared))

            # Without the copies, the remaining cosines tell better what is near by chance.
            pairs = pairs.where(np.setdiff1d(np.arange(len(pairs.left)), asked[is_copy]))
            rule = rule_of(alike, calibrate(pairs.cosine, alike.false_rate))

    if alike.cosine is not None:
        leaks.findings.append(Finding("cosine", pairs.where(pairs.cosine >= rule.least)))
        leaks.margins.append(Margin("cosine", rule.least, pairs))


def _check_finite(other: EmbeddingShards, targets: Float32[np.ndarray, "n d"]) -> None:
    """Raise ValueError, with the first keys, when a vector is not finite."""
    bad = np.flatnonzero(~np.isfinite(targets).all(axis=1))
    if len(bad):
        keys = other.keys().take(pa.array(bad[:5])).to_pylist()
        raise ValueError(
            f"{len(bad)} vectors of {other.folder} hold NaN or infinite values (keys {keys}): no "
            "image can be compared with them; look at these images, take them out, and embed the "
            "evaluation set again"
        )


def _form_bits(points: Points, pairs: Pairs, other: EmbeddingShards) -> Int32[np.ndarray, " pairs"]:
    """The fewest bits between the images of each pair or their forms, by the workers."""
    asked = points.subset(pairs.right)
    spans = [bits for _, bits in asked.scan("apply", form_bits_of_span, other, pairs.left)]
    return np.concatenate([_NOTHING[0], *spans])


def form_bits_of_span(
    span: Span, points: Points, other: EmbeddingShards, evaluation_rows: Int64[np.ndarray, " n"]
) -> Int32[np.ndarray, " span"]:
    """The fewest bits of each row of a span to its evaluation image: the work of one worker.

    Forms of either image count. `evaluation_rows` has one row per point, not per row of the span.
    """
    shards = pool_of(points)
    rows = np.arange(points.num_rows) if points.rows is None else points.rows
    bits = [_NOTHING[0]]

    for start in range(span[0], span[1], FORM_ROWS):
        block = slice(start, min(start + FORM_ROWS, span[1]))
        ours = shards.perceptual_hashes(rows[block], shards.spec.num_hashes)
        theirs = other.perceptual_hashes(evaluation_rows[block], other.spec.num_hashes)
        bits.append(form_distances(ours, theirs))

    return np.concatenate(bits)


def captions_in(points: Points, other: EmbeddingShards) -> Pairs:
    """Rows of the pool (right) that share a caption with an evaluation row (left).

    It is the evaluation row of the first shared caption. Captions are compared without regard to
    case, spaces, punctuation at the end, and Unicode's compatible forms.
    """
    known, evaluation_rows = _flat_captions(other)
    rows = [np.empty(0, np.int64)]
    places = [np.empty(0, np.int32)]
    for _, (span_rows, span_places) in points.scan("apply", find_captions, known):
        rows.append(span_rows)
        places.append(span_places)

    return pairs_of(evaluation_rows[np.concatenate(places)], np.concatenate(rows))


def find_captions(
    span: Span, points: Points, known: pa.LargeStringArray
) -> tuple[Int64[np.ndarray, " n"], Int32[np.ndarray, " n"]]:
    """(rows of a span with a known caption, its place in `known`): the work of one worker.

    A row with several known captions has the place of the first.
    """
    captions, rows = _flat_captions(pool_of(points), span)
    # index_in gives null for unknown captions; np.unique keeps the first caption of each row.
    place = pc.index_in(captions, known)
    is_known: Bool[np.ndarray, " n"] = place.is_valid().to_numpy(zero_copy_only=False)
    sharing, first = np.unique(rows[is_known], return_index=True)
    return sharing, place.fill_null(0).to_numpy(zero_copy_only=False)[is_known][first]


def _flat_captions(
    shards: EmbeddingShards, span: Span | None = None
) -> tuple[pa.LargeStringArray, Int64[np.ndarray, " n"]]:
    """(captions in the form that is compared, the row of each) of all rows, or of a span."""
    column = shards.strings(CAPTIONS, span).combine_chunks()
    rows = np.arange(len(column)) + (span[0] if span else 0)
    captions = compared_captions(column.flatten())

    # A caption of nothing but punctuation is empty here: it must not equal another such caption.
    owners = np.repeat(rows, pc.list_value_length(column).to_numpy())
    is_text = pc.not_equal(captions, "")

    return captions.filter(is_text), owners[is_text.to_numpy(zero_copy_only=False)]


def compared_captions(captions: pa.LargeStringArray) -> pa.LargeStringArray:
    """Captions in the form that is compared.

    That is lower case, Unicode's compatible composed form (NFKC), single spaces, and no punctuation
    at the end.
    """
    plain = pc.utf8_lower(pc.utf8_normalize(captions, form="NFKC"))
    spaced = pc.utf8_trim_whitespace(
        pc.replace_substring_regex(plain, pattern=r"\s+", replacement=" ")
    )
    return pc.utf8_rtrim(spaced, characters=END_PUNCTUATION)
