"""Lock files whose folder comes and goes."""

import fcntl
import os

import pytest

from vptsp_core.system import locks


def test_a_folder_that_its_last_holder_removes_just_now_is_made_again(tmp_path, monkeypatch):
    path, tries = tmp_path / "run" / ".lock", []

    def late(file, mode):
        tries.append(file)
        if len(tries) == 1:
            file.parent.rmdir()  # the other one's, between the two
        return open(file, mode)

    monkeypatch.setattr(locks, "open", late, raising=False)
    with locks.locked(path, "waiting"):
        assert path.exists()
    assert tries == [path, path] and not path.exists()


def test_a_child_that_outlives_its_killed_parent_holds_no_lock(tmp_path):
    """As a data worker does whose parent was killed: the next call would wait for it."""
    path, (told, tell), (stay, go) = tmp_path / "lock", os.pipe(), os.pipe()
    parent = os.fork()
    if not parent:
        os.close(go)
        with locks.locked(path, "waiting"):
            if not os.fork():
                os.write(tell, b"forked")
                os.read(stay, 1)  # until the test is done
                os._exit(0)
            os.read(stay, 1)
        os._exit(0)
    os.close(stay)
    assert os.read(told, 6) == b"forked"
    with open(path, "ab") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the parent's, while it lives
    os.kill(parent, 9)
    os.waitpid(parent, 0)
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(go)
