"""Commands that a message advises, as a shell takes them."""

import shlex
from argparse import Namespace


def rebuilding(options: Namespace) -> str:
    """The command line that builds the outputs of a verb; --force may be added to it."""
    if options.verb != "evaluate":
        return again(options, "run")
    model = ["--model", str(options.model)] if options.model else []
    return again(options, "evaluate", *model, "--set", *options.set)


def again(options: Namespace, verb: str, *words: str) -> str:
    """The command line for another verb on the same recipe, flags and workspace."""
    where = [] if str(options.workspace) == "workspace" else ["--workspace", str(options.workspace)]
    return shlex.join(
        ["python", "-m", "pipeline", verb, options.recipe, *words, *where, *options.flags]
    )
