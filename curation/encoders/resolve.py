"""The choice of the frozen backbone, made once before anything runs: its name and its weights' sha256 are identity."""

import logging
from dataclasses import replace

from cluster.files import sha256_file
from curation.encoders.config import AUTO, FALLBACK, PREFERRED, BackboneConfig, fit_image_size
from curation.encoders.models import EFFICIENTNET_DESCRIPTION, random_digest
from curation.encoders.weights import find_weights, given_file, hub_answers, is_cached

logger = logging.getLogger(__name__)


def resolve(config: BackboneConfig) -> BackboneConfig:
    """The config with a concrete name, a fitting image size and the weights' sha256; once resolved it stays as it is.

    auto: the DINOv2 whose weights are given; else ViT-S/14 with registers when the hub's cache holds it or the hub
    answers within three seconds; else the stand-in.
    """
    if config.digest:
        return config
    name, reason = (config.name, "named") if config.name != AUTO else _choose(config.weights)
    file = find_weights(name, config.weights)
    digest = random_digest(name) if file is None else sha256_file(file)
    image_size = fit_image_size(config.image_size, name)
    logger.info("backbone=%s reason=%r image_size=%d digest=%s", name, reason, image_size, digest[:12])
    return replace(config, name=name, digest=digest, image_size=image_size)


def _choose(weights: str) -> tuple[str, str]:
    if weights:
        from curation.encoders import dinov2  # torch reads the file; no other choice needs it

        return dinov2.model_name(dinov2.read_state(given_file(weights))), "weights given"
    if is_cached(PREFERRED):
        return PREFERRED, "in the hub's cache"
    if hub_answers(PREFERRED):
        return PREFERRED, "offered by the hub"
    return FALLBACK, f"no DINOv2 weights given or cached and the hub does not answer: {EFFICIENTNET_DESCRIPTION}"
