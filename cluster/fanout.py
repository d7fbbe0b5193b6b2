"""Map a method of an actor class over many items: bounded in flight, retried, in completion order.

Each worker process builds one object of the class (say, a loaded backbone) and is handed one item
after another. When a process or its node dies, what it had finished is kept, its unfinished items
go to the others, and a new one is started. A method that is a generator yields how much of its item
is done, for progress, and returns the result.
"""

import inspect
import logging
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import ray
from ray.exceptions import (
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from cluster.memory import PeakMemory
from cluster.placement import resolve
from cluster.resources import Resources
from cluster.threads import limit_loaded_libraries, limit_threads

IN_FLIGHT = 2  # calls per worker: one runs, one waits at its door
START_ATTEMPTS = 4
PATIENCE_S = 60.0
COUNT_EVERY_S = 1.0  # between two counts of one call
LOST = (RayActorError, NodeDiedError, ObjectLostError, OutOfMemoryError, WorkerCrashedError)

T = TypeVar("T")
_Call: TypeAlias = ray.ObjectRef | ray.ObjectRefGenerator
logger = logging.getLogger(__name__)


class Pool:
    """Workers of one class; a context manager that ends them with its body."""

    _num_open = 0
    """Pools of this process: steps that run beside each other have one each."""

    def __init__(
        self, worker: type, *args: object, resources: Resources, max_workers: int | None = None
    ) -> None:
        """Build `worker(*args)` in each process of `resources`; processes start with the first
        item, never more of them than items or `max_workers`.
        """
        self._worker = worker
        self._args = [ray.put(arg) for arg in args]
        self._resources = resolve(resources, max_workers)
        self._seats: list[_Seat] = []
        self._losses = Counter[str]()
        """How many workers were lost on each node."""
        self.peaks_mb: dict[_Seat, float] = {}
        """The most memory that each worker process took in a call, since somebody cleared this."""

    def __enter__(self) -> "Pool":
        Pool._num_open += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        Pool._num_open -= 1
        for seat in self._seats:
            ray.kill(seat.actor)
        self._seats = []

    def map(
        self,
        method: str,
        items: Sequence[T],
        *shared: object,
        retries: int = 3,
        on_count: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[T, Any]]:
        """Yield (item, worker.method(item, *shared)) for each item as it completes; `shared`
        travels once.

        An item is given to a worker again when the worker died, at most `retries` times; methods
        must bear that. An exception of the method itself propagates at once, with a note that names
        the item. `on_count` is called with what generator methods have counted inside the
        unfinished items, all together (`Meter.under_way`).
        """
        references = [ray.put(value) for value in shared]
        work = _Work(items, retries)
        while len(self._seats) < min(self._resources.workers, len(items)):
            self._seats.append(self._new_seat())

        try:
            while work.remaining:
                self._hand_out(work, method, references)
                event = self._next_event()
                if event is None:
                    continue

                seat, call = event
                index = seat.calls.get(call)
                try:
                    answer = ray.get(
                        next(call) if isinstance(call, ray.ObjectRefGenerator) else call
                    )
                except RayTaskError as error:
                    raise _named(
                        error, self._worker, method, None if index is None else items[index]
                    ) from error
                except LOST as error:
                    self._replace(seat, error, work)
                    continue

                if index is None:
                    seat.starting = None
                elif isinstance(answer, int):
                    seat.counts[index] = answer
                    self._tell(on_count)
                else:
                    del seat.calls[call]
                    seat.counts.pop(index, None)
                    self._tell(on_count)
                    self.peaks_mb[seat] = max(self.peaks_mb.get(seat, 0.0), answer.peak_mb)
                    yield work.done(index), answer.result
        finally:
            for seat in self._seats:
                seat.calls.clear()
                seat.counts.clear()

    def _tell(self, on_count: Callable[[int], None] | None) -> None:
        if on_count:
            on_count(sum(sum(seat.counts.values()) for seat in self._seats))

    def _hand_out(self, work: "_Work[T]", method: str, references: list[ray.ObjectRef]) -> None:
        """Give waiting items to the started workers that have least to do."""
        is_counted = inspect.isgeneratorfunction(inspect.unwrap(getattr(self._worker, method)))
        while work.waiting:
            started = [seat for seat in self._seats if seat.starting is None]
            seat = min(started, key=lambda seat: len(seat.calls), default=None)
            in_flight = IN_FLIGHT if len(work.waiting) > len(self._seats) else 1
            if seat is None or len(seat.calls) >= in_flight:
                return
            index, item = work.take()
            remote = (
                seat.actor.stream.options(num_returns="streaming")
                if is_counted
                else seat.actor.call
            )
            seat.calls[remote.remote(method, item, *references)] = index

    def _next_event(self) -> "tuple[_Seat, _Call] | None":
        """A worker that has started, counted, finished a call or died; nothing when that takes very
        long.
        """
        owners = {call: seat for seat in self._seats for call in seat.pending()}
        ready, _ = ray.wait(list(owners), num_returns=1, timeout=PATIENCE_S)
        if ready:
            return owners[ready[0]], ready[0]
        if all(seat.starting is not None for seat in self._seats):
            self._say_what_is_awaited()

        return None

    def _say_what_is_awaited(self) -> None:
        """Workers without a process wait for room on a node; the others import their libraries."""
        placed, _ = ray.wait(
            [seat.placed for seat in self._seats], num_returns=len(self._seats), timeout=0
        )
        num_without = len(self._seats) - len(placed)

        if num_without and Pool._num_open > 1:
            logger.debug("workers=%d wait for those of another step to end", num_without)
        elif num_without:
            logger.warning(
                "workers=%d of %d wait for room on a node, each asks for %s",
                num_without,
                len(self._seats),
                self._resources.per_worker(),
            )
        else:
            logger.info("workers=%d start: they import their libraries", len(self._seats))

    def _replace(self, seat: "_Seat", error: Exception, work: "_Work[T]") -> None:
        """A new worker in the place of a dead one, whose items wait again."""
        name = self._worker.__name__
        unfinished = list(seat.calls.values())
        self._seats.remove(seat)
        ray.kill(seat.actor)
        node = seat.node()
        self._losses[node] += 1
        cause = " ".join(str(error).split())[:400]
        logger.warning(
            "worker=%s died=true node=%s deaths_there=%d items_retried=%d cause=%r",
            name,
            node,
            self._losses[node],
            len(unfinished),
            cause,
        )

        if unfinished and work.give_back(unfinished) > work.retries:
            raise RuntimeError(
                f"{name} died {work.retries + 1} times on {work.items[unfinished[0]]!r} "
                f"({self._where()}): a worker must survive its items; look for missing memory or a "
                "crash in the cause above, or leave the item out"
            ) from error
        if not unfinished and seat.attempt >= START_ATTEMPTS:
            raise RuntimeError(
                f"{name} died {seat.attempt} times while starting ({self._where()}): it must "
                "start; look for missing memory or a crash in the cause above"
            ) from error

        self._seats.append(self._new_seat(attempt=1 if unfinished else seat.attempt + 1))

    def _where(self) -> str:
        """'workers lost on node-7: 3, on node-2: 1'."""
        counts = [f"on {node}: {count}" for node, count in self._losses.most_common()]
        return f"workers lost {', '.join(counts)}"

    def _new_seat(self, attempt: int = 1) -> "_Seat":
        actor: Any = (
            ray.remote(PoolWorker)
            .options(**self._resources.actor_options())
            .remote(self._resources.threads)
        )
        return _Seat(
            actor, actor.node.remote(), actor.start.remote(self._worker, *self._args), attempt
        )


class _Work(Generic[T]):
    """The items of one map, by index: which of them wait, how many are not done, how often workers
    died on each.
    """

    def __init__(self, items: Sequence[T], retries: int) -> None:
        self.items = items
        self.retries = retries
        self.waiting = deque(range(len(items)))
        self.remaining = len(items)
        self.deaths = Counter[int]()

    def take(self) -> tuple[int, T]:
        index = self.waiting.popleft()
        return index, self.items[index]

    def give_back(self, unfinished: Sequence[int]) -> int:
        """Let items of a dead worker wait again; how often workers died on the oldest, held
        responsible.
        """
        self.waiting.extendleft(reversed(unfinished))
        self.deaths[unfinished[0]] += 1
        return self.deaths[unfinished[0]]

    def done(self, index: int) -> T:
        self.remaining -= 1
        return self.items[index]


class _Seat:
    """One worker process as the pool sees it."""

    def __init__(
        self, actor: Any, placed: ray.ObjectRef, starting: ray.ObjectRef, attempt: int
    ) -> None:
        self.actor = actor
        self.placed = placed
        """The name of the worker's node, as soon as it has a process there."""
        self.starting: ray.ObjectRef | None = starting
        self.attempt = attempt
        self.calls: dict[_Call, int] = {}
        """Items that the worker was handed, by index."""
        self.counts: dict[int, int] = {}
        """What its generator methods have counted inside those items."""

    def node(self) -> str:
        """Name of its node; of a worker that was lost before it had one, that."""
        try:
            return ray.get(self.placed, timeout=0)
        except (GetTimeoutError, *LOST):
            return "no node"

    def pending(self) -> "list[_Call]":
        """What the pool waits for."""
        return list(self.calls) if self.starting is None else [self.starting]


class PoolWorker:
    """Lives in the worker process: sets its threads before the worker's class, and with it torch,
    is imported.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        limit_threads(threads)

    def node(self) -> str:
        """Name of the node that the process runs on."""
        return socket.gethostname()

    def start(self, worker: type, *args: object) -> None:
        self.worker = worker(*args)
        limit_loaded_libraries(self.threads)

    def call(self, method: str, item: object, *shared: object) -> "Answer":
        """What the method returns."""
        with PeakMemory() as memory:
            result = getattr(self.worker, method)(item, *shared)
        return Answer(result, memory.peak_mb)

    def stream(self, method: str, item: object, *shared: object) -> "Iterator[int | Answer]":
        """What the generator method yields, but at most once a second, and then what it returns."""
        counted_s = time.monotonic()
        with PeakMemory() as memory:
            counts = getattr(self.worker, method)(item, *shared)
            while True:
                try:
                    count = next(counts)
                except StopIteration as end:
                    result = end.value
                    break
                if time.monotonic() - counted_s >= COUNT_EVERY_S:
                    counted_s = time.monotonic()
                    yield int(count)

        yield Answer(result, memory.peak_mb)


class Answer(NamedTuple):
    """What a call of a worker's method returned, and the peak memory of the process until then."""

    result: Any
    peak_mb: float


def _named(error: RayTaskError, worker: type, method: str, item: object) -> BaseException:
    """The exception of the worker's own code, with a note of what it was working on."""
    cause = error.cause if isinstance(error.cause, BaseException) else error
    where = f"{worker.__name__}()" if item is None else f"{worker.__name__}.{method}({item!r:.300})"
    cause.add_note(f"raised by {where} in a worker process")
    return cause
