"""Command line: python -m pipeline VERB RECIPE [options].

RECIPE is a preset's name or a YAML file that `config` wrote. Every field of a recipe is a flag: --train.optim.lr 3e-4.
Wrong words end with code 2 and the nearest right one, a failed run with code 1, one that was told to stop with code 85.
"""

import argparse
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.allocation import REQUEUE_CODE
from cluster.logs import setup_logging
from cluster.words import nearest
from pipeline.commands import COMMANDS
from pipeline.graph import resolve_backbone
from pipeline.presets import PRESETS
from pipeline.recipe_file import load_recipe
from pipeline.recipes import Recipe
from pipeline.runner import StepFailed
from train.train import TrainingStopped

log = logging.getLogger(__name__)


class Verb(NamedTuple):
    """What a word does, and which options it takes besides --workspace and --verbose."""

    text: str
    takes: tuple[str, ...] = ()


VERBS = {
    "recipes": Verb("list the recipes"),
    "plan": Verb("what would run, what is done, and what it costs; runs nothing", ("only", "force", "rows", "measure")),
    "run": Verb("run what is not done yet", ("only", "force")),
    "submit": Verb("run as one SLURM job, on the nodes of train.resources; requeued when preempted", ("only", "force")),
    "status": Verb("every output in the workspace, with its summary", ("json",)),
    "show": Verb(
        "results of a recipe; the record of one STEP; why curation kept or dropped one KEY", ("words", "json")
    ),
    "verify": Verb("check every finished output in the workspace against its record and checksums"),
    "export": Verb(
        "a trained model as safetensors, published dinotxt, huggingface and onnx, each compared with it",
        ("words", "to", "format", "model"),
    ),
    "config": Verb("print the recipe as YAML, with each field's documentation"),
}
SHORT = re.compile(r"^--embed\.backbone(=.*)?$")
FAILED, USAGE, INTERRUPTED = 1, 2, 130


def main(words: Sequence[str]) -> int:
    """Run one command; the process's exit code."""
    options, flags = parser().parse_known_intermixed_args(words)
    options.flags = flags
    setup_logging(options.verbose)
    try:
        check_options(options)
        if options.verb == "recipes":
            return list_recipes(terminal())
        recipe = read_recipe(options.recipe, options.verb, flags)
        if options.verb not in ("plan", "config", "status", "verify"):  # which say all they can without the weights
            recipe = resolve_backbone(recipe)
        return COMMANDS[options.verb](recipe, options, terminal())
    except StepFailed as error:
        log.debug("step failed", exc_info=error)
        return complain(str(error), REQUEUE_CODE if isinstance(error.__cause__, TrainingStopped) else FAILED)
    except (ValueError, OSError) as error:
        log.debug("not possible", exc_info=error)
        return complain(str(error), USAGE)


def check_options(options: argparse.Namespace) -> None:
    """ValueError for a word that is not there, and for an option or a further word that it does not take."""
    if options.verb not in VERBS:
        raise ValueError(f"there is no verb {options.verb!r}{nearest(options.verb, VERBS)}; verbs: {', '.join(VERBS)}")
    if options.verb == "recipes" and options.flags:
        raise ValueError(f"recipes does not take {' '.join(options.flags)}: leave it out")
    takes = (*VERBS[options.verb].takes, "verb", "recipe", "workspace", "verbose", "flags")
    for name, value in vars(options).items():
        if value and name not in takes:
            given = " ".join(map(str, value)) if name == "words" else f"--{name}"
            takers = ", ".join(verb for verb, found in VERBS.items() if name in found.takes)
            raise ValueError(f"{options.verb} does not take {given}: {takers} do; leave it out")


def terminal() -> Console:
    """The terminal; wide enough for tables where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=140)


def parser() -> argparse.ArgumentParser:
    """The words before the recipe's own flags."""
    listing = "\n".join(f"  {name:<9} {verb.text}" for name, verb in VERBS.items())
    found = argparse.ArgumentParser(
        prog="python -m pipeline",
        description=f"{listing}\n\nrecipes: {', '.join(PRESETS)}, or a YAML file",
        epilog="every field of the recipe is a flag too, such as --train.optim.lr 3e-4: "
        "`python -m pipeline config RECIPE` lists them",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    found.add_argument("verb", metavar="VERB")
    found.add_argument("recipe", nargs="?", default="quickstart", metavar="RECIPE")
    found.add_argument(
        "words", nargs="*", metavar="STEP [KEY]", help="with show and export: a step; with show, a pair's key"
    )
    found.add_argument("--workspace", type=Path, default=Path("workspace"), help="folder of all outputs")
    found.add_argument("--only", nargs="+", default=[], metavar="STEP", help="these steps and what they lack")
    found.add_argument("--force", nargs="+", default=[], metavar="STEP", help="these and what follows, done or not")
    found.add_argument("--rows", type=int, default=0, help="with plan: pairs in the pool, when it is not embedded yet")
    found.add_argument("--measure", action="store_true", help="with plan: time reading and the backbone here")
    found.add_argument("--json", action="store_true", help="with status and show: for machines")
    found.add_argument("--to", type=Path, metavar="FOLDER", help="with export: where the folders of the formats go")
    found.add_argument("--format", nargs="+", default=[], metavar="FORMAT", help="with export: these formats, not all")
    found.add_argument("--model", type=Path, metavar="FOLDER", help="with export: this model instead of the recipe's")
    found.add_argument("--verbose", action="store_true", help="every log line, and the workers' output")
    return found


def read_recipe(name: str, verb: str, flags: Sequence[str]) -> Recipe:
    """The preset or file named, with the flags set. ValueError gives the nearest recipe."""
    if name.endswith((".yaml", ".yml")):
        preset = load_recipe(Path(name).read_text(), name)
    elif name in PRESETS:
        preset = PRESETS[name]
    else:
        raise ValueError(f"there is no recipe {name!r}{nearest(name, PRESETS)}; recipes: {', '.join(PRESETS)}")
    words = [SHORT.sub(r"--embed.backbone.name\1", flag) for flag in flags]
    whole = (tyro.conf.AvoidSubcommands,)  # sections that may be absent are flags as well
    return tyro.cli(Recipe, default=preset, args=words, prog=f"python -m pipeline {verb} {name}", config=whole)


def list_recipes(console: Console) -> int:
    table = Table("recipe", "what it makes", box=None)
    for name, preset in PRESETS.items():
        table.add_row(name, preset.description)
    console.print(table)
    return 0


def complain(message: str, code: int) -> int:
    Console(stderr=True).print(f"[red]error:[/red] {escape(message)}", highlight=False, soft_wrap=True)
    return code


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        complain("interrupted; what is finished is kept: run the same command again to continue", INTERRUPTED)
        os._exit(INTERRUPTED)  # threads may still wait for Ray, whose processes end with this one
