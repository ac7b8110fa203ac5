"""A Ctrl-C that comes while data workers are forked: Python itself would drop it."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import determinism
import pytest

from vptsp_core.system.signals import ctrl_c_waits, end_with, sigterm_as_ctrl_c

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
FORKS = """
import os, signal, sys, torch
from vptsp_core.method.config import RunConfig
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


def test_a_process_that_was_forked_ends_with_its_parent():
    """Also where that was killed before the child could look: it is given whose child it is."""
    told, tell = os.pipe()
    parent = os.fork()
    if not parent:
        here = os.getpid()
        if not os.fork():
            time.sleep(0.3)  # the parent is gone by now
            os.write(tell, f"{os.getpid()}\n".encode())
            end_with(here)
            time.sleep(5)
            os.write(tell, b"still here")
        os._exit(0)
    os.waitpid(parent, 0)
    os.close(tell)
    assert os.read(told, 20).endswith(b"\n")
    assert os.read(told, 20) == b"", "it ended, and its end of the pipe with it"


KILLED = """
import os, signal, sys, time
from vptsp_core.method.config import RunConfig
from vptsp_core.data import load_benchmark, loading
from vptsp_core.data.loading import eval_transform
images = load_benchmark("folder", sys.argv[1]).test
os.register_at_fork(
    after_in_parent=lambda: os.kill(os.getpid(), signal.SIGKILL), after_in_child=lambda: time.sleep(0.5)
)
loading.decoders = lambda batches: 2
transform = eval_transform(RunConfig(dataset="folder", image_size=40, resize=40), (0.5,) * 3, (0.5,) * 3)
next(loading.eval_batches(images, transform, 1, loading.torch.device("cpu")))
"""


def test_no_data_worker_outlives_a_parent_that_was_killed_as_it_forked(tmp_path):
    """torch's worker watches whatever parent it finds, which is init by then."""
    images = determinism.write_images(tmp_path)
    command = [sys.executable, "-c", KILLED, str(images)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], start_new_session=True)
    assert process.wait(120) == -signal.SIGKILL
    until = time.monotonic() + 12  # torch itself looks every 5 s
    while (left := group(process.pid)) and time.monotonic() < until:
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def group(leader: int) -> list[int]:
    """The processes of a group that still run."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                state, _, pgid = file.read().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(pgid) == leader and state != "Z":
            found.append(int(name))
    return found
