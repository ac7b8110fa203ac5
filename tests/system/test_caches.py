"""If the user's cache folder cannot be written, the libraries use a temporary folder."""

import os
import subprocess
import sys

import pytest

from vptsp_core.system import caches

NOWHERE = "/dev/null/home"
ASK = "import os, vptsp_core; print(*(os.environ.get(name) for name in {names}), sep='\\n')"


@pytest.fixture
def unset(monkeypatch, tmp_path):
    """Return a monkeypatch with the environment of a container: no cache is set, the temporary folder is empty."""
    for name in (*caches.PLACES, "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return monkeypatch


def asked(names) -> list[str]:
    command = [sys.executable, "-c", ASK.format(names=names)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[:-1]


@pytest.mark.skipif(os.name == "nt", reason="needs a folder that even root cannot write")
def test_without_a_writable_home_every_library_has_a_folder(unset, tmp_path):
    unset.setenv("HOME", NOWHERE)
    unset.setenv("TRITON_CACHE_DIR", "/mine")
    found = asked((*caches.PLACES, "HF_HUB_CACHE"))
    own = tmp_path / f"vptsp-cache-{os.getuid()}"
    kept = [str(own / name) for name in ("numba", "matplotlib", "compiled")]
    assert found == [*kept, "/mine", str(own / "hub")] and own.stat().st_mode & 0o077 == 0
    unset.setattr("tempfile.tempdir", str(tmp_path))
    assert caches._private_folder() == own, "the same for every process"


def test_with_a_writable_home_nothing_is_set(unset, tmp_path):
    unset.setenv("HOME", str(tmp_path))
    before = dict(os.environ)
    caches.prepare()
    assert dict(os.environ) == before and not list(tmp_path.iterdir())


def test_existing_weights_stay_in_use(unset, tmp_path):
    (tmp_path / "huggingface").mkdir()
    unset.setattr(caches, "_writable", lambda folder: False)
    unset.setenv("XDG_CACHE_HOME", str(tmp_path))
    unset.setattr("tempfile.tempdir", str(tmp_path))
    before = dict(os.environ)
    try:
        caches.prepare()
        assert "NUMBA_CACHE_DIR" in os.environ and "HF_HUB_CACHE" not in os.environ
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.mark.skipif(os.name == "nt", reason="file modes of POSIX")
def test_a_folder_that_other_users_can_write_is_not_used(unset, tmp_path):
    unset.setattr("tempfile.tempdir", str(tmp_path))
    theirs = tmp_path / f"vptsp-cache-{os.getuid()}"
    theirs.mkdir()
    theirs.chmod(0o777)
    assert caches._private_folder() != theirs
