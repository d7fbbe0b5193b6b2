"""Functions that Numba compiles, kept on disk where a folder for them can be written."""

from collections.abc import Callable
from typing import Any

import numba


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator: `numba.njit` that releases the GIL and keeps the machine code on disk.

    Numba keeps it beside the source or below HOME. Where neither can be written, as in a container
    without a home, each process compiles for itself, which takes seconds.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, nogil=True, **options)(function)
        except RuntimeError:  # Numba's answer when it has no place for the machine code
            return numba.njit(nogil=True, **options)(function)

    return decorate
