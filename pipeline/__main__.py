"""Command line: python -m pipeline VERB RECIPE [options].

RECIPE is a preset's name or a YAML file that `config` wrote. Every field of a recipe is a flag: --train.optim.lr 3e-4.
Wrong words end with code 2 and the nearest right one, a failed run with code 1, one that was told to stop with code 85.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from cluster.allocation import REQUEUE_CODE
from cluster.logs import setup_logging
from pipeline.commands import COMMANDS
from pipeline.config import load_recipe
from pipeline.graph import resolve_backbone
from pipeline.nearest import nearest
from pipeline.presets import PRESETS
from pipeline.recipes import Recipe
from pipeline.runner import StepFailed
from train.trainer import TrainingStopped

log = logging.getLogger(__name__)

VERBS = {
    "recipes": "list the recipes",
    "plan": "what would run, what is done, and what it costs; runs nothing",
    "run": "run what is not done yet",
    "submit": "run as one SLURM job, on the nodes of train.resources; requeued when preempted",
    "status": "every output in the workspace, with its summary",
    "show": "results of a recipe; the record of one STEP; why curation kept or dropped one KEY",
    "verify": "check every finished output against its record and checksums",
    "export": "a trained model as safetensors, published dinotxt, huggingface and onnx, each compared with it",
    "config": "print the recipe as YAML, with each field's documentation",
}
FAILED, USAGE, INTERRUPTED = 1, 2, 130


def main(words: Sequence[str]) -> int:
    """Run one command; the process's exit code."""
    options, flags = parser().parse_known_args(words)
    setup_logging(options.verbose)
    try:
        if options.verb not in VERBS:
            raise ValueError(
                f"there is no verb {options.verb!r}{nearest(options.verb, VERBS)}; verbs: {', '.join(VERBS)}"
            )
        if options.verb == "recipes":
            return list_recipes(terminal())
        recipe = read_recipe(options.recipe, flags)
        if options.verb not in ("plan", "config"):
            recipe = resolve_backbone(recipe)
        return COMMANDS[options.verb](recipe, options, terminal())
    except StepFailed as error:
        log.debug("step failed", exc_info=error)
        return complain(str(error), REQUEUE_CODE if isinstance(error.__cause__, TrainingStopped) else FAILED)
    except (ValueError, OSError) as error:
        log.debug("not possible", exc_info=error)
        return complain(str(error), USAGE)


def terminal() -> Console:
    """The terminal; wide enough for tables where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=140)


def parser() -> argparse.ArgumentParser:
    """The words before the recipe's own flags."""
    listing = "\n".join(f"  {verb:<9} {text}" for verb, text in VERBS.items())
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
    found.add_argument("--only", nargs="+", default=[], metavar="STEP", help="run these steps and what they lack")
    found.add_argument("--force", nargs="+", default=[], metavar="STEP", help="run these steps though they are done")
    found.add_argument("--rows", type=int, default=0, help="with plan: pairs in the pool, when it is not embedded yet")
    found.add_argument("--measure", action="store_true", help="with plan: time reading and the backbone here")
    found.add_argument("--json", action="store_true", help="with status and show: for machines")
    found.add_argument("--to", type=Path, metavar="FOLDER", help="with export: where the folders of the formats go")
    found.add_argument("--format", nargs="+", default=[], metavar="FORMAT", help="with export: these formats, not all")
    found.add_argument("--model", type=Path, metavar="FOLDER", help="with export: this model instead of the recipe's")
    found.add_argument("--verbose", action="store_true", help="every log line, and the workers' output")
    return found


def read_recipe(name: str, flags: Sequence[str]) -> Recipe:
    """The preset or file named, with the flags set. ValueError gives the nearest recipe."""
    if name.endswith((".yaml", ".yml")):
        preset = load_recipe(Path(name).read_text(), name)
    elif name in PRESETS:
        preset = PRESETS[name]
    else:
        raise ValueError(f"there is no recipe {name!r}{nearest(name, PRESETS)}; recipes: {', '.join(PRESETS)}")
    short = {"--embed.backbone": "--embed.backbone.name"}
    words = [short.get(flag, flag) for flag in flags]
    return tyro.cli(Recipe, default=preset, args=words, prog=f"python -m pipeline VERB {name}")


def list_recipes(console: Console) -> int:
    table = Table("recipe", "what it makes", box=None)
    for name, preset in PRESETS.items():
        table.add_row(name, preset.description)
    console.print(table)
    return 0


def complain(message: str, code: int) -> int:
    Console(stderr=True).print(f"[red]error:[/red] {message}", highlight=False, soft_wrap=True)
    return code


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        complain("interrupted; what is finished is kept: run the same command again to continue", INTERRUPTED)
        os._exit(INTERRUPTED)  # threads may still wait for Ray, whose processes end with this one
