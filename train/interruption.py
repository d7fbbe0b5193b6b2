"""What makes training save, or save and end: a signal, a node that is preempted, room for more
workers.

Only the first rank looks, and decides for all.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from ray.train.v2._internal.execution.context import get_train_context

from cluster.endings import STOPPING, StoppedError, unmasked
from cluster.placement import room_for
from cluster.resources import Resources
from train.checkpoint import saved_step
from train.config import TrainConfig
from train.loop import CHECKPOINTS, Interruption, Job

STOP = "stop"
GROW = "grow"
BEGUN = "begun"
# Between two looks for new nodes. Nodes that join within this time restart the workers only once.
GROWTH_S = 60.0


class Interruptions:
    """Asks rank 0 to save, or to save and end.

    The reasons are a request of the driver, a node that is about to be preempted, or room for more
    workers. Ray's own `get_preemption_info` cannot serve: it is a barrier of all workers in each
    step, and workers that were left out of the group never reach it.
    """

    def __init__(self, config: TrainConfig, out: Path, resources: Resources, most: int) -> None:
        self.config = config
        self.out = out
        self.resources = resources
        self.most = most
        self.is_preempted = False
        self.has_begun = False
        self.group = self._possible()
        self.checked_s = time.monotonic()

    def __call__(self) -> Interruption:
        if not self.has_begun:
            (self.out / BEGUN).touch()
            self.has_begun = True

        if (self.out / STOP).exists() or self._has_grown():
            return "stop"

        # The notice stays in place: one save is enough.
        if (
            not self.is_preempted
            and get_train_context().preemption_context.preemption_info is not None
        ):
            self.is_preempted = True
            return "save"
        return ""

    def _has_grown(self) -> bool:
        """Whether more workers fit than at the last check; it checks once per GROWTH_S."""
        if not self.resources.min_workers or time.monotonic() - self.checked_s < GROWTH_S:
            return False

        before = self.group
        self.group = self._possible()
        self.checked_s = time.monotonic()
        return self.group > before

    def _possible(self) -> int:
        return largest_group(self.config, min(self.most, room_for(self.resources)))


def largest_group(config: TrainConfig, most: int) -> int:
    """The largest number of workers, up to `most`, that divides a batch; 0 when there is none.

    It is also a multiple of the replicas. A batch of 512 on up to 6 workers: 4.
    """
    sizes = range(most, 0, -1)
    return next(
        (
            size
            for size in sizes
            if not config.batch_size % size and not size % config.parallel.replicas
        ),
        0,
    )


@contextmanager
def stop_on_signal(job: Job) -> Iterator[None]:
    """SIGTERM and SIGUSR2 ask the workers to save and stop; while they start, which may take minutes,
    there is nothing to save, and the body ends with StoppedError at once.

    Only the main thread can handle signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        request_stop(job.out)
        if not (job.out / BEGUN).exists():
            raise KeyboardInterrupt  # all that Ray, which waits in C++, lets through

    before = {number: signal.signal(number, stop) for number in STOPPING}
    try:
        with unmasked():
            yield
    except KeyboardInterrupt as error:
        if not (job.out / STOP).exists():
            raise
        raise StoppedError(
            f"asked to stop by a signal while its workers started; step {saved_step(job.out / CHECKPOINTS)} is saved"
        ) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def request_stop(out: Path) -> None:
    """Ask the training that writes into `out` to save and stop; any process may call it."""
    (out / STOP).touch()
