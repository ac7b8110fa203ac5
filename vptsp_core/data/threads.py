"""Work on many images, shared out among threads (Pillow decodes and resizes outside of Python's lock)."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from vptsp_core.system.bars import bar

CHUNK = 128  # images a task, at most


class Threads:
    """Threads with a progress bar.

    Args:
        workers: how many.
        progress: show a bar.
    """

    def __init__(self, workers: int, progress: bool) -> None:
        self.workers, self.progress = workers, progress

    def run(
        self, task: Callable[[range], Any], count: int, title: str, after: Callable[[range], Any] = lambda chunk: None
    ) -> None:
        """``task`` for chunks of range(count) in the threads, ``after`` each in this one; the first error stops all."""
        size = max(1, min(CHUNK, count // (4 * self.workers)))
        running: dict[Future[Any], range] = {}
        with (
            ThreadPoolExecutor(self.workers) as pool,
            bar(title=title, total=count, show=self.progress, unit="images") as shown,
        ):

            def collect() -> None:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    chunk = running.pop(future)
                    future.result()
                    after(chunk)
                    shown.update(len(chunk))

            try:
                for start in range(0, count, size):
                    chunk = range(start, min(start + size, count))
                    running[pool.submit(task, chunk)] = chunk
                    if len(running) >= 2 * self.workers:
                        collect()
                while running:
                    collect()
            finally:
                pool.shutdown(cancel_futures=True)
