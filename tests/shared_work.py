"""Functions that other processes run in the tests of `vptsp_core.runs.workers`."""

import os
import signal
import time
from pathlib import Path

import torch

from vptsp_core.errors import VptspError


def tell(item):
    """Return the item, and the process, threads and GPU that did it."""
    return item, os.getpid(), torch.get_num_threads(), os.environ.get("CUDA_VISIBLE_DEVICES")


def work(item):
    """Fail with an error of a user ("fail"), kill the process ("die"), write a file and sleep ("sleep"), or return."""
    kind, folder = item
    if kind == "fail":
        raise VptspError("its learning rate is wrong")
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "sleep":
        (Path(folder) / str(os.getpid())).touch()
        time.sleep(300)
    return item
