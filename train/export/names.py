"""Names of the files in a model folder, and whether a folder is one."""

from pathlib import Path

CONFIG = "config.json"
WEIGHTS = "model.safetensors"


def is_model(folder: Path) -> bool:
    """Whether the folder holds a model of ours, or published dino.txt weights."""
    return (folder / CONFIG).is_file() or any(folder.glob("*head*.pth"))
