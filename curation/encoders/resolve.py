"""The choice of the frozen backbone, made once before anything runs.

The name of the backbone and the sha256 of its weights are part of the fingerprints of steps.
"""

import hashlib
import logging
from dataclasses import replace
from pathlib import Path

from cluster.files import sha256_file
from curation.encoders.config import AUTO, FALLBACK, PREFERRED, BackboneConfig, fit_image_size
from curation.encoders.families import MEMBERS
from curation.encoders.weights import (
    find_weights,
    hub_answers,
    is_cached,
    named_file,
    read_tensors,
    recognize,
)

logger = logging.getLogger(__name__)


def resolve(config: BackboneConfig, level: int = logging.DEBUG) -> BackboneConfig:
    """The config with a concrete name, a fitting image size and the sha256 of the weights.

    A resolved config is returned as it is. auto means the backbone that the named weights belong
    to. Without named weights, it means DINOv2 ViT-S/14 with registers if it is in the cache of the
    hub or if the hub answers within three seconds, and EfficientNet-Lite0 otherwise. The choice is
    logged at `level`.
    """
    if config.digest:
        return config

    # What depends on this machine (cache, network) is decided here, before anything runs.
    name, reason = (config.name, "named") if config.name != AUTO else _choose(config.weights)
    file = find_weights(name, config.weights)
    digest = random_digest(name) if file is None else sha256_file(file)
    image_size = fit_image_size(config.image_size, name)

    words = "backbone=%s reason=%r image_size=%d digest=%s"
    logger.log(level, words, name, reason, image_size, digest[:12])

    return replace(config, name=name, digest=digest, image_size=image_size)


def _choose(weights: str) -> tuple[str, str]:
    """(name of the backbone for auto, why it was chosen)."""
    if weights:
        return _only_match(named_file(weights)), "weights named"
    if is_cached(PREFERRED):
        return PREFERRED, "in the hub's cache"
    if hub_answers(PREFERRED):
        return PREFERRED, "offered by the hub"
    description = MEMBERS[FALLBACK].description
    return FALLBACK, f"no DINOv2 weights named or cached and the hub does not answer: {description}"


def _only_match(file: Path) -> str:
    names = recognize(read_tensors(file))
    if not names:
        raise ValueError(
            f"weights {file} belong to no known backbone ({', '.join(MEMBERS)}): give a "
            "published file"
        )
    if len(names) > 1:
        raise ValueError(
            f"weights {file} fit {' and '.join(names)}, which have the same shape: the backbone "
            f"must be named; add --embed.backbone.name {names[0]} or another of them"
        )
    return names[0]


def random_digest(name: str) -> str:
    """A digest that stands for seeded random weights, which are a function of the name."""
    return hashlib.sha256(f"{name}: seeded random weights, version 1".encode()).hexdigest()
