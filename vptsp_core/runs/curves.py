"""A run's history as curves in TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vptsp_core.errors import VptspError
from vptsp_core.method.loop import Row
from vptsp_core.runs.selection import HELD_OUT, NOT_METRICS


class Curves:
    """A callback for ``on_epoch`` of `runs.run.run`. It writes each epoch once to ``folder`` and then calls ``then``.

    The first call writes the whole history so far. TensorBoard then hides the curves of earlier processes (its
    ``purge_step``), so a run that resumes shows every epoch once.
    Raises VptspError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, then: Callable[[list[Row]], None] | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            fault = "tensorboard is not installed: pip install tensorboard, or leave --tensorboard out"
            raise VptspError(fault) from None
        self.folder, self.then, self._open = folder, then, SummaryWriter
        self.writer: Any = None
        self._written = 0  # rows

    def __call__(self, history: list[Any]) -> None:
        """Write the values of a history (rows, by name) that are new. NaN is skipped."""
        if self.writer is None:
            self.writer = self._open(self.folder, purge_step=0)
        for row in history[self._written :]:
            for name, value in row.items():
                if name != "epoch" and not math.isnan(value):
                    self.writer.add_scalar(tag(name), value, int(row["epoch"]))
        self._written = len(history)
        self.writer.flush()
        if self.then is not None:
            self.then(history)

    def close(self) -> None:
        """End the writer's thread, and close its file."""
        if self.writer is not None:
            self.writer.close()


def tag(name: str) -> str:
    """Return TensorBoard's name, "<group>/<name>", for a column of the history."""
    if name in NOT_METRICS:
        return f"training/{name}"
    return f"validation/{name.removeprefix(HELD_OUT)}" if name.startswith(HELD_OUT) else f"test/{name}"
