"""Peak memory against blocks of known size."""

import numpy as np

from cluster.memory import PeakMemory, private_mb


def test_peak_memory_sees_what_was_freed_before_the_end() -> None:
    before = private_mb()
    with PeakMemory() as memory:
        block = np.ones(200 << 20, np.uint8)
        assert private_mb() > before + 150
        del block
    assert memory.peak_mb >= before
