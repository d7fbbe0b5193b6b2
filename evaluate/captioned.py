"""Caption files of retrieval sets: Karpathy's JSON and COCO's to entries, and where the image of an entry is.

Every image counts here, where a training pool would do without a bad record: what is not as it should be is an error.
"""

import json
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from curation.pairs.text import as_text
from curation.pairs.tree import Tree


class Captioned(NamedTuple):
    """One image of a caption file, as it stands there."""

    listing: str
    split: str
    file_name: str
    folder: str
    captions: list[object]


def captioned(tree: Tree) -> list[Captioned]:
    """The images of the first file in Karpathy's format, else of all that hold COCO captions."""
    coco: list[Captioned] = []
    for listing in tree.with_suffix(".json"):
        content = read_json(tree, listing)
        try:
            if _has(content, "images", "filename"):
                return _karpathy(listing, content["images"])
            if _has(content, "images", "file_name") and _has(content, "annotations", "caption"):
                coco += _coco(listing, content["images"], content["annotations"])
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{listing} of {tree.root} has a record unlike its first ({type(error).__name__}: {error}): every "
                "image needs its file name, every COCO caption its image_id; correct it"
            ) from error
    if not coco:
        raise ValueError(
            f'no caption file in {tree.root}: a JSON with "images" that have "filename" and "sentences" (Karpathy), or '
            '"file_name" and "annotations" with "image_id" and "caption" (COCO), is required; add it'
        )
    return coco


def read_json(tree: Tree, name: str) -> Any:
    """The content of a JSON file of the tree."""
    try:
        return json.loads(tree.files[name].read())
    except ValueError as error:
        raise ValueError(f"{name} of {tree.root} is not JSON ({error}): correct the file") from error


def _has(content: Any, table: str, field: str) -> bool:
    rows = content.get(table) if isinstance(content, dict) else None
    return isinstance(rows, list) and bool(rows) and isinstance(rows[0], dict) and field in rows[0]


def _karpathy(listing: str, images: list[dict[str, Any]]) -> list[Captioned]:
    def captions(image: dict[str, Any]) -> list[object]:
        return [text.get("raw") if isinstance(text, dict) else text for text in image.get("sentences") or []]

    return [
        Captioned(
            listing,
            str(image.get("split", "")),
            str(image["filename"]),
            str(image.get("filepath", "")),
            captions(image),
        )
        for image in images
    ]


def _coco(listing: str, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> list[Captioned]:
    """The split is the one that the file is named after."""
    name = PurePosixPath(listing).name.lower()
    split = next((split for split in ("test", "val", "train") if split in name), "")
    captions: dict[int | str, list[object]] = {}
    for annotation in annotations:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    return [Captioned(listing, split, str(image["file_name"]), "", captions.get(image["id"], [])) for image in images]


def locate(tree: Tree, entry: Captioned) -> str:
    """The image of an entry: under images/, in its own folder, beside the JSON, or the only file whose path ends so."""
    root, file_name = PurePosixPath(entry.listing).parent, as_text(entry.file_name)
    candidates = [str(root / folder / file_name) for folder in ("images", entry.folder, "")]
    same_name = tree.by_basename.get(PurePosixPath(file_name).name, [])
    ending = [name for name in same_name if f"/{name}".endswith(f"/{file_name}")]
    found = next((name for name in candidates if name in tree.files), ending[0] if len(ending) == 1 else None)
    if found is None:
        raise ValueError(f"{tree.root} has no image {file_name}: looked for {candidates[0]}; add or delist it")
    return found
