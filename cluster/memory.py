"""Memory that a process alone holds (RssAnon of /proc, sampled every 20 ms): pages of mapped files,
which processes share and the kernel can drop, are not counted.
"""

import threading
from pathlib import Path

SAMPLE_EVERY_S = 0.02
STATUS = Path("/proc/self/status")


class PeakMemory:
    """The most private memory of this process while the context lasts, in MB."""

    def __enter__(self) -> "PeakMemory":
        self.peak_mb = private_mb()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="memory", daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_EVERY_S):
            self.peak_mb = max(self.peak_mb, private_mb())

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        self.peak_mb = max(self.peak_mb, private_mb())


def private_mb() -> float:
    """Resident private pages of this process."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) / 1024
