"""Logging: one event per line, on the terminal or in a log file; ranks above 0 only warn."""

import logging
import os
import sys
from functools import cache

from rich.console import Console
from rich.logging import RichHandler

# Packages whose lines below WARNING are about their own internals.
CHATTY = ("faiss", "urllib3", "matplotlib", "PIL", "git", "submitit", "fsspec", "asyncio")


def setup_logging(verbose: bool = False) -> None:
    """Log to standard error.

    On a terminal, which shows progress bars: only warnings. Elsewhere: INFO. `verbose`: everything.
    """
    if console().is_terminal:
        handler: logging.Handler = RichHandler(
            console=console(), show_path=verbose, omit_repeated_times=False
        )
        handler.setFormatter(logging.Formatter("%(message)s", datefmt="[%X]"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%S")
        )

    # RANK is set in the workers of Ray Train and in those of torchrun; other processes have none.
    is_rank_zero = os.environ.get("RANK", "0") == "0"
    is_quiet = console().is_terminal or not is_rank_zero
    level = logging.DEBUG if verbose else logging.WARNING if is_quiet else logging.INFO
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)


@cache
def console() -> Console:
    """The terminal of this process.

    Log lines and bars both go through it, so that they do not overwrite each other.
    """
    return Console(stderr=True)
