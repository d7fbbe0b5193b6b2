"""Open-vocabulary segmentation: every pixel gets the class whose prompt embedding is nearest to its
patch.

Three protocols. `window` is that of the published figures, to the pixel: sliding windows at a fixed
short side; cosines up-sampled to the window's pixels, soft-max, mean over the windows, bilinear to
the mask's size, arg-max. `whole` encodes the image at once. `high-resolution` encodes many crops
and names regions (evaluate/high_resolution.py).
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Float32, Float64, Int32, Int64
from PIL import Image
from torch import Tensor

from evaluate.config import SegmentationConfig
from evaluate.encoder import Encoder, checked
from evaluate.heat import Judged, Names, judge, name_cosines, names_of, precision_tally
from evaluate.high_resolution import averaged_features, region_labels
from evaluate.metrics import (
    boundary_matches,
    constant_map_miou,
    constant_map_open_miou,
    intersections_and_unions,
    open_overlaps,
)
from evaluate.parts import Parts, cut
from evaluate.queries import Queries, class_queries, of_one_name
from evaluate.scored_images import ScoredImages
from evaluate.sets.kinds import IGNORED, SegmentationSet
from evaluate.sets.known import load_mask
from evaluate.synonyms import SYNONYM_DROP
from evaluate.tally import Tally, less
from evaluate.views import ahead
from evaluate.windows import sliding_argmax, sliding_mean, starts, whole_argmax

IMAGES_AHEAD = 8  # decoded images and masks that wait for the encoder
SCENES_PER_PART = 16  # each is many windows: seconds of a GPU, minutes of a CPU


@dataclass(frozen=True)
class Seen:
    """Patch vectors of an image's windows, and where these lie. Without windows, there is one as
    large as the image; all pairs are (height, width).
    """

    patches: Float[Tensor, "tops lefts h w dim"]
    begins: tuple[Sequence[int], Sequence[int]]
    window: tuple[int, int]
    size: tuple[int, int]


@dataclass(frozen=True)
class Segmented:
    """Some label maps in mask resolution, the tallies of the metrics and the pixels of each class
    in the truth.
    """

    maps: dict[int, Int32[np.ndarray, "_ _"]]
    """By index of the image."""
    tallies: dict[str, Tally]
    pixels: Int64[np.ndarray, " classes"]
    names: Names
    heats: dict[int, tuple[Judged, Float32[np.ndarray, "_ _ _"]]]
    """Heat maps of the largest names of the images in `shown`, and how good they are."""
    chance_of_name: float
    """Average precision of heat maps without heat."""


def scene_parts(count: int) -> list[range]:
    """A set of images with masks in parts."""
    return cut(count, SCENES_PER_PART)


@dataclass(frozen=True)
class Segmenter:
    """Segments a set: any worker scores any part, and one of them makes tallies of all parts.

    Kept while parts of the set are scored, since its names are encoded once.
    """

    encoder: Encoder
    dataset: SegmentationSet
    templates: Sequence[str]
    config: SegmentationConfig
    alike: Float64[np.ndarray, "classes classes"] | None = None
    """How alike two classes are, between 0 and 1; adds Open-mIoU."""
    shown: Collection[int] = ()
    """Images whose maps are wanted, and half as many again of those with the smallest share of right
    pixels.
    """

    @cached_property
    def queries(self) -> Queries:
        """What the pixels are compared with."""
        return class_queries(self.encoder, self.dataset, self.templates, self.config)

    @cached_property
    def names(self) -> Names:
        """What is asked for name by name."""
        return names_of(self.encoder, self.dataset, self.templates)

    def segment(
        self, advance: Callable[[int], None] = lambda count: None, parts: Parts | None = None
    ) -> Segmented:
        """Tallies by image of mIoU, mean accuracy, pixel accuracy and boundary F1, from the parts that
        workers left; all others are scored here.

        ValueError if no pixel of the set counts, and for damaged images and masks.
        """
        scored = ScoredImages(self.shown)
        for images in scene_parts(len(self.dataset.images)):
            part = parts.read(images) if parts else None
            scored.extend(part or self.compute(images, advance))

        per_image = np.stack(scored.counts, axis=1).astype(np.float64)
        pixels = per_image[-1].sum(0).astype(np.int64)
        _check_pixels(self.dataset, pixels)

        tallies = _tallies(per_image, self.dataset.background)
        if scored.counts_alike:
            overlaps, unions = zip(*scored.counts_alike, strict=True)
            tallies["open_miou"] = Tally(np.stack(overlaps), np.stack(unions))
        precision, chance = precision_tally(scored.judged, len(self.names.shown))
        if precision.trials.any():  # there is none where each image is of one class
            tallies["name_ap"] = precision
        if any(scored.counts_alone):
            tallies[SYNONYM_DROP] = _synonym_drop(np.array(scored.counts_alone, np.float64))

        return Segmented(scored.all_maps(), tallies, pixels, self.names, scored.heats, chance)

    def compute(
        self, images: range, advance: Callable[[int], None] = lambda count: None
    ) -> ScoredImages:
        """The counts of some images, one after another."""
        queries = self.queries
        names = self.names
        num_classes = len(self.dataset.labels)
        alone = of_one_name(queries, self.dataset)
        scored = ScoredImages(self.shown)

        loaded = ahead(self._load, images, IMAGES_AHEAD)
        for index, (image, truth) in zip(images, loaded, strict=True):
            seen = look(self.encoder, image, queries.vectors.shape[1], self.config)
            out = (image.height, image.width)
            predicted = labels_of(seen, out, queries, self.config)
            scored.counts.append(_counts(truth, predicted, num_classes))
            if self.alike is not None:
                scored.counts_alike.append(open_overlaps(truth, predicted, self.alike))
            maps_alone = (labels_of(seen, out, each, self.config) for each in alone)
            scored.counts_alone.append(
                [intersections_and_unions(truth, each, num_classes) for each in maps_alone]
            )

            wanted = names.present(truth)
            heat = heat_maps(seen, names, wanted, out)
            scored.judged.append(judge(heat, names, wanted, truth))
            scored.show(index, truth, predicted, heat)
            advance(1)

        return scored

    def _load(self, index: int) -> tuple[Image.Image, Int32[np.ndarray, "h w"]]:
        image = self.dataset.images.load(index)
        return image, load_mask(self.dataset, index, image.size)


def _synonym_drop(counts: Float[np.ndarray, "images 2 2 classes"]) -> Tally:
    """The mIoU with the first names less that with the last ones. `counts` has, per image, for the
    first and for the last names, the pixels in both maps and in either, per class.
    """
    by_first, by_last = (Tally(counts[:, place, 0], counts[:, place, 1]) for place in (0, 1))
    return less(by_first, by_last)


def _counts(
    truth: Int32[np.ndarray, "h w"], predicted: Int32[np.ndarray, "h w"], num_classes: int
) -> Int64[np.ndarray, "5 c"]:
    """Per class, pixels in both maps and in either, matched and all boundary pixels, and pixels of
    the truth.
    """
    both, either = intersections_and_unions(truth, predicted, num_classes)
    matched, edges = boundary_matches(truth, predicted, num_classes)
    pixels = np.bincount(truth[truth != IGNORED], minlength=num_classes)
    return np.stack([both, either, matched, edges, pixels])


def _check_pixels(dataset: SegmentationSet, pixels: Int64[np.ndarray, " c"]) -> None:
    if not pixels.any():
        raise ValueError(
            f"no pixel of {dataset.images.root} counts: all have mask values that are ignored "
            f"({sorted(dataset.ignored)}); correct ignore_index in labels.json, or the masks"
        )


def _tallies(counts: Float[np.ndarray, "5 n c"], background: int | None) -> dict[str, Tally]:
    """The metrics of the counts of all images, in the order of `_counts`.

    IoU is a ratio of sums over all images, as in PASCAL VOC, and no mean of the images' IoUs.
    """
    both, either, matched, edges, pixels = counts
    tallies = {"miou": Tally(both, either)}
    if background is not None:
        objects = [label for label in range(both.shape[1]) if label != background]
        # Its errors still count: an object's pixels that were called background are in `either`.
        tallies["miou_objects"] = Tally(both[:, objects], either[:, objects])
    tallies["pixel_accuracy"] = Tally(both.sum(1, keepdims=True), pixels.sum(1, keepdims=True))
    tallies["mean_accuracy"] = Tally(both, pixels)
    tallies["boundary_f1"] = Tally(matched, edges)
    return tallies


def label_map(
    encoder: Encoder, image: Image.Image, queries: Queries, config: SegmentationConfig
) -> Int32[np.ndarray, "h w"]:
    """The class index of every pixel of `image`."""
    seen = look(encoder, image, queries.vectors.shape[1], config)
    return labels_of(seen, (image.height, image.width), queries, config)


def look(encoder: Encoder, image: Image.Image, width: int, config: SegmentationConfig) -> Seen:
    """The patches of an image, as the protocol has it. ValueError for vectors that are not finite,
    or not of this width.
    """
    if config.protocol == "high-resolution":
        # One window that is the whole grid; sizes are in cells instead of pixels.
        features = averaged_features(encoder, image, config.regions)
        size = (features.shape[0], features.shape[1])
        return Seen(features[None, None], ([0], [0]), size, size)

    resized = resize_short_side(image, config.short_side)
    size = (resized.height, resized.width)
    window = size
    if config.protocol == "window":
        window = (min(config.window, size[0]), min(config.window, size[1]))

    # A window as large as the image starts at 0 alone, which is the protocol `whole`.
    tops, lefts = (
        starts(full, part, config.stride) for full, part in zip(size, window, strict=True)
    )
    crops = [resized.crop((x, y, x + window[1], y + window[0])) for y in tops for x in lefts]
    patches = checked(encoder.encode_patches(crops), "windows", len(crops), width)

    # Crops are in rows, so that their axis unfolds into rows and columns of windows.
    return Seen(patches.unflatten(0, (len(tops), len(lefts))), (tops, lefts), window, size)


def labels_of(
    seen: Seen, out: tuple[int, int], queries: Queries, config: SegmentationConfig
) -> Int32[np.ndarray, "h w"]:
    """The class index of every pixel of an `out` map."""
    if config.protocol == "high-resolution":
        return region_labels(
            seen.patches[0, 0],
            out,
            config.regions,
            lambda means: queries.classes(queries.cosines(means).argmax(-1).numpy()),
        )

    cosines = queries.cosines(seen.patches)
    if config.protocol == "whole":
        return queries.classes(whole_argmax(cosines[0, 0], out))

    winners = sliding_argmax(cosines, seen.begins, seen.window, seen.size, out, config.logit_scale)
    return queries.classes(winners)


def heat_maps(
    seen: Seen, names: Names, wanted: Sequence[int], out: tuple[int, int]
) -> Float32[np.ndarray, "wanted h w"]:
    """The cosine of every pixel with each wanted name: the mean over windows, bilinear."""
    if not wanted:
        return np.empty((0, *out), np.float32)
    cosines = name_cosines(seen.patches, names, wanted)
    return sliding_mean(cosines, seen.begins, seen.window, seen.size, out)


def resize_short_side(image: Image.Image, short_side: int) -> Image.Image:
    """The image with its short side at `short_side` px, bicubic; the long side is cut to whole
    pixels, not rounded, as published.
    """
    width, height = image.size
    if min(width, height) == short_side:
        return image
    if width < height:
        size = (short_side, int(short_side * height / width))
    else:
        size = (int(short_side * width / height), short_side)
    return image.resize(size, Image.Resampling.BICUBIC)


def segmentation_baselines(
    pixels: Int64[np.ndarray, " classes"],
    background: int | None,
    alike: Float64[np.ndarray, "classes classes"] | None = None,
) -> dict[str, dict[str, float]]:
    """Scores of maps of one class: of the best for each metric, and of the background where there
    is one. `pixels` are those of each class in the truth; with `alike`, the scores have Open-mIoU.
    """
    constants = [
        _constant_map_scores(pixels, label, background, alike) for label in range(len(pixels))
    ]
    best = {metric: max(scores[metric] for scores in constants) for metric in constants[0]}
    return {"best_single_class": best} | (
        {} if background is None else {"all_background": constants[background]}
    )


def _constant_map_scores(
    pixels: Int64[np.ndarray, " classes"],
    label: int,
    background: int | None,
    alike: Float64[np.ndarray, "classes classes"] | None,
) -> dict[str, float]:
    # Every pixel has the class `label`: its accuracy is 1, that of all other classes 0.
    present = int((pixels > 0).sum())
    share = float(pixels[label] / pixels.sum())
    scores = {
        "miou": constant_map_miou(pixels, label),
        "pixel_accuracy": share,
        "mean_accuracy": (1 / present) if pixels[label] else 0.0,
    }
    if background is not None:
        # As mIoU, but the background is no class of the mean.
        others = int(present - (pixels[background] > 0))
        scores["miou_objects"] = 0.0 if label == background else share / max(1, others)
    if alike is not None:
        scores["open_miou"] = constant_map_open_miou(pixels, label, alike)

    return scores
