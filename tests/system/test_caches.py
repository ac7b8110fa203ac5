"""Where the user's cache folder cannot be written, libraries keep what they keep in a temporary folder."""

import os
import subprocess
import sys

import pytest

from vptsp_core.system import caches

NOWHERE = "/dev/null/home"


@pytest.fixture
def unset(monkeypatch, tmp_path):
    """The environment of a container: no cache is set anywhere, and the temporary folder is empty."""
    for name in (*caches.PLACES, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return monkeypatch


@pytest.mark.skipif(os.name == "nt", reason="needs a place that cannot be written by root either")
def test_numba_finds_it(unset, tmp_path):
    unset.setenv("HOME", NOWHERE)
    unset.setenv("NUMBA_CACHE_LOCATOR_CLASSES", "UserProvidedCacheLocator,UserWideCacheLocator")  # no site-packages
    code = "import numba\n\n\n@numba.njit(cache=True)\ndef one():\n    return 1\n\n\nassert one() == 1\n"
    (tmp_path / "compiled.py").write_text(code)
    for first, works in (("import vptsp_core; ", True), ("", False)):
        command = [sys.executable, "-c", f"{first}import sys; sys.path.insert(0, {str(tmp_path)!r}); import compiled"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode == 0) is works, done.stderr


def test_with_a_writable_home_nothing_is_set(unset, tmp_path):
    unset.setenv("HOME", str(tmp_path))
    before = dict(os.environ)
    caches.prepare()
    assert dict(os.environ) == before and not list(tmp_path.iterdir())


def test_the_cache_of_the_hub_moves_unless_it_is_there(monkeypatch, tmp_path):
    monkeypatch.setattr(caches, "user_folder", lambda: tmp_path)
    monkeypatch.setattr(caches, "_writable", lambda folder: False)
    monkeypatch.setattr(os, "environ", {})
    caches.prepare()
    assert os.environ["HF_HUB_CACHE"].endswith("hub")
    (tmp_path / "huggingface").mkdir()
    monkeypatch.setattr(os, "environ", {})
    caches.prepare()
    assert "HF_HUB_CACHE" not in os.environ and os.environ.keys() == caches.PLACES.keys()
