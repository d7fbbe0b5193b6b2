"""How many altered copies of evaluation photographs curation finds in a pool, and how many
duplicates it leaves.

    python -m benchmarks.copies --evaluation PHOTOS --unrelated PHOTOS [--count 100] [--backbone NAME]

Either is a folder or an uncompressed tar of image files, of different photographs. Of `count`
evaluation photographs the pool holds the file itself and one copy of each kind, among nine times as
many unrelated ones. Printed are, for the default thresholds, the share of copies of each kind that
is found as leakage, and by which sign; the unrelated images that are taken for copies; and, of all
versions of one photograph, how many deduplication leaves.
"""

import argparse
import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from cluster.session import session
from curation import embed
from curation.choice.config import OFF, DuplicatesConfig, LeakageConfig
from curation.choice.why import read_decisions
from curation.clusters.scan import InProcess
from curation.config import CurateConfig, EmbedConfig
from curation.curate import curate
from curation.encoders.config import BackboneConfig
from curation.pairs.config import SourceConfig
from curation.pairs.images import IMAGE_SUFFIXES, decode
from curation.pairs.tree import open_tree

UNRELATED_PER_COPY = 9
NO_LEAKAGE = LeakageConfig(alike=OFF)
NO_DUPLICATES = DuplicatesConfig(alike=OFF, captions="drop")


def main() -> None:
    options = _options()
    with TemporaryDirectory() as folder:
        root = Path(folder)
        _write_pool(root, options)
        backbone = BackboneConfig(name=options.backbone, image_size=options.image_size)
        config = EmbedConfig(source=SourceConfig(split=""), backbone=backbone, content="pooled")
        with session():
            for name in ("pool", "evaluation"):
                embed.run(config, out=root / f"{name}_embedded", source=root / name)

        _print_leakage(root)
        _print_duplicates(root)


def _write_pool(root: Path, options: argparse.Namespace) -> None:
    originals = list(_photographs(options.evaluation, options.count))
    _write(root / "evaluation", {f"{index:05d}.jpg": data for index, data in enumerate(originals)})

    pool = {}
    for kind, change in KINDS.items():
        for index, data in enumerate(originals):
            pool[f"{kind}_{index:05d}.jpg"] = change(data)

    for index, data in enumerate(
        _photographs(options.unrelated, UNRELATED_PER_COPY * options.count)
    ):
        pool[f"unrelated_{index:05d}.jpg"] = data

    _write(root / "pool", pool)


def _photographs(path: Path, count: int) -> Iterator[bytes]:
    """Some files of a folder or tar, in a fixed random order."""
    tree = open_tree(path)
    names = tree.with_suffix(*IMAGE_SUFFIXES)
    for name in random.Random(0).sample(names, min(count, len(names))):
        yield tree.files[name].read()


def _write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    lines = [json.dumps({"image": name, "captions": [f"picture {name}"]}) for name in files]
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")


def _print_leakage(root: Path) -> None:
    config = CurateConfig(method="none", duplicates=NO_DUPLICATES)
    table = _curated(root, "leakage", config, {"leakage_set": root / "evaluation_embedded"})
    kinds, _, reasons = _columns(table)

    print(f"\n{'copy':16} {'found':>6}   signs")

    for kind in dict.fromkeys(kinds.tolist()):
        own = reasons[kinds == kind]
        is_found = np.char.startswith(own, "leakage")
        signs = ", ".join(
            f"{name.removeprefix('leakage: ')} {count}"
            for name, count in zip(*np.unique(own[is_found], return_counts=True), strict=True)
        )
        share = (
            f"{is_found.sum()} of {len(own):,}" if kind == "unrelated" else f"{is_found.mean():.0%}"
        )
        print(f"{kind:16} {share:>6}   {signs}")


def _print_duplicates(root: Path) -> None:
    table = _curated(root, "duplicates", CurateConfig(method="none", leakage=NO_LEAKAGE), {})
    kinds, indices, reasons = _columns(table)
    is_version = kinds != "unrelated"
    left = np.bincount(indices[is_version & (reasons == "kept")])
    dropped = (reasons[~is_version] != "kept").sum()
    print(
        f"\nOf {len(KINDS)} versions deduplication leaves {left.mean():.2f} on average, "
        f"{left.max()} at most; it drops {dropped} of {(~is_version).sum():,} unrelated "
        "photographs."
    )


