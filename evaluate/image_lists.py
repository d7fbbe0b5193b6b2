"""Which images of an evaluation set are looked for in the pool, as a source to embed.

Any layout that evaluation reads, images with captions in any layout of pairs, or images alone. Only
what is scored is listed: of a retrieval set, one split.
"""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from cluster.files import replacing
from curation.pairs.account import Account
from curation.pairs.config import SourceConfig
from curation.pairs.images import IMAGE_SUFFIXES
from curation.pairs.opening import Source
from curation.pairs.sample import Pair, parts_of_pairs
from curation.pairs.sources import checked, open_source
from curation.pairs.tree import open_tree
from evaluate.sets.images import Images
from evaluate.sets.kinds import ImageTask, RetrievalSet
from evaluate.sets.known import open_classification, open_retrieval, open_segmentation

MASKS = "masks"


def list_images(task: ImageTask | None, variant: str, path: Path, split: str) -> Source:
    """The images of a set as a source to embed; ValueError when evaluation could not read it
    either.

    None of a set that stores pixels instead of image files: see `write_pixels`.
    """
    if task == "classification":
        return _alone(open_classification(path, variant).images)
    if task == "segmentation":
        return _alone(open_segmentation(path, variant).images)
    if task == "retrieval":
        return _with_captions(open_retrieval(path, split, variant))

    # The set is not scored, so that its task is unknown. Captions are read where there are some,
    # because curation compares them with the pool's too.
    try:
        return _with_captions(open_retrieval(path, split))
    except ValueError:
        return _unscored(path)


def write_pixels(variant: str, path: Path, out: Path) -> Source:
    """The images of a classification set that stores pixels, written to a tar as PNG files, and
    listed.
    """
    # PNG keeps every pixel: a lossy copy would not match the set's images in the pool exactly.
    images = open_classification(path, variant).images
    with replacing(out) as temporary, tarfile.open(temporary, "w") as tar:
        for index, name in enumerate(images.names):
            encoded = io.BytesIO()
            images.load(index).save(encoded, "PNG")
            member = tarfile.TarInfo(f"{name}.png")
            member.size = len(encoded.getvalue())
            tar.addfile(member, io.BytesIO(encoded.getvalue()))
    return _unscored(out)


def _with_captions(dataset: RetrievalSet) -> Source:
    captions: list[list[str]] = [[] for _ in dataset.images.names]
    for owner, caption in zip(dataset.owners.tolist(), dataset.captions, strict=True):
        captions[owner].append(caption)

    images = dataset.images
    pairs = [
        Pair(name, part, tuple(texts))
        for name, part, texts in zip(images.names, images.parts, captions, strict=True)
    ]
    return _source(images.root, pairs)


def _unscored(path: Path) -> Source:
    """Pairs in any layout, of every split; else each image that is no mask."""
    # Every split, because any of them may be scored elsewhere.
    config = SourceConfig(split="")
    try:
        return checked(config, open_source(config, path))
    except ValueError as error:
        tree = open_tree(path)
        images = [
            name
            for name in tree.with_suffix(*IMAGE_SUFFIXES)
            if MASKS not in PurePosixPath(name).parts[:-1]
        ]
        if not images:
            raise ValueError(
                f"{path} has no images: image files ({', '.join(IMAGE_SUFFIXES)}) in a folder or "
                "tar, or pairs in a known layout, are needed to keep them out of the pool; "
                "correct data.leakage"
            ) from error
        return _source(path, [Pair(name, tree.files[name], None) for name in images])


def _alone(images: Images) -> Source:
    return _source(
        images.root,
        # A set that stores pixels has names without parts: then there are no pairs.
        [Pair(name, part, None) for name, part in zip(images.names, images.parts, strict=False)],
    )


def _source(root: Path, pairs: Sequence[Pair]) -> Source:
    account = Account()
    account.read("read as pairs", [pair.key for pair in pairs])
    return Source(root, parts_of_pairs(root.name, pairs, SourceConfig().part_rows), account)
