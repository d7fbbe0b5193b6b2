"""What curation did to the quickstart's pool, and to the scores of rare concepts: both arms of a
finished workspace.

A concept is what is drawn, whatever the vendor or skin tone; how many pairs the pool has of one
says how rare it is. Held-out accuracy is top-1 over the drawings of vendors that were never trained
on, of both arms on the same images.

    python -m benchmarks.quickstart_balance workspace
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from curation.choice.balance import entropy, gini
from curation.choice.why import read_decisions
from curation.quickstart.pool import Concept, read_concepts
from evaluate.sets.known import open_classification
from evaluate.tallies import read_tallies

LARGEST = (3, 5, 10**9)  # pairs of a concept in the pool, up to which a row of the last table goes


class Arm(NamedTuple):
    """The folders of one model."""

    name: str
    curate: Path
    evaluate: Path
    classification: Path


def main() -> None:
    """Print the tables."""
    arms = list(find_arms(Path(sys.argv[1])))
    known = read_concepts()
    decisions = {arm.name: read_decisions(arm.curate) for arm in arms}
    keys = next(iter(decisions.values()))["key"].to_pylist()
    concepts = [known[key.rpartition("/")[2].partition("-")[2]] for key in keys]
    everything = Counter(concept.name for concept in concepts)
    print(
        f"{'':12} {'pairs':>7} {'tones':>7} {'gender':>7} {'concepts':>9} {'entropy':>8} "
        f"{'Gini':>6}"
    )
    _print_shares("pool", concepts, everything)

    for name, table in decisions.items():
        kept = table["kept"].to_pylist()
        _print_shares(
            name,
            [concept for concept, is_kept in zip(concepts, kept, strict=True) if is_kept],
            everything,
        )

    _print_accuracy(arms, known, everything)


def find_arms(workspace: Path) -> Iterator[Arm]:
    """The newest evaluation of each arm on drawings, and what it was made from; models from
    elsewhere are left out.
    """
    found: dict[str, dict] = {}
    for path in (workspace / "evaluate").glob("*/record.json"):
        record = json.loads(path.read_text())
        model, _ = record["inputs"].get("model", ("data", ""))
        if "classification" in record["inputs"] and model != "data":
            older = found.get(record["label"])
            if older is None or older["finished"] < record["finished"]:
                found[record["label"]] = record

    if not found:
        raise ValueError(
            f"{workspace} has no finished evaluation of the quickstart: run it, or name another "
            "workspace"
        )

    for label, record in sorted(found.items()):
        model = json.loads(
            (workspace / "train" / record["inputs"]["model"][0] / "record.json").read_text()
        )
        archive, member = record["inputs"]["classification"]
        yield Arm(
            label.partition("@")[2] or "curated",
            workspace / "curate" / model["inputs"]["selection"][0],
            workspace / "evaluate" / record["fingerprint"],
            workspace / "pool" / archive / member,
        )


def _print_shares(name: str, concepts: list[Concept], everything: Counter[str]) -> None:
    counts = Counter(concept.name for concept in concepts)
    sizes = np.array([counts[concept] for concept in everything])
    toned, gendered = (
        np.mean([is_variant(concept) for concept in concepts])
        for is_variant in (
            lambda concept: bool(concept.tones),
            lambda concept: concept.is_gender_variant,
        )
    )
    print(
        f"{name:12} {len(concepts):7,} {toned:7.1%} {gendered:7.1%} {(sizes > 0).mean():9.1%} "
        f"{entropy(sizes):8.3f} {gini(sizes):6.3f}"
    )


def _print_accuracy(arms: list[Arm], known: dict[str, Concept], everything: Counter[str]) -> None:
    """Top-1 by how many pairs of the concept the pool has."""
    dataset = open_classification(arms[0].classification)
    names = [known[Path(image).parent.name].name for image in dataset.images.names]
    sizes = np.array([everything[name] for name in names])
    hits = {
        arm.name: read_tallies(arm.evaluate, "classification")["top1"].hits[:, 0] for arm in arms
    }
    print(
        f"\n{'pairs of the concept in the pool':34} {'images':>7}"
        + "".join(f"{name:>12}" for name in hits)
    )
    least = 0

    for most in LARGEST:
        chosen = (sizes >= least) & (sizes <= most)
        label = f"{least} to {most}" if most < LARGEST[-1] else f"{least} or more"
        print(
            f"{label:34} {chosen.sum():7,}"
            + "".join(f"{hit[chosen].mean():12.1%}" for hit in hits.values())
        )
        least = most + 1


if __name__ == "__main__":
    main()
