"""A finished model in the formats of other libraries, each checked before it appears.

An export is written beside its final name, read back as its user would read it, and compared with
our encoder on the same captions and images. If it agrees within its tolerance, it is renamed, with
the differences in its record.json. If it does not, it is deleted.
"""

import importlib.metadata
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from cluster.files import write_atomic
from train.export.folder import export_model, load_model
from train.export.huggingface import huggingface_features, write_huggingface
from train.export.onnx_files import INT8_TOLERANCE, onnx_features, write_onnx
from train.export.probe import Probe, features_of, make_probe
from train.export.published import EXPORT_RECORD, write_published_folder
from train.export.published_reader import published_features
from train.export.subject import Subject

PACKAGES = ("torch", "safetensors", "transformers", "onnx", "onnxruntime")

Parity = dict[str, float]
"""Largest absolute difference from our unit-norm features, by kind of feature and file."""


class Format(NamedTuple):
    """How a format is written, and how its user reads it.

    `read` returns unit-norm features. Their names start with the kind: text, image, patches or
    dense.
    """

    write: Callable[[Path, Subject], None]
    read: Callable[[Path, Probe], dict[str, Tensor]]
    tolerance: float


def export_format(name: str, subject: Subject, to: Path) -> dict[str, Any]:
    """Write one format into the folder `to / name` and return its record.

    ValueError if that folder exists, or if the export differs from the model by too much.
    """
    final = to / name
    partial = to / f".{name}.partial"
    if final.exists():
        raise ValueError(
            f"{final} exists already: exports are never overwritten; remove it or name "
            "another folder"
        )

    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)

    loaded = subject.loaded

    try:
        FORMATS[name].write(partial, subject)
        record = {
            "format": name,
            "source": dict(subject.facts.source),
            "model": asdict(loaded.model.config),
            "embeddings": {**asdict(loaded.spec), "grid": [*loaded.spec.grid]},
            "logit_scale": loaded.model.logit_scale().item(),
            "parity": check_parity(name, partial, subject),
            "tolerance": FORMATS[name].tolerance,
            "versions": {
                package: version for package in PACKAGES if (version := _version(package))
            },
            "files": {
                str(path.relative_to(partial)): path.stat().st_size
                for path in sorted(partial.rglob("*"))
                if path.is_file()
            },
        }

        # The rename is the last step: a folder under its final name is complete and checked.
        write_atomic(partial / EXPORT_RECORD, json.dumps(record, indent=1) + "\n")
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)

    return record


def check_parity(name: str, folder: Path, subject: Subject) -> Parity:
    """Largest absolute difference of each kind of feature. ValueError above the tolerance."""
    probe = make_probe(subject)
    ours = features_of(subject.loaded, probe)
    theirs = FORMATS[name].read(folder, probe)
    parity = {
        what: float((feature - ours[what.split()[0]]).abs().max())
        for what, feature in theirs.items()
    }

    limits = {
        what: INT8_TOLERANCE if "int8" in what else FORMATS[name].tolerance for what in parity
    }

    # `not <=` instead of `>`, because NaN must fail.
    bad = {what: value for what, value in parity.items() if not value <= limits[what]}

    if bad:
        allowed = {what: limits[what] for what in bad}
        raise ValueError(
            f"the {name} export differs from the model by {bad}: at most {allowed} is allowed, "
            "and nothing was kept; use the package versions of constraints.txt"
        )

    return parity


def _write_own(folder: Path, subject: Subject) -> None:
    loaded = subject.loaded
    export_model(
        folder, loaded.model.config, loaded.model.state_dict(), loaded.tokenizer, loaded.spec
    )


def _read_own(folder: Path, probe: Probe) -> dict[str, Tensor]:
    return features_of(load_model(folder), probe)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


# Packed and padded captions differ only by rounding; a whole backbone adds a little more.
FORMATS: Mapping[str, Format] = {
    "safetensors": Format(_write_own, _read_own, 1e-5),
    "dinotxt": Format(write_published_folder, published_features, 1e-5),
    "huggingface": Format(write_huggingface, huggingface_features, 1e-4),
    "onnx": Format(write_onnx, onnx_features, 1e-4),
}
