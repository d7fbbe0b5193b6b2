"""Pictures of what a model got right and wrong, with an examples.json that says what they show.

Items are evenly spaced, so that two models are seen on mostly the same ones; what went wrong comes
first.
"""

import colorsys
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Float32, Float64, Int32, UInt8
from matplotlib import colormaps
from PIL import Image

from cluster.files import write_atomic
from evaluate.classification import Classified
from evaluate.retrieval import Retrieved
from evaluate.segmentation import Segmented
from evaluate.sets.kinds import (
    IGNORED,
    ClassificationSet,
    RetrievalSet,
    SegmentationSet,
    SimilaritySet,
    first_names,
)
from evaluate.sets.known import load_mask
from evaluate.sets.masks import evenly_spaced

THUMBNAIL_PX = 112
OVERLAY_PX = 256
OVERLAY_OPACITY = 0.7
JPEG_QUALITY = 82
LEGEND_ENTRIES = 8
FIRST = 5
BACKGROUND_COLOR = (216, 220, 226)
HEAT_COLORS = colormaps["inferno"]
HEAT_OPACITY = 0.75


def write_classification(
    out: Path, dataset: ClassificationSet, result: Classified, wanted: int
) -> None:
    """Right and wrong images, and the pairs of classes that are confused most."""
    targets = dataset.targets
    guesses = result.ranked[:, 0]
    names = first_names(dataset.class_names)
    pairs = Counter(
        zip(targets[targets != guesses].tolist(), guesses[targets != guesses].tolist(), strict=True)
    )
    examples: dict[str, Any] = {}

    for kind, rows in (
        ("right", np.flatnonzero(targets == guesses)),
        ("wrong", np.flatnonzero(targets != guesses)),
    ):
        examples[kind] = [
            {
                "image": _thumbnail(out, f"{kind}-{row}.jpg", dataset, int(row)),
                "truth": names[targets[row]],
                "guesses": [
                    {"name": names[label], "score": round(float(score), 4)}
                    for label, score in zip(
                        result.ranked[row, :3], result.confidence[row, :3], strict=True
                    )
                ],
            }
            for row in rows[evenly_spaced(len(rows), wanted)]
        ]

    examples["confusions"] = [
        {"truth": names[truth], "guess": names[guess], "count": count}
        for (truth, guess), count in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[
            :12
        ]
    ]
    _write_listing(out, examples)


def write_similarity(
    out: Path, dataset: SimilaritySet, cosines: Float64[np.ndarray, " n"], wanted: int
) -> None:
    """The pairs of sentences on which model and people disagree most: their places in the order of
    cosines and in that of scores lie furthest apart.

    Place 1 is the most alike; equal values share their mean place, as in the correlation.
    """
    from scipy.stats import rankdata  # takes a second to import, and no other set needs it

    by_cosine = rankdata(-cosines)
    by_score = rankdata(-dataset.scores)
    furthest = np.argsort(-np.abs(by_cosine - by_score), kind="stable")[:wanted]

    pairs = [
        {
            "sentences": dataset.sentences[row],
            "score": float(dataset.scores[row]),
            "place_by_score": float(by_score[row]),
            "cosine": round(float(cosines[row]), 3),
            "place_by_cosine": float(by_cosine[row]),
        }
        for row in furthest.tolist()
    ]
    _write_listing(out, {"num_pairs": len(cosines), "pairs": pairs})


