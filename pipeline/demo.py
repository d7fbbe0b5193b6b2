"""The verb `demo`: a page on this machine that searches the pool of a workspace, or a folder, with
the models that a recipe has trained.

What is missing is one index per model. It is an output of the workspace like any other: built once,
with a record.
"""

import socket
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from rich.console import Console

from cluster.endings import DONE
from cluster.files import remove_torn
from cluster.storage import absolute
from curation.choice.why import why
from curation.encoders.backbone import load_backbone
from curation.shards.reader import open_shards
from evaluate.config import IndexConfig
from evaluate.dinotxt import DinoTxtEncoder
from evaluate.search.collection import Collection
from evaluate.search.engine import Engine
from evaluate.search.galleries import FolderGallery, PoolGallery, list_images
from evaluate.search.index import INDEX, read_names
from evaluate.search.vector_index import read_index
from evaluate.search.web import Fate, Site, make_app
from evaluate.sets.images import Images
from pipeline.graph import build_steps
from pipeline.provenance import make_record
from pipeline.recipes import Recipe
from pipeline.step import Output, RunOf, Step, in_order
from pipeline.store import Store
from train.export.published import read_model
from train.loop import MODEL

PORT = 7860
LOOPBACK = "127.0.0.1"
INDEX_STEP = RunOf("evaluate.search.index")
FINEST_STORED = 8  # patches a side: coarser grids do not show where something is
NUM_EXAMPLES = 5
LONGEST_EXAMPLE = 48


def serve(recipe: Recipe, options: Namespace, console: Console) -> int:
    """Open the page; returns when it is ended with Ctrl-C."""
    host = options.host or LOOPBACK
    port = options.port or PORT
    _check_free(host, port)
    site = make_site(recipe, options, console)

    # On all interfaces, the machine's names are not known: then any name is answered.
    hosts = [host, "localhost", "127.0.0.1"] if host != "0.0.0.0" else ["*"]
    app = make_app(site, hosts)
    console.print(
        f"the page is http://{'localhost' if host in ('0.0.0.0', LOOPBACK) else host}:{port} "
        "(Ctrl-C ends it)",
        soft_wrap=True,
    )
    uvicorn.run(app, host=host, port=port, log_level="warning", access_log=False)

    return DONE


def _check_free(host: str, port: int) -> None:
    """ValueError where the port cannot be had, before minutes go into an index."""
    with socket.socket() as probe:
        # As the server does it: a port that was closed a moment ago is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(
                f"port {port} of {host} cannot be used ({error.strerror}): name another one with "
                "--port"
            ) from error


def make_site(recipe: Recipe, options: Namespace, console: Console) -> Site:
    """Models, indexes and images, ready to be asked, where a model has been trained."""
    store = Store(options.workspace)
    by_label = {step.label: step for step in in_order(build_steps(recipe))}
    trained = [step for step in by_label.values() if step.name == "train" and store.record(step)]
    # One index per model, all of the same images: rows are the same, vectors are not.
    folder = absolute(Path(options.images)) if options.images else None
    indexes = [_index_step(recipe, step, by_label["embed"], folder) for step in trained]
    for step in indexes:
        build(step, store, console)

    collection = Collection(
        FolderGallery(_images(folder, store.folder(indexes[0])))
        if folder
        else _pool(recipe, by_label["embed"], store)
    )
    engines = _engines(recipe, trained, indexes, collection, store)
    note = folder.name if folder else f"the pool of {recipe.name}"

    return Site(
        title=f"dino.txt · {recipe.name}",
        note=f"{len(collection.gallery):,} images: {note}",
        engines=engines,
        collection=collection,
        fates=None if folder else _fates(by_label, trained, store),
        examples=_examples(collection),
    )


def _index_step(recipe: Recipe, train: Step, embed: Step, folder: Path | None) -> Step:
    """The index of the pool, or of a folder, under one model."""
    label = train.label.replace("train", "index", 1)
    model = {"model": Output(train, MODEL)}
    config = IndexConfig(recipe.embed.backbone)
    if folder:
        return Step("index", f"{label}_folder", INDEX_STEP, config, {**model, "images": folder})
    return Step("index", label, INDEX_STEP, config, {**model, "embeddings": Output(embed)})