def _curated(
    root: Path, name: str, config: CurateConfig, evaluation: dict[str, Path]
) -> dict[str, list]:
    out = root / name
    out.mkdir()
    curate(config, InProcess(), out, root / "pool_embedded", evaluation)
    figures = json.loads((out / "curation.json").read_text())["figures"]
    print(
        "  ".join(
            f"{key}={value:.4g}"
            for key, value in figures.items()
            if "threshold" in key or "cosine" in key
        )
    )

    return read_decisions(out).select(["key", "reason"]).to_pydict()


def _columns(table: dict[str, list]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kind, number of the photograph and reason of each row."""
    stems = [Path(key).stem.rpartition("_") for key in table["key"]]
    kinds = np.array([kind for kind, _, _ in stems])
    return kinds, np.array([int(number) for _, _, number in stems]), np.array(table["reason"])


def _saved(picture: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _scaled(picture: Image.Image, factor: float) -> Image.Image:
    size = round(picture.width * factor), round(picture.height * factor)
    return picture.resize(size, Image.Resampling.LANCZOS)


def _cropped(
    picture: Image.Image, left: float, top: float, right: float, bottom: float
) -> Image.Image:
    """Without some shares of the sides."""
    width, height = picture.size
    return picture.crop(
        (
            round(left * width),
            round(top * height),
            round((1 - right) * width),
            round((1 - bottom) * height),
        )
    )


def _watermarked(picture: Image.Image) -> Image.Image:
    picture = picture.copy()
    width, height = picture.size
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0.6 * width, 0.85 * height, 0.98 * width, 0.97 * height), fill=(255, 255, 255))
    draw.text((0.62 * width, 0.88 * height), "sample image", fill=(0, 0, 0))
    return picture


def _brightened(picture: Image.Image) -> Image.Image:
    return ImageEnhance.Contrast(ImageEnhance.Brightness(picture).enhance(1.15)).enhance(1.15)


def _altered(
    change: Callable[[Image.Image], Image.Image], quality: int = 90
) -> Callable[[bytes], bytes]:
    return lambda data: _saved(change(decode(data)), quality)


KINDS: dict[str, Callable[[bytes], bytes]] = {
    "same": lambda data: data,
    "jpeg 90": _altered(lambda p: p),
    "jpeg 75": _altered(lambda p: p, 75),
    "jpeg 30": _altered(lambda p: p, 30),
    "scaled x0.75": _altered(lambda p: _scaled(p, 0.75)),
    "scaled x0.5": _altered(lambda p: _scaled(p, 0.5)),
    "scaled x2": _altered(lambda p: _scaled(p, 2)),
    "squashed": _altered(lambda p: p.resize((224, 224), Image.Resampling.BICUBIC)),
    "gray": _altered(lambda p: p.convert("L").convert("RGB")),
    "brighter": _altered(_brightened),
    "mirrored": _altered(ImageOps.mirror),
    "rotated 90": _altered(lambda p: p.rotate(90, expand=True)),
    "watermark": _altered(_watermarked),
    "cropped 5 %": _altered(lambda p: _cropped(p, *4 * (0.025,))),
    "cropped 10 %": _altered(lambda p: _cropped(p, *4 * (0.05,))),
    "cropped 20 %": _altered(lambda p: _cropped(p, *4 * (0.1,))),
    "corner 10 %": _altered(lambda p: _cropped(p, 0, 0, 0.1, 0.1)),
    "side 15 %": _altered(lambda p: _cropped(p, 0.15, 0, 0, 0)),
    "border 12 px": _altered(lambda p: ImageOps.expand(p, 12, (255, 255, 255))),
    "black bars 8 %": _altered(
        lambda p: ImageOps.expand(p, (0, round(0.08 * p.height)), (0, 0, 0))
    ),
}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--evaluation", type=Path, required=True)
    parser.add_argument("--unrelated", type=Path, required=True)
    parser.add_argument("--count", type=int, default=100, help="evaluation photographs")
    parser.add_argument("--backbone", default="auto")
    parser.add_argument("--image-size", type=int, default=224)
    return parser.parse_args()


if __name__ == "__main__":
    main()
