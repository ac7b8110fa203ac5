"""Lock files: a waiting process says so, and a killed holder frees its lock."""

import contextlib
import errno
import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vptsp_core.system.locks import locked

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, pathlib
from vptsp_core.system.locks import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def holder(path):
    """Run another process that holds the lock until its input ends."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process


class Kills(io.StringIO):
    """Kill a process when something is written."""

    def __init__(self, process):
        super().__init__()
        self.process = process

    def write(self, text):
        self.process.kill()
        return super().write(text)


def test_a_waiting_process_says_so_and_a_killed_holder_frees_the_lock(tmp_path, monkeypatch):
    path = tmp_path / "run" / "lock"
    with holder(path) as process:
        monkeypatch.setattr(sys, "stderr", Kills(process))
        with locked(path, "run: another process trains it; waiting"):
            assert process.wait(10) != 0 and path.exists()
        assert sys.stderr.getvalue() == "run: another process trains it; waiting\n" and not path.exists()


def test_only_one_thread_holds_the_lock_even_if_file_and_folder_are_removed(tmp_path):
    """Each of three threads removes both when it is done. Two are never inside together."""
    inside, most = set(), []

    def work(name):
        for _ in range(30):
            with locked(tmp_path / "run" / "lock"):
                inside.add(name)
                most.append(len(inside))
                inside.discard(name)
            with contextlib.suppress(OSError):
                (tmp_path / "run").rmdir()

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 90 and not (tmp_path / "run" / "lock").exists()


@pytest.mark.posix("needs fcntl")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_reported_in_one_line(tmp_path, monkeypatch, capsys, number):
    def refuse(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with locked(tmp_path / "lock"):
        pass
    assert capsys.readouterr().err == f"{tmp_path}: no locks on this file system; run one process at a time\n"
    assert not list(tmp_path.iterdir())
