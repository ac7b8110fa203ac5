"""Ctrl-C and SIGTERM, and processes that end with their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import determinism
import psutil
import pytest

from vptsp_core.system.signals import Terminated, sigterm_as_ctrl_c

ROOT = Path(__file__).resolve().parents[2]


def test_sigterm_is_a_ctrl_c():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt) as caught, sigterm_as_ctrl_c():
        signal.raise_signal(signal.SIGTERM)
    assert isinstance(caught.value, Terminated) and signal.getsignal(signal.SIGTERM) == before


MASK = """
import signal
from concurrent.futures import ProcessPoolExecutor
from vptsp_core.system.processes import CONTEXT, starting
with starting(), ProcessPoolExecutor(1, mp_context=CONTEXT) as pool:
    print(signal.SIGINT in pool.submit(signal.pthread_sigmask, signal.SIG_BLOCK, []).result())
"""


def test_the_first_started_process_ignores_ctrl_c():
    """In a fresh Python, the first process also starts multiprocessing's resource tracker, which unblocks Ctrl-C."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    printed = subprocess.run([sys.executable, "-c", MASK], env=environment, capture_output=True, text=True, timeout=120)
    assert printed.stdout == "True\n", printed


DATA = """
import os, signal, sys, torch
from vptsp_core.method.config import RunConfig
from vptsp_core.data import load_benchmark, loading
from vptsp_core.data.loading import eval_transform
signal.signal(signal.SIGINT, signal.default_int_handler)
images = load_benchmark("folder", sys.argv[1]).test
loading.decoders = lambda batches: 2
transform = eval_transform(RunConfig(dataset="folder", image_size=40, resize=40), (0.5,) * 3, (0.5,) * 3)
batches = loading.eval_batches(images, transform, 1, torch.device("cpu"))
next(batches), next(batches)
print("two batches", flush=True)
sys.stdin.readline()
"""


@pytest.mark.posix("sends signals to groups of processes")
@pytest.mark.parametrize("how", ["ctrl-c", "kill -9"])
def test_no_data_worker_outlives_its_parent(tmp_path, how):
    """The script has no ``if __name__ == "__main__"``: it must not run again in each worker.

    It waits for one batch from each worker. A worker that ends during its first batch may fail to remove
    multiprocessing's temporary folder and print a traceback of its own.
    """
    script = tmp_path / "script.py"
    script.write_text(DATA)
    images = determinism.write_images(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, script, str(images)], env=environment, start_new_session=True, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == "two batches\n"
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    if how == "ctrl-c":
        os.killpg(process.pid, signal.SIGINT)  # like a terminal
    else:
        process.kill()
    printed = process.communicate(timeout=60)[1]
    assert printed.count("Traceback") == (how == "ctrl-c"), printed  # the script's own
    until = time.monotonic() + 30
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
        assert time.monotonic() < until, children
        time.sleep(0.1)
