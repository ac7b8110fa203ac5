"""Give libraries a cache folder (compiled code, fonts, weights) if the user's cannot be written.

This happens in containers and on clusters. Without a cache folder, UMAP (by numba) cannot be imported, and matplotlib,
torch and the hub warn or fail.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import stat
import tempfile
from pathlib import Path

# The variable that sets each library's folder. Variables that the user has set stay.
PLACES = {
    "NUMBA_CACHE_DIR": "numba", "MPLCONFIGDIR": "matplotlib", "TORCHINDUCTOR_CACHE_DIR": "compiled",
    "TRITON_CACHE_DIR": "triton",
}  # fmt: skip


def prepare() -> None:
    """Set `PLACES` to a temporary folder if the user's cache folder cannot be written, before libraries read them."""
    if _writable(user_folder()):
        return
    try:
        place = _private_folder()
    except OSError:  # no temporary folder either: each library reports its own problem
        return
    for variable, name in PLACES.items():
        os.environ.setdefault(variable, str(place / name))
    weights = Path(os.environ.get("HF_HOME", user_folder() / "huggingface"))
    if "HF_HUB_CACHE" not in os.environ and not _writable(weights) and not weights.is_dir():
        os.environ["HF_HUB_CACHE"] = str(place / "hub")  # an existing folder may hold the weights, so it stays in use


def user_folder() -> Path:
    """Return the user's cache folder, by default ``~/.cache``. Without a home folder it is a relative path."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))


def _writable(folder: Path) -> bool:
    """Return whether the folder can be written, or made. Nothing is written to find out."""
    if not folder.is_absolute():
        return False
    existing = next(each for each in (folder, *folder.parents) if os.path.lexists(each))
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def _private_folder() -> Path:
    """Return the temporary folder that all processes of this user share.

    Code in it is executed. If other users can write it, return a new folder for this process alone.
    """
    if hasattr(os, "getuid"):  # without getuid (Windows), the temporary folder belongs to the user
        place = Path(tempfile.gettempdir(), f"vptsp-cache-{os.getuid()}")
        with contextlib.suppress(FileExistsError):
            place.mkdir(mode=0o700)
        status = place.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022:
            return place
    place = Path(tempfile.mkdtemp(prefix="vptsp-cache-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place
