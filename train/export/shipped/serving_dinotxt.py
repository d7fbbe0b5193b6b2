"""A Hugging Face folder as MLflow serves it: pictures to one probability per class name; this file
travels beside the folder.

    {"dataframe_split": {"columns": ["image"], "data": [["BASE64 OF AN IMAGE FILE"]]},
     "params": {"names": ["dog", "cat"]}}

It needs Pillow, torch and transformers alone.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

NAMES = ("animal", "person", "food", "plant", "vehicle", "building")
TEMPLATE = "{}"


class Classifier:
    """The whole model with its processor."""

    def __init__(self, folder: Path) -> None:
        self._model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
        self._processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)

    @torch.inference_mode()
    def predict(self, rows: Any, params: Mapping[str, Any] | None = None) -> list[dict[str, float]]:
        """One probability per name for each row; they sum to 1. The column `image` holds the bytes
        of image files.
        """
        names = list((params or {}).get("names", NAMES))
        template = str((params or {}).get("template", TEMPLATE))
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(f"names are {names}: at least two different names are needed")
        if "{}" not in template:
            raise ValueError(f"template is {template!r}: it must hold {{}} in place of a name")

        images = [Image.open(io.BytesIO(data)) for data in rows["image"]]
        inputs = self._processor(
            text=[template.format(name) for name in names],
            images=images,
            padding=True,
            truncation=True,
            return_tensors="pt",
        )
        chances = self._model(**inputs).logits_per_image.softmax(-1)

        return [dict(zip(names, row, strict=True)) for row in chances.tolist()]


def _load_pyfunc(path: str) -> Classifier:
    """What MLflow calls with the folder."""
    return Classifier(Path(path))