def write_retrieval(out: Path, dataset: RetrievalSet, result: Retrieved, wanted: int) -> None:
    """Captions with the five images nearest to them, and the images of these captions with the five
    nearest captions.

    Half of the captions do not have their own image as the nearest, where there are as many; these
    come first.
    """
    # Of each image, the first caption asks.
    images = _missed_then_hit(result, wanted)
    captions = [int(np.flatnonzero(dataset.owners == image)[0]) for image in images]
    near_images = (result.captions[captions] @ result.images.T).topk(
        min(FIRST, len(result.images)), dim=1
    )
    near_captions = (result.images[images] @ result.captions.T).topk(
        min(FIRST, len(result.captions)), dim=1
    )

    def picture(index: int) -> str:
        return _thumbnail(out, f"image-{index}.jpg", dataset, index)

    def image_answer(query: int, image: int, score: float) -> dict[str, Any]:
        return {
            "image": picture(image),
            "score": round(score, 4),
            "right": bool(image == dataset.owners[query]),
        }

    def text_answer(image: int, caption: int, score: float) -> dict[str, Any]:
        return {
            "text": dataset.captions[caption],
            "score": round(score, 4),
            "right": bool(dataset.owners[caption] == image),
        }

    text_to_image = [
        {
            "query": dataset.captions[query],
            "image": picture(image),
            "answers": [image_answer(query, *pair) for pair in zip(indices, scores, strict=True)],
        }
        for query, image, indices, scores in zip(
            captions, images, near_images.indices.tolist(), near_images.values.tolist(), strict=True
        )
    ]
    image_to_text = [
        {
            "image": picture(image),
            "answers": [text_answer(image, *pair) for pair in zip(indices, scores, strict=True)],
        }
        for image, indices, scores in zip(
            images, near_captions.indices.tolist(), near_captions.values.tolist(), strict=True
        )
    ]
    _write_listing(out, {"text_to_image": text_to_image, "image_to_text": image_to_text})


