"""A finished model in the formats of others, each proven before it is there.

An export is written beside its final name, read back as its user would read it, and compared with our encoder on the
same captions and tokens. Only one that agrees within the tolerance takes its name, with the figure in its record.json;
of one that does not, nothing stays.
"""

import importlib.metadata
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cluster.files import write_atomic
from curation.encoders.backbone import Features
from train.export.folder import LoadedModel, export_model, load_model
from train.export.huggingface import huggingface_features, write_huggingface
from train.export.names import CONFIG
from train.export.onnx_text import onnx_features, write_onnx
from train.export.published import RECORD, load_published, write_published_folder

TOLERANCE = 1e-5  # of unit-norm float32 features: packed and padded captions differ by rounding alone
PACKAGES = ("torch", "safetensors", "transformers", "onnx", "onnxruntime")
PROBE_IMAGES = 3
PROBE_CAPTIONS = (
    "a",
    "a dog",
    "A brown dog runs through the snow.",
    "Two children are playing football in a park while their parents watch from a bench.",
    "photo of the Eiffel Tower at night, 4k, high resolution!!!",
    "un café crème à Zürich",
    "写真 of a cat ☕",
    "size: 10.5 x 3/4 inches (model #A-113) & more...",
    "  leading   and double   spaces ",
    "an extraordinarily long caption " * 40,
)

Read = Callable[[Path, Sequence[str], Features], dict[str, Tensor]]


class Format(NamedTuple):
    """How a format is written, and how its user gets unit-norm features: text, image, patches, those that it has."""

    write: Callable[[Path, LoadedModel], None]
    read: Read


def export_format(name: str, loaded: LoadedModel, to: Path, source: Mapping[str, str]) -> dict:
    """Write one format into the folder `to / name` and return its record; ValueError when it does not agree."""
    final, partial = to / name, to / f".{name}.partial"
    if final.exists():
        raise ValueError(f"{final} is there already: exports are never overwritten; remove it or name another folder")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        FORMATS[name].write(partial, loaded)
        record = {
            "format": name,
            "source": dict(source),
            "model": asdict(loaded.model.config),
            "embeddings": {**asdict(loaded.spec), "grid": [*loaded.spec.grid]},
            "logit_scale": loaded.model.logit_scale().item(),
            "parity": checked_parity(name, partial, loaded),
            "tolerance": TOLERANCE,
            "probe": {"captions": len(PROBE_CAPTIONS), "images": PROBE_IMAGES},
            "versions": {package: version for package in PACKAGES if (version := _version(package))},
            "files": {path.name: path.stat().st_size for path in sorted(partial.iterdir())},
        }
        write_atomic(partial / RECORD, json.dumps(record, indent=1) + "\n")
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return record


def checked_parity(name: str, folder: Path, loaded: LoadedModel) -> dict[str, float]:
    """Largest absolute difference of each kind of feature; ValueError above the tolerance."""
    tokens = probe_tokens(loaded)
    ours = features_of(loaded, PROBE_CAPTIONS, tokens)
    theirs = FORMATS[name].read(folder, PROBE_CAPTIONS, tokens)
    parity = {kind: float((feature - ours[kind]).abs().max()) for kind, feature in theirs.items()}
    bad = {kind: value for kind, value in parity.items() if not value <= TOLERANCE}
    if bad:
        raise ValueError(
            f"the {name} export differs from the model by {bad}: at most {TOLERANCE} is allowed, nothing was kept; "
            "use the package versions of constraints.txt"
        )
    return parity


def probe_tokens(loaded: LoadedModel) -> Features:
    """Seeded stand-ins for the backbone's tokens, as many as the model was trained on."""
    spec, generator = loaded.spec, torch.Generator().manual_seed(0)
    counts = 1, spec.num_registers, spec.grid[0] * spec.grid[1]
    cls, registers, patches = (torch.randn(PROBE_IMAGES, count, spec.dim, generator=generator) for count in counts)
    return Features(cls[:, 0], registers, patches)


@torch.inference_mode()
def features_of(loaded: LoadedModel, captions: Sequence[str], tokens: Features) -> dict[str, Tensor]:
    """Unit-norm features of our own encoder, on packed captions."""
    model = loaded.model
    text = model.encode_tokens(loaded.tokenizer.encode(captions, model.config.text.context))
    image, patches = model.encode_image_features(*tokens), model.vision(*tokens)[1]
    features = {"text": text, "image": image, "patches": patches}
    return {kind: normalize(feature, dim=-1) for kind, feature in features.items()}


def read_model(folder: Path) -> LoadedModel:
    """A model of a folder of ours, or of one with published dino.txt files and their tokenizer."""
    return load_model(folder) if (folder / CONFIG).is_file() else load_published(folder)


def _write_own(folder: Path, loaded: LoadedModel) -> None:
    export_model(folder, loaded.model.config, loaded.model.state_dict(), loaded.tokenizer, loaded.spec)


def _read_own(folder: Path, captions: Sequence[str], tokens: Features) -> dict[str, Tensor]:
    return features_of(load_model(folder), captions, tokens)


def _read_published(folder: Path, captions: Sequence[str], tokens: Features) -> dict[str, Tensor]:
    return features_of(load_published(folder), captions, tokens)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


FORMATS = {
    "safetensors": Format(_write_own, _read_own),
    "dinotxt": Format(write_published_folder, _read_published),
    "huggingface": Format(write_huggingface, huggingface_features),
    "onnx": Format(write_onnx, onnx_features),
}
