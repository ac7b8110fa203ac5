"""Host batches made ready on a GPU while it works on the one before."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

AHEAD = 2  # batches waiting on the device


def on_device(batches: Iterator[tuple[Tensor, ...]], device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """The same tuples of tensors on the device, in order.

    For a GPU a thread draws the batches, pins them and copies them on a stream of its own, `AHEAD` of them at most;
    the current stream waits for a copy on the device, the host never does. On a CPU nothing is gained by a thread that
    takes the cores from the step: the batches are handed on as they are.

    Raises:
        Whatever drawing a batch raised.
    """
    if device.type != "cuda":
        yield from (tuple(tensor.to(device) for tensor in batch) for batch in batches)
        return
    ready: queue.Queue[Any] = queue.Queue(AHEAD)
    stopped = threading.Event()
    stream = torch.cuda.Stream(device)

    def put(item: Any) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            with torch.cuda.device(device), torch.cuda.stream(stream):
                for batch in batches:
                    copies = tuple(tensor.pin_memory().to(device, non_blocking=True) for tensor in batch)
                    put((copies, stream.record_event()))
                    if stopped.is_set():
                        return
            put(None)
        except BaseException as error:  # handed to the thread that asked for the batches
            put(error)

    thread = threading.Thread(target=work, daemon=True, name="prefetch")
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            copies, copied = item
            current = torch.cuda.current_stream(device)
            current.wait_event(copied)
            for tensor in copies:
                tensor.record_stream(current)
            yield copies
    finally:
        stopped.set()
        thread.join()