def _missed_then_hit(result: Retrieved, wanted: int) -> list[int]:
    """Images that some caption of theirs misses, then images that all captions hit; half of each
    where possible.
    """
    # Hits are probabilities where answers tie: less than a hit per caption is a miss.
    tally = result.tallies["text_to_image_r1"]
    is_hit = (tally.hits >= tally.trials)[:, 0]
    missed = np.flatnonzero(~is_hit)
    hit = np.flatnonzero(is_hit)

    # Half of what is wanted, more if there are too few hits, but no more than there are misses.
    num_missed = min(len(missed), max(wanted // 2, wanted - len(hit)))
    chosen = [missed[index] for index in evenly_spaced(len(missed), num_missed)]
    chosen += [hit[index] for index in evenly_spaced(len(hit), wanted - num_missed)]
    return [int(image) for image in chosen]


def write_segmentation(out: Path, dataset: SegmentationSet, result: Segmented) -> None:
    """Image, truth and prediction side by side with a legend, for the maps that were kept."""
    colors = palette(len(dataset.labels), dataset.background)
    examples = []
    for index, predicted in sorted(result.maps.items()):
        image = dataset.images.load(index)
        truth = load_mask(dataset, index, image.size)
        counted = truth != IGNORED
        files = {
            "image": f"{index}-image.jpg",
            "truth": f"{index}-truth.jpg",
            "predicted": f"{index}-predicted.jpg",
        }
        _save(out / files["image"], image, OVERLAY_PX)
        _save(out / files["truth"], overlay(image, truth, colors), OVERLAY_PX)
        _save(out / files["predicted"], overlay(image, predicted, colors), OVERLAY_PX)
        # The legend names the classes that cover most of both maps.
        seen = np.bincount(
            np.concatenate([truth[counted], predicted.ravel()]), minlength=len(colors)
        )
        shown = [
            int(label) for label in np.argsort(-seen, kind="stable")[:LEGEND_ENTRIES] if seen[label]
        ]
        heats = _write_heats(out, index, image, truth, result)
        examples.append(
            {
                **files,
                "heats": heats,
                "name": Path(dataset.images.names[index]).stem,
                "right_pixels": float((truth == predicted)[counted].mean())
                if counted.any()
                else 0.0,
                "legend": [
                    {"name": dataset.labels[label][0], "color": "#" + bytes(colors[label]).hex()}
                    for label in shown
                ],
            }
        )

    examples.sort(key=lambda example: float(str(example["right_pixels"])))
    _write_listing(out, {"items": examples})


def _write_heats(
    out: Path, index: int, image: Image.Image, truth: Int32[np.ndarray, "h w"], result: Segmented
) -> list[dict[str, Any]]:
    """The heat maps of an image's largest names, and what they are worth."""
    if index not in result.heats:
        return []
    judged, maps = result.heats[index]
    heats = []

    for place, (name, precision) in enumerate(zip(judged.names, judged.precisions, strict=True)):
        file = f"{index}-heat-{place}.jpg"
        right = result.names.where(name, truth)
        _save(out / file, heat_overlay(image, maps[place], right), OVERLAY_PX)
        heats.append(
            {"image": file, "name": result.names.shown[name], "precision": round(precision, 4)}
        )

    return heats


def heat_overlay(
    image: Image.Image, heat: Float32[np.ndarray, "h w"], right: Bool[np.ndarray, "h w"]
) -> Image.Image:
    """The image without its colors under its heat map, cold to warm from the least to the greatest
    cosine; the edge of the true pixels is white.
    """
    # The span of a constant map is 0: any small number gives it one color.
    gray = np.asarray(image.convert("L"), np.float32)[..., None]
    span = max(float(np.ptp(heat)), 1e-6)
    warmth = HEAT_COLORS((heat - heat.min()) / span)[..., :3].astype(np.float32) * 255
    painted = HEAT_OPACITY * warmth + (1 - HEAT_OPACITY) * gray

    # A line that is still one pixel wide after the picture was made smaller.
    width = max(1, max(right.shape) // OVERLAY_PX)
    inner = scipy.ndimage.binary_erosion(right, iterations=width, border_value=1)
    painted[right & ~inner] = 255
    return Image.fromarray(painted.round().astype(np.uint8))


def palette(num_classes: int, background: int | None) -> UInt8[np.ndarray, "c 3"]:
    """One color for each class, neighbors far apart in hue (golden-ratio steps); the background
    is light gray.
    """
    # Multiples of the golden ratio modulo 1 fill the circle evenly, however many there are. Three
    # tones tell hues apart that come to lie side by side.
    hues = [(0.07 + label * 0.61803398875) % 1 for label in range(num_classes)]
    tones = [(0.82, 0.90), (0.62, 0.72), (0.90, 0.62)]
    colors = [colorsys.hsv_to_rgb(hue, *tones[label % 3]) for label, hue in enumerate(hues)]
    table = (np.array(colors).reshape(-1, 3) * 255).round().astype(np.uint8)
    if background is not None:
        table[background] = BACKGROUND_COLOR
    return table


def overlay(
    image: Image.Image, labels: Int32[np.ndarray, "h w"], colors: UInt8[np.ndarray, "c 3"]
) -> Image.Image:
    """The image without its colors under its label map, so that those are the legend's; ignored
    pixels are black.
    """
    # IGNORED is -1, which as an index would be the last class: it is clipped, then painted black.
    pixels = np.asarray(image.convert("L").convert("RGB"), dtype=np.float32)
    painted = colors[np.clip(labels, 0, len(colors) - 1)].astype(np.float32)
    painted[labels == IGNORED] = 0
    return Image.fromarray(
        (OVERLAY_OPACITY * painted + (1 - OVERLAY_OPACITY) * pixels).round().astype(np.uint8)
    )


def _thumbnail(
    out: Path, file_name: str, dataset: ClassificationSet | RetrievalSet, index: int
) -> str:
    if not (out / file_name).exists():
        _save(out / file_name, dataset.images.load(index), THUMBNAIL_PX)
    return file_name


def _save(path: Path, image: Image.Image, longest_px: int) -> None:
    small = image.copy()
    small.thumbnail((longest_px, longest_px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=JPEG_QUALITY)
    write_atomic(path, buffer.getvalue())  # Pillow itself does not notice a short write


def _write_listing(out: Path, examples: dict[str, Any]) -> None:
    write_atomic(out / "examples.json", json.dumps(examples, indent=1, ensure_ascii=False))
