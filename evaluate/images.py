"""The step `images`: the images of an evaluation set as embeddings, for curation to look for them
in the pool.
"""

from pathlib import Path

from curation.embed import embed_source
from evaluate.config import ImagesConfig
from evaluate.image_lists import list_images, write_pixels

PIXELS = "pixels.tar"


def run(config: ImagesConfig, *, out: Path, source: Path) -> dict[str, float]:
    """Embed the images of one evaluation set."""
    out.mkdir(parents=True, exist_ok=True)
    images = list_images(config.task, config.variant, source, config.split)
    if not images.parts:
        images = write_pixels(config.variant, source, out / PIXELS)

    summary = embed_source(config.embed, images, out)
    (out / PIXELS).unlink(missing_ok=True)
    return summary
