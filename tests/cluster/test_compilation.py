"""Functions that Numba compiles, with and without a place for their machine code."""

import pytest
from numba.core import caching

from cluster.compilation import compiled


def double(value: int) -> int:
    return 2 * value


def test_a_function_is_compiled_where_its_machine_code_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither beside the source nor below HOME: Numba has no locator left."""
    monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [])
    function = compiled()(double)
    assert function(21) == 42
    assert function.nopython_signatures
    assert not function.stats.cache_path


def test_machine_code_is_written_where_it_can_be() -> None:
    assert compiled()(double).stats.cache_path
