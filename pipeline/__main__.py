"""Command line: python -m pipeline VERB RECIPE [options].

RECIPE is a preset's name or a YAML file that `config` wrote. Every field of a recipe is a flag:
--train.optim.lr 3e-4. Every way to end prints one line and has its exit code (cluster/endings.py).
"""

import logging
import os
import sys
import tempfile
import time
import traceback
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from cluster.endings import (
    FAILED,
    INTERRUPTED,
    KEPT,
    REQUEUE,
    USAGE,
    FruitlessError,
    SessionError,
    StoppedError,
    code_of_lost_session,
    end_at_second_interrupt,
    stop_on_signals,
)
from cluster.logs import setup_logging
from cluster.words import nearest
from pipeline.flags import with_flags
from pipeline.graph import resolve_backbone
from pipeline.options import parse_words, print_help
from pipeline.presets import PRESETS
from pipeline.recipe_file import load_recipe, read_file
from pipeline.recipes import Recipe
from pipeline.step import StepError
from pipeline.verbs import VERBS

ENDINGS = {REQUEUE: "stopped", INTERRUPTED: "interrupted"}
CRASHES = "crashes"

logger = logging.getLogger(__name__)


def main(words: Sequence[str]) -> int:
    """Run one command; the process's exit code."""
    options = Namespace(workspace=Path("workspace"))
    try:
        options = parse_words(words)
        setup_logging(options.verbose)
        with end_at_second_interrupt(), stop_on_signals():
            return dispatch(options)
    except StepError as error:
        logger.debug("step failed", exc_info=error)
        if isinstance(error.__cause__, StoppedError):
            return complain(f"{error}; {KEPT}", REQUEUE)
        return complain(str(error), FAILED)
    except StoppedError as error:
        return complain(f"{error}; {KEPT}", REQUEUE)
    except SessionError as error:
        return complain(str(error), code_of_lost_session())
    except FruitlessError as error:
        return complain(str(error), FAILED)
    except KeyboardInterrupt:
        return complain(KEPT, INTERRUPTED)
    except (ValueError, OSError) as error:
        logger.debug("not possible", exc_info=error)
        return complain(str(error), USAGE)
    except Exception as error:  # the last boundary: no raw traceback reaches a user
        file = write_traceback(error, options.workspace)
        return complain(
            f"unexpected {type(error).__name__}: {error}; {KEPT}. Traceback: {file}", FAILED
        )


def dispatch(options: Namespace) -> int:
    """Call the verb's function with what it needs."""
    verb = VERBS[options.verb]
    if options.help is not None:
        name = "own" if verb.needs == "source" else options.recipe
        default = None if verb.needs == "nothing" else read_recipe(name, options.verb, [])
        print_help(options.verb, default, options.help, terminal())
        return 0
    if verb.needs == "nothing":
        return verb.call(options, terminal())

    recipe = read_recipe(
        "own" if verb.needs == "source" else options.recipe, options.verb, options.flags
    )
    if verb.needs == "weights":
        # The choice explains what runs; what only reads answers without it.
        recipe = resolve_backbone(recipe, logging.INFO if verb.computes else logging.DEBUG)

    return verb.call(recipe, options, terminal())


def read_recipe(name: str, verb: str, flags: Sequence[str]) -> Recipe:
    """The preset or file named, with the flags set. ValueError gives the nearest recipe."""
    if name.endswith((".yaml", ".yml")):
        preset = load_recipe(read_file(name, "config quickstart"), name)
    elif name in PRESETS:
        preset = PRESETS[name]
    else:
        raise ValueError(
            f"there is no recipe {name!r}{nearest(name, PRESETS)}; recipes: {', '.join(PRESETS)}, "
            "or a file whose name ends with .yaml"
        )

    return with_flags(preset, flags, f"python -m pipeline {verb} {name}") if flags else preset


def terminal() -> Console:
    """The terminal; wide enough for tables where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=140)


def complain(message: str, code: int) -> int:
    """Print one line on how the command ended; one that was asked to end is no error."""
    ending = ENDINGS.get(code, "[red]error[/red]")
    Console(stderr=True).print(f"{ending}: {escape(message)}", highlight=False, soft_wrap=True)
    return code


def write_traceback(error: Exception, workspace: Path) -> Path:
    """Write the traceback of an unexpected error into the workspace, or into a temporary folder
    where that fails.
    """
    text = "".join(traceback.format_exception(error))
    name = time.strftime("crash-%Y%m%d-%H%M%S.txt")
    for folder in (workspace / CRASHES, Path(tempfile.gettempdir())):
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
            return folder / name
    return Path(os.devnull)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    if code == INTERRUPTED:
        os._exit(code)  # threads may still wait for Ray, whose processes end with this one
    sys.exit(code)
