"""Names of the formats and of the files in a model folder, and whether a folder is one."""

from collections.abc import Sequence
from pathlib import Path

from cluster.words import nearest

FORMAT_NAMES = ("safetensors", "dinotxt", "huggingface", "onnx")
CONFIG = "config.json"
WEIGHTS = "model.safetensors"


def check_formats(names: Sequence[str]) -> None:
    """ValueError for an unknown format."""
    for name in names:
        if name not in FORMAT_NAMES:
            raise ValueError(
                f"there is no format {name!r}{nearest(name, FORMAT_NAMES)}; formats: "
                f"{', '.join(FORMAT_NAMES)}"
            )


def is_model(folder: Path) -> bool:
    """Whether the folder holds a model of ours, or published dino.txt weights."""
    return (folder / CONFIG).is_file() or any(folder.glob("*head*.pth"))
