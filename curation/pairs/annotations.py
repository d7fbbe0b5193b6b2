"""Karpathy's and COCO's caption files to one record per image, for the pool and evaluation sets.

Nothing is judged here: captions stay as they are in the file, and a record that does not name its
image says what it lacks. The caller decides whether that is a rejected row (the pool) or an error
(an evaluation set, of which every image counts).
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

AnnotationKind = Literal["karpathy", "coco", "coco without captions"]
FIRST_RECORDS = 100


class AnnotatedImage(NamedTuple):
    """One image of an annotation file, or a record that names none."""

    place: str
    """Where the record is: its number from 1; for COCO, after its table ("images:3")."""
    file_name: str
    """As in the file; empty when there is a problem."""
    folder: str
    """Karpathy's filepath; empty where there is none."""
    split: str
    """Karpathy's split of the image; empty where there is none. COCO names its files after splits
    instead.
    """
    captions: tuple[object, ...]
    """As in the file, in its order, neither cleaned nor checked. They should be text."""
    problem: str = ""
    """Why the record names no image; empty when it does."""


def annotation_kind(content: Any) -> AnnotationKind | None:
    """The format of a parsed JSON file, by its first records; None if it is another one.

    Karpathy's: {"images": [{"filename": ..., "sentences": [...]}]}. COCO's: {"images": [{"id": ...,
    "file_name": ...}], "annotations": [{"image_id": ..., "caption": ...}]}; its other files (boxes,
    key points) have no captions.
    """
    # Images of Karpathy's may have no sentences at all; a table of annotations is COCO's.
    if _has(content, "images", "filename") and (
        _has(content, "images", "sentences") or "annotations" not in content
    ):
        return "karpathy"
    if _has(content, "images", "file_name") and isinstance(content.get("annotations"), list):
        return "coco" if _has(content, "annotations", "caption") else "coco without captions"
    return None


def _has(content: Any, table: str, field: str) -> bool:
    """Whether any of the first records of a table has a field."""
    records = content.get(table) if isinstance(content, dict) else None
    first = records[:FIRST_RECORDS] if isinstance(records, list) else []
    return any(isinstance(record, dict) and field in record for record in first)


def annotated_images(content: dict[str, Any]) -> list[AnnotatedImage]:
    """The records of a file of kind "karpathy" or "coco", one per image, in the file's order.

    Annotations of COCO that lead to no image come first, each as a record with a problem.
    """
    kind = annotation_kind(content)
    return list(_karpathy(content) if kind == "karpathy" else _coco(content))


def _karpathy(content: dict[str, Any]) -> Iterator[AnnotatedImage]:
    for number, image in _numbered(content["images"]):
        file_name = _text(image, "filename")
        sentences = image.get("sentences")
        captions = (
            tuple(_sentence(item) for item in sentences) if isinstance(sentences, list) else ()
        )
        problem = "" if file_name else 'it has no "filename"'
        yield AnnotatedImage(
            str(number),
            file_name,
            _text(image, "filepath"),
            _text(image, "split"),
            captions,
            problem,
        )


def _sentence(sentence: object) -> object:
    """The text of Karpathy's sentence: text itself, {"raw": ...}, or only {"tokens": [...]}."""
    if not isinstance(sentence, dict):
        return sentence
    tokens = sentence.get("tokens")
    joined = " ".join(map(str, tokens)) if isinstance(tokens, list) else None
    return sentence.get("raw", joined)


def _coco(content: dict[str, Any]) -> Iterator[AnnotatedImage]:
    captions: dict[str, list[object]] = {}
    # Where each id occurs first, for annotations whose image does not exist.
    places: dict[str, str] = {}
    for number, annotation in _numbered(content["annotations"]):
        place = f"annotations:{number}"
        image_id = _identifier(annotation.get("image_id"))
        if not image_id:
            yield AnnotatedImage(
                place, "", "", "", (), 'it has no "image_id" that is a number or text'
            )
            continue
        caption = annotation.get("caption")
        captions.setdefault(image_id, []).extend(
            caption if isinstance(caption, list) else [caption]
        )
        places.setdefault(image_id, place)

    images = [
        (number, _identifier(image.get("id")), image)
        for number, image in _numbered(content["images"])
    ]
    known = {image_id for _, image_id, _ in images}

    for image_id, place in places.items():
        if image_id not in known:
            yield AnnotatedImage(
                place, "", "", "", (), f'no record of "images" has the id {image_id}'
            )

    for number, image_id, image in images:
        file_name = _text(image, "file_name")
        problem = (
            ""
            if image_id and file_name
            else 'it has no "id" that is a number or text, or no "file_name"'
        )
        texts = tuple(captions.get(image_id, ()))
        yield AnnotatedImage(
            f"images:{number}", "" if problem else file_name, "", "", texts, problem
        )


def _identifier(value: object) -> str:
    """An id as text, the same for 7, 7.0 and "7"; empty if it is neither number nor text."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    # bool is a subclass of int in Python, but true is no id.
    return (
        str(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else ""
    )


def _numbered(records: object) -> Iterator[tuple[int, dict]]:
    """(number from 1, record) of what should be a list of objects; anything else becomes {}."""
    for number, record in enumerate(records if isinstance(records, list) else [], start=1):
        yield number, record if isinstance(record, dict) else {}


def _text(record: dict, field: str) -> str:
    value = record.get(field)
    return value if isinstance(value, str) else ""
