"""Map a method of an actor class over many items: bounded in flight, retried, in completion order.

Each worker process builds one object of the class (say, a loaded backbone) and is handed one item after another. When a
process or its node dies, what it had finished is kept, its unfinished items go to the others, and a new one is started.
"""

import logging
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from cluster.resources import Resources
from cluster.threads import limit_loaded_libraries, limit_threads

IN_FLIGHT = 2  # calls per worker: one runs, one waits at its door
START_ATTEMPTS = 4
PATIENCE_S = 60.0
LOST = (RayActorError, NodeDiedError, ObjectLostError, OutOfMemoryError, WorkerCrashedError)

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Pool:
    """Workers of one class; a context manager that ends them with its body."""

    def __init__(self, worker: type, *args: object, resources: Resources, max_workers: int | None = None) -> None:
        """Build `worker(*args)` in each process of `resources`; processes start with the first item, never more
        of them than items or `max_workers`."""
        self._worker = worker
        self._args = [ray.put(arg) for arg in args]
        self._resources = resources.resolve(max_workers)
        self._seats: list[_Seat] = []

    def __enter__(self) -> "Pool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for seat in self._seats:
            ray.kill(seat.actor)
        self._seats = []

    def map(self, method: str, items: Sequence[T], *shared: object, retries: int = 3) -> Iterator[tuple[T, Any]]:
        """Yield (item, worker.method(item, *shared)) for each item as it completes; `shared` travels once.

        An item is given to a worker again when the worker died, at most `retries` times; methods must bear that.
        An exception of the method itself propagates at once, with a note that names the item.
        """
        references = [ray.put(value) for value in shared]
        waiting, deaths, remaining = deque(range(len(items))), Counter[int](), len(items)
        while len(self._seats) < min(self._resources.workers, len(items)):
            self._seats.append(self._new_seat())
        try:
            while remaining:
                self._hand_out(waiting, items, method, references)
                event = self._next_event()
                if event is None:
                    continue
                seat, reference = event
                index = seat.calls.get(reference)
                try:
                    result = ray.get(reference)
                except RayTaskError as error:
                    raise _named(error, self._worker, method, None if index is None else items[index]) from error
                except LOST as error:
                    self._replace(seat, error, items, waiting, deaths, retries)
                    continue
                if index is None:
                    seat.starting = None
                else:
                    del seat.calls[reference]
                    remaining -= 1
                    yield items[index], result
        finally:
            for seat in self._seats:
                seat.calls.clear()

    def _hand_out(self, waiting: deque[int], items: Sequence[T], method: str, references: list[ray.ObjectRef]) -> None:
        """Give waiting items to the started workers that have least to do."""
        while waiting:
            started = [seat for seat in self._seats if seat.starting is None]
            seat = min(started, key=lambda seat: len(seat.calls), default=None)
            in_flight = IN_FLIGHT if len(waiting) > len(self._seats) else 1
            if seat is None or len(seat.calls) >= in_flight:
                return
            index = waiting.popleft()
            seat.calls[seat.actor.call.remote(method, items[index], *references)] = index

    def _next_event(self) -> "tuple[_Seat, ray.ObjectRef] | None":
        """A worker that has started, finished a call or died; nothing when that takes very long."""
        owners = {reference: seat for seat in self._seats for reference in seat.references()}
        ready, _ = ray.wait(list(owners), num_returns=1, timeout=PATIENCE_S)
        if ready:
            return owners[ready[0]], ready[0]
        if all(seat.starting is not None for seat in self._seats):
            logger.warning("workers=%d waiting_for_room=true asked=%s", len(self._seats), self._resources)
        return None

    def _replace(
        self,
        seat: "_Seat",
        error: Exception,
        items: Sequence[T],
        waiting: deque[int],
        deaths: Counter[int],
        retries: int,
    ) -> None:
        """A new worker in the place of a dead one; its items wait again, the oldest is held responsible."""
        unfinished = list(seat.calls.values())
        waiting.extendleft(reversed(unfinished))
        self._seats.remove(seat)
        ray.kill(seat.actor)
        cause = " ".join(str(error).split())[:400]
        logger.warning("worker=%s died=true items_retried=%d cause=%r", self._worker.__name__, len(unfinished), cause)
        if unfinished:
            deaths[unfinished[0]] += 1
            if deaths[unfinished[0]] > retries:
                raise RuntimeError(
                    f"{self._worker.__name__} died {retries + 1} times on {items[unfinished[0]]!r}: a worker must "
                    "survive its items; look for missing memory or a crash in the cause above, or leave the item out"
                ) from error
        elif seat.attempt >= START_ATTEMPTS:
            raise RuntimeError(
                f"{self._worker.__name__} died {seat.attempt} times while starting: it must start; "
                "look for missing memory or a crash in the cause above"
            ) from error
        self._seats.append(self._new_seat(attempt=1 if unfinished else seat.attempt + 1))

    def _new_seat(self, attempt: int = 1) -> "_Seat":
        actor: Any = ray.remote(PoolWorker).options(**self._resources.actor_options()).remote(self._resources.threads)
        return _Seat(actor, actor.start.remote(self._worker, *self._args), attempt)


class _Seat:
    """One worker process as the pool sees it."""

    def __init__(self, actor: Any, starting: ray.ObjectRef, attempt: int) -> None:
        self.actor = actor
        self.starting: ray.ObjectRef | None = starting
        self.attempt = attempt
        self.calls: dict[ray.ObjectRef, int] = {}

    def references(self) -> list[ray.ObjectRef]:
        return list(self.calls) if self.starting is None else [self.starting]


class PoolWorker:
    """Lives in the worker process: sets its threads before the worker's class, and with it torch, is imported."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        limit_threads(threads)

    def start(self, worker: type, *args: object) -> None:
        self.worker = worker(*args)
        limit_loaded_libraries(self.threads)

    def call(self, method: str, item: object, *shared: object) -> Any:
        return getattr(self.worker, method)(item, *shared)


def _named(error: RayTaskError, worker: type, method: str, item: object) -> BaseException:
    """The exception of the worker's own code, with a note of what it was working on."""
    cause = error.cause if isinstance(error.cause, BaseException) else error
    where = f"{worker.__name__}()" if item is None else f"{worker.__name__}.{method}({item!r:.300})"
    cause.add_note(f"raised by {where} in a worker process")
    return cause