def build(step: Step, store: Store, console: Console) -> None:
    """Bring a step to a record in this process, unless it has one."""
    with store.claim(step):
        if store.record(step):
            return

        # Files that an earlier try left half written are removed.
        out = store.partial(step)
        store.make_folder(out)
        remove_torn(out)
        started = datetime.now(UTC)
        clock_s = time.perf_counter()

        inputs = {name: store.resolve(source) for name, source in step.inputs.items()}
        summary = {
            name: float(value) for name, value in step.run(step.config, out=out, **inputs).items()
        }
        seconds = time.perf_counter() - clock_s
        store.commit(step, make_record(step, summary, out, started, seconds, {}))
        console.print(f"{step.label}: {summary['rows']:,.0f} images in {seconds:.1f} s")


def _images(folder: Path, index: Path) -> Images:
    """The images of a folder that the index has, in its order. ValueError where one is gone."""
    # Images that could not be decoded have no row in the index.
    images = list_images(folder)
    places = {name: place for place, name in enumerate(images.names)}
    names = read_names(index)
    missing = [name for name in names if name not in places]
    if missing:
        raise ValueError(f"{folder / missing[0]} is gone: run the command again to index anew")
    return images.take([places[name] for name in names])


def _pool(recipe: Recipe, embed: Step, store: Store) -> PoolGallery:
    source = store.resolve(embed.inputs["source"])
    return PoolGallery(open_shards(store.folder(embed)), recipe.embed.source, source)


def _engines(
    recipe: Recipe,
    trained: Sequence[Step],
    indexes: Sequence[Step],
    collection: Collection,
    store: Store,
) -> dict[str, Engine]:
    """One engine per model, on one backbone."""
    backbone = load_backbone(recipe.embed.backbone)
    engines = dict[str, Engine]()

    for train, index in zip(trained, indexes, strict=True):
        loaded = read_model(store.folder(train) / MODEL)
        loaded = loaded._replace(model=loaded.model.to(backbone.device))
        encoder = DinoTxtEncoder(backbone, loaded)
        is_fine = min(loaded.spec.grid) >= FINEST_STORED
        engines[_model_name(train)] = Engine(
            encoder,
            read_index(store.folder(index) / INDEX),
            collection,
            encoder.align_patches if is_fine else None,
        )

    return engines


def _model_name(train: Step) -> str:
    return train.label.partition("@")[2] or "curated"


def _fates(
    by_label: Mapping[str, Step], trained: Sequence[Step], store: Store
) -> Callable[[str], list[Fate]]:
    """What curation did with an image for each model."""
    folders = {
        _model_name(step): store.folder(by_label[step.label.replace("train", "curate", 1)])
        for step in trained
    }

    # Reading a decision opens files of curation, and a page asks for the same image often.
    @cache
    def fates(key: str) -> list[Fate]:
        return [_fate(model, why(folder, key)) for model, folder in folders.items()]

    return fates


def _fate(model: str, decision: Mapping[str, Any]) -> Fate:
    """A decision in one line.

    Example: "dropped: balance: image; the probability to be selected was 0.17 in its image cluster 1
    and 0.86 in its caption cluster 5".
    """
    parts = ["selected for training" if decision["kept"] else f"dropped: {decision['reason']}"]
    if decision["other"]:
        of_set = f" of the set {decision['other_set']}" if decision["other_set"] else ""
        parts.append(f"like {decision['other']}{of_set}")
    if decision["cosine"] is not None:
        parts.append(f"cosine {decision['cosine']:.3f}")

    chances = [
        f"{decision[f'{side}_keep']:.2g} in its {name} cluster {decision[f'{side}_cluster']}"
        for side, name in (("image", "image"), ("text", "caption"))
        if decision[f"{side}_keep"] is not None
    ]
    if chances:
        parts.append(f"the probability to be selected was {' and '.join(chances)}")
    if decision["copies"] > 1:
        parts.append(f"used {decision['copies']} times per epoch")

    return Fate(model, decision["kept"], "; ".join(parts))


def _examples(collection: Collection) -> list[str]:
    """Short captions of the pool, evenly spread; none for a folder."""
    # Eight times as many rows as examples: captions may be too long for a button, or repeat.
    gallery = collection.gallery
    rows = np.linspace(0, len(gallery) - 1, 8 * NUM_EXAMPLES).astype(int)
    captions = dict.fromkeys(gallery.caption(row) for row in rows.tolist())
    return [text for text in captions if 0 < len(text) <= LONGEST_EXAMPLE][:NUM_EXAMPLES]
