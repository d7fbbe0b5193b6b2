"""Open-vocabulary segmentation: every pixel gets the class whose prompt embedding is nearest to its patch.

Sliding windows over the image at a fixed short side; soft-max of the cosines at patch resolution, bilinear to pixels,
mean over the windows that see a pixel, bilinear to the mask's size, arg-max (evaluate/windows.py).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64
from PIL import Image
from torch import Tensor

from evaluate.classification import class_embeddings
from evaluate.config import SegmentationConfig
from evaluate.encoder import Encoder
from evaluate.metrics import Tally, constant_map_miou, intersections_and_unions
from evaluate.sets import SegmentationSet, load_images, load_mask
from evaluate.windows import axis_matrix, blockwise_argmax, starts


@dataclass(frozen=True)
class Queries:
    """What pixels are compared with: unit vectors, a class index for each, and an optional constant competitor."""

    vectors: Float[Tensor, "queries dim"]
    labels: Int64[np.ndarray, " queries"]
    constant: float | None
    constant_label: int


@dataclass(frozen=True)
class Segmented:
    """Some label maps in mask resolution, the tallies of the metrics and the pixels of each class in the truth."""

    maps: dict[int, Int32[np.ndarray, "_ _"]]
    tallies: dict[str, Tally]
    pixels: Int64[np.ndarray, " classes"]


def segment(
    encoder: Encoder,
    dataset: SegmentationSet,
    templates: Sequence[str],
    config: SegmentationConfig,
    kept: Collection[int] = (),
) -> Segmented:
    """Tallies by image (mIoU, mIoU of the non-background classes, pixel accuracy); maps of the images in `kept`."""
    queries = class_queries(encoder, dataset, templates, config)
    num_classes = len(dataset.labels)
    maps, both, either, pixels = {}, [], [], []
    for index, name in enumerate(dataset.images):
        (image,) = load_images(dataset.tree, [name])
        truth = load_mask(dataset, index, image.size)
        predicted = label_map(encoder, image, queries, config)
        if index in kept:
            maps[index] = predicted
        one = intersections_and_unions(truth, predicted, num_classes, dataset.ignore)
        both.append(one[0])
        either.append(one[1])
        counted = truth[truth != dataset.ignore] if dataset.ignore is not None else truth
        pixels.append(np.bincount(counted.ravel(), minlength=num_classes)[:num_classes])
    if not np.any(pixels):
        raise ValueError(
            f"every pixel of {dataset.tree.root} has mask value {dataset.ignore}, which is ignored: at least one must "
            "count; correct ignore_index in labels.json, or the masks"
        )
    tallies = _tallies(np.stack(both), np.stack(either), np.stack(pixels), dataset)
    return Segmented(maps, tallies, np.sum(pixels, axis=0))


def _tallies(
    both: Int64[np.ndarray, "n c"],
    either: Int64[np.ndarray, "n c"],
    pixels: Int64[np.ndarray, "n c"],
    dataset: SegmentationSet,
) -> dict[str, Tally]:
    both, either, pixels = both.astype(np.float64), either.astype(np.float64), pixels.astype(np.float64)
    tallies = {"miou": Tally(both, either)}
    if dataset.background is not None:
        objects = [label for label in range(len(dataset.labels)) if label != dataset.background]
        tallies["miou_objects"] = Tally(both[:, objects], either[:, objects])
    tallies["pixel_accuracy"] = Tally(both.sum(1, keepdims=True), pixels.sum(1, keepdims=True))
    return tallies


def class_queries(
    encoder: Encoder, dataset: SegmentationSet, templates: Sequence[str], config: SegmentationConfig
) -> Queries:
    """One query for each class that is scored; the background class has several names, or a constant cosine."""
    labels = [label for label in scored_labels(dataset) if label != dataset.background]
    names = [dataset.labels[label] for label in labels]
    if dataset.background is None:
        return Queries(class_embeddings(encoder, names, templates, dense=True), np.array(labels), None, 0)
    constant = config.background_cosine if config.background == "threshold" else None
    if config.background == "prompts":
        extra = [name for name in config.background_prompts if name not in names]
        names, labels = names + extra, labels + [dataset.background] * len(extra)
    vectors = class_embeddings(encoder, names, templates, dense=True)
    return Queries(vectors, np.array(labels), constant, dataset.background)


def scored_labels(dataset: SegmentationSet) -> list[int]:
    """Class indices that can be right: all but the ignored one."""
    return [label for label in range(len(dataset.labels)) if label != dataset.ignore]


def label_map(
    encoder: Encoder, image: Image.Image, queries: Queries, config: SegmentationConfig
) -> Int32[np.ndarray, "h w"]:
    """The class index of every pixel of `image`."""
    width, height = image.size
    factor = config.short_side / min(width, height)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    resized = image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)
    window = (min(config.window, size[1]), min(config.window, size[0]))
    tops, lefts = (starts(full, part, config.stride) for full, part in zip(size[::-1], window, strict=True))
    crops = [resized.crop((x, y, x + window[1], y + window[0])) for y in tops for x in lefts]
    scores = window_scores(encoder.encode_patches(crops), queries, config.logit_scale)
    scores = scores.unflatten(0, (len(tops), len(lefts)))
    rows = axis_matrix(scores.shape[3], window[0], tops, size[1], height)
    columns = axis_matrix(scores.shape[4], window[1], lefts, size[0], width)
    winners = blockwise_argmax(scores.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2), rows, columns)
    labels = queries.labels if queries.constant is None else np.append(queries.labels, queries.constant_label)
    return labels[winners].astype(np.int32)


def window_scores(
    patches: Float[Tensor, "n h w dim"], queries: Queries, logit_scale: float
) -> Float[Tensor, "n channels h w"]:
    """Soft-max over the queries (and the constant competitor) at each patch."""
    cosines = patches @ queries.vectors.T
    if queries.constant is not None:
        cosines = torch.cat([cosines, torch.full_like(cosines[..., :1], queries.constant)], dim=-1)
    return (logit_scale * cosines).softmax(-1).permute(0, 3, 1, 2).contiguous()


def segmentation_baselines(
    pixels: Int64[np.ndarray, " classes"], background: int | None
) -> dict[str, dict[str, float]]:
    """Scores of maps of one class: of the best for each metric, and of the background where there is one."""
    constants = [_constant_map_scores(pixels, label, background) for label in range(len(pixels))]
    best = {metric: max(scores[metric] for scores in constants) for metric in constants[0]}
    return {"best_single_class": best} | ({} if background is None else {"all_background": constants[background]})


def _constant_map_scores(pixels: Int64[np.ndarray, " classes"], label: int, background: int | None) -> dict[str, float]:
    share = float(pixels[label] / pixels.sum())
    scores = {"miou": constant_map_miou(pixels, label), "pixel_accuracy": share}
    if background is not None:
        others = int((pixels > 0).sum() - (pixels[background] > 0))
        scores["miou_objects"] = 0.0 if label == background else share / max(1, others)
    return scores
