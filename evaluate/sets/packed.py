"""Classification sets whose images are packed: CIFAR's Python archives and CLIP_benchmark's
WebDataset tars.
"""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from curation.pairs.ranges import ByteRange
from curation.pairs.tars import tar_members
from curation.pairs.tree import Tree
from evaluate.sets.images import Images
from evaluate.sets.kinds import ClassificationSet, Facts
from evaluate.sets.names import checked_names, read_lines, readable

IMAGE_KINDS = ("jpg", "jpeg", "png", "webp")
CLASS_NAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"


def open_cifar(tree: Tree, facts: Facts, variant: str = "") -> ClassificationSet:
    """CIFAR-10's or CIFAR-100's test images as their Python archives hold them."""
    # Both archives have one layout with other names; CIFAR-100 also has coarse labels.
    is_ten = tree.outermost("test_batch") is not None
    batch, meta = ("test_batch", "batches.meta") if is_ten else ("test", "meta")
    data, names = (_unpickled(tree, str(tree.outermost(name))) for name in (batch, meta))

    labels = data["labels" if is_ten else "fine_labels"]
    rows = np.asarray(data["data"], np.uint8)

    if len(rows) != len(labels):
        raise ValueError(
            f"{batch} of {tree.root} has {len(rows)} images and {len(labels)} labels; replace "
            "the file"
        )

    # A row holds the red plane, then green, then blue, each 32 x 32.
    pixels = np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    files = tuple(_text(name) for name in data["filenames"])

    listed = [
        readable(_text(name)) for name in names["label_names" if is_ten else "fine_label_names"]
    ]
    checked = checked_names(f"{meta} of {tree.root}", listed)
    images = Images(tree.root, files, pixels=pixels)

    return ClassificationSet(facts, images, np.array(labels, np.int64), checked)


class _ArraysOnly(pickle.Unpickler):
    """Builds NumPy arrays and plain values: a pickle may not name anything else, which could run
    any code.
    """

    ALLOWED = frozenset({"_reconstruct", "ndarray", "dtype", "_frombuffer"})

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in self.ALLOWED:
            # NumPy 2 has renamed the module that old pickles name.
            module = module.replace("numpy.core", "numpy._core")
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):  # bytes, in pickles of protocol 2
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a data file")


def _unpickled(tree: Tree, name: str) -> dict[str, Any]:
    try:
        content = _ArraysOnly(io.BytesIO(tree.files[name].read()), encoding="bytes").load()
    except Exception as error:  # pickle raises whatever its bytes lead to
        raise ValueError(
            f"{name} of {tree.root} cannot be read ({error}): replace the file"
        ) from error
    return {_text(key): value for key, value in content.items()}


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def open_webdataset(tree: Tree, facts: Facts, variant: str = "") -> ClassificationSet:
    """CLIP_benchmark's layout: classnames.txt, templates, and tars of .jpg and .cls; of several
    splits, the test's.
    """
    names = read_lines(tree, str(tree.outermost(CLASS_NAMES)))
    tars = tars_of_split(tree)
    samples = [sample for tar in tars for sample in tar_samples(tree.root / tar)]
    images = [(name, files) for name, files in samples if (files.keys() & set(IMAGE_KINDS))]

    if not images:
        raise ValueError(
            f"no image in the tars of {tree.root}: samples of .jpg and .cls are required"
        )

    parts = []
    labels = []
    keys = []

    for name, files in images:
        if "cls" not in files:
            raise ValueError(
                f"{name} of {tree.root} has no .cls file: every image needs its class; add it"
            )
        label = int(files["cls"].read())
        if not 0 <= label < len(names):
            raise ValueError(
                f"{name} of {tree.root} has class {label}: classnames.txt names {len(names)}; "
                "correct one"
            )
        parts.append(next(files[kind] for kind in IMAGE_KINDS if kind in files))
        labels.append(label)
        keys.append(name)

    listing = tree.outermost(TEMPLATES)
    templates = (
        tuple(line.replace("{c}", "{}") for line in read_lines(tree, listing))
        if listing
        else facts.templates
    )
    facts = Facts(facts.kind, facts.published, templates, facts.notes)
    class_names = tuple((name.strip(),) for name in names)  # as published: MNIST's are digits

    return ClassificationSet(
        facts, Images(tree.root, tuple(keys), tuple(parts)), np.array(labels, np.int64), class_names
    )


def tars_of_split(tree: Tree) -> list[str]:
    """The tars below a folder test, else val or validation; all tars without such a folder."""
    tars = tree.with_suffix(".tar")
    for split in ("test", "val", "validation"):
        chosen = [name for name in tars if split in PurePosixPath(name).parts[:-1]]
        if chosen:
            return chosen
    return tars


def tar_samples(path: Path) -> list[tuple[str, Mapping[str, ByteRange]]]:
    """(key, files by extension) of a WebDataset tar, in its order."""
    # A sample's key ends at the first dot of the base name: "a/1.seg.png" is the file "seg.png" of
    # the sample "a/1". Dots in folders do not count.
    samples: dict[str, dict[str, ByteRange]] = {}
    for member in tar_members(path):
        folder, _, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        samples.setdefault(f"{folder}/{stem}" if folder else stem, {})[extension.lower()] = (
            member.file
        )
    return list(samples.items())
