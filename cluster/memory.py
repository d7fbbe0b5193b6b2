"""Private memory of a process: RssAnon of /proc, sampled every 20 ms.

Pages of mapped files are not counted: processes share them, and the kernel can drop them.
"""

import threading
from pathlib import Path

SAMPLE_EVERY_S = 0.02
STATUS = Path("/proc/self/status")


class PeakMemory:
    """The largest private memory of this process during the context, in MiB."""

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
        self.peak_mb = max(self.peak_mb, private_mb())  # since the last sample


def private_mb() -> float:
    """Resident private memory of this process, in MiB; the kernel reports kB of 1024 bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) / 1024
