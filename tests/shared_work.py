"""Work for tests of `vptsp_core.runs.workers`: what another process imports and does."""

import os
import signal
import time
from pathlib import Path

import torch

from vptsp_core.errors import VptspError


def tell(item):
    """Where and how it was done."""
    return item, os.getpid(), torch.get_num_threads(), os.environ.get("CUDA_VISIBLE_DEVICES")


def work(item):
    """``("fail", ...)`` fails as a user's mistake does, ``("die", ...)`` kills its process; ``("sleep", folder)`` says
    that it began, and is not done for minutes."""
    kind, folder = item
    if kind == "fail":
        raise VptspError("its learning rate is wrong")
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "sleep":
        (Path(folder) / str(os.getpid())).touch()
        time.sleep(300)
    return item
