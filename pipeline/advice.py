"""Commands that a message advises, as a shell takes them."""

import shlex
from argparse import Namespace


def again(options: Namespace, verb: str, *words: str) -> str:
    """The command line for another verb on the same recipe, flags and workspace."""
    where = [] if str(options.workspace) == "workspace" else ["--workspace", str(options.workspace)]
    return shlex.join(
        ["python", "-m", "pipeline", verb, options.recipe, *words, *where, *options.flags]
    )
