"""Batches made ahead by a thread, in memory that is used again."""

import queue
import threading
from collections.abc import Callable, Generator
from contextlib import nullcontext

import torch
from torch import Tensor

from train.batch import Batch

PREFETCH = 2  # batches that are ready before they are asked for

Buffers = dict[str, Tensor]
"""Memory for the vectors of a batch, by column; allocated at the first use and then reused."""


def prefetched(
    make: Callable[[int, Buffers], Batch], steps: range, device: torch.device
) -> Generator[Batch, None, None]:
    """The batches of some steps in order, made and copied to the device by a thread.

    `make` gets a step and buffers for its batch. An exception of the thread is raised here. A batch
    stays valid until the next but one is requested: its buffers are then used again, because
    touching new memory takes as long as the copy.
    """
    # `free` counts the batches that the thread may still make ahead. The thread blocks on it and
    # never on the queue, so that it can be woken at the end.
    ready: queue.Queue[Batch | BaseException] = queue.Queue(PREFETCH)
    free = threading.Semaphore(PREFETCH)
    ended = threading.Event()

    def produce() -> None:
        try:
            copies = torch.cuda.Stream(device) if device.type == "cuda" else None

            # One set per batch that is ready, one for the batch in use, and one for the batch
            # before it, which stays valid until then.
            buffers: list[Buffers] = [{} for _ in range(PREFETCH + 2)]
            for step in steps:
                free.acquire()
                if ended.is_set():
                    return
                batch = make(step, buffers[step % len(buffers)])
                with torch.cuda.stream(copies) if copies else nullcontext():
                    batch = batch.to(device)
                if copies:
                    copies.synchronize()  # the step must not find half a batch on the device
                ready.put(batch)
        except BaseException as error:
            ready.put(error)

    thread = threading.Thread(target=produce, name="batches", daemon=True)
    thread.start()
    try:
        for _ in steps:
            batch = ready.get()
            if isinstance(batch, BaseException):
                raise batch
            free.release()
            yield batch
    finally:
        ended.set()
        free.release()  # wake the thread if it waits
        thread.join()
