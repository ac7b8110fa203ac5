"""A Ctrl-C that comes while data workers are forked: Python itself would drop it."""

import signal
import subprocess
import sys
import threading

import determinism
import pytest

from vptsp_core.signals import ctrl_c_waits, sigterm_as_ctrl_c

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
FORKS = """
import os, signal, sys, torch
from vptsp_core.config import RunConfig
from vptsp_core.data import load_benchmark, loading
signal.signal(signal.SIGINT, signal.default_int_handler)
images = load_benchmark("folder", sys.argv[1]).test
sent = []
def press():
    if not sent:
        sent.append(1)
        os.kill(os.getpid(), signal.SIGINT)
os.register_at_fork(after_in_parent=press)
batches = loading.eval_batches(images, lambda image: torch.zeros(3, 4, 4), 2, torch.device("cpu"))
try:
    print(len(list(batches)), "batches")
except KeyboardInterrupt:
    print("stopped")
"""


def test_one_that_comes_in_the_hooks_of_a_fork_is_not_lost(tmp_path):
    data = determinism.write_images(tmp_path)
    done = subprocess.run([sys.executable, "-c", FORKS, str(data)], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["stopped"], done.stdout + done.stderr
    assert done.stderr == ""


@pytest.fixture
def ctrl_c():
    """Python's own handler, which a shell's & takes away."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_waits_and_then_is_raised_once(number, ctrl_c):
    done = []
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), sigterm_as_ctrl_c():
        with ctrl_c_waits():
            for _ in range(2):
                signal.raise_signal(number)
            done.append("all of it")
        done.append("more")
    assert done == ["all of it"] and signal.getsignal(number) == before


def test_what_is_ignored_stays_ignored(ctrl_c):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with ctrl_c_waits():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_elsewhere_than_in_the_main_thread_nothing_changes():
    found = []

    def look():
        with ctrl_c_waits():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT)]
