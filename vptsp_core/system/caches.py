"""A place for what libraries keep between runs (compiled code, fonts, weights) where the user's cannot be written.

Containers and clusters are like that: numba refuses to import UMAP, and matplotlib, torch and the hub warn or fail.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import stat
import tempfile
from pathlib import Path

# Variables that say where each library keeps it; what the user has set is not changed.
PLACES = {
    "NUMBA_CACHE_DIR": "numba", "MPLCONFIGDIR": "matplotlib", "TORCHINDUCTOR_CACHE_DIR": "compiled",
    "TRITON_CACHE_DIR": "triton",
}  # fmt: skip


def prepare() -> None:
    """Set `PLACES` to a temporary folder where the user's cache folder cannot be written; called before all imports."""
    if _writable(user_folder()):
        return
    try:
        place = _private_folder()
    except OSError:  # no temporary folder either: each library says what it lacks
        return
    for variable, name in PLACES.items():
        os.environ.setdefault(variable, str(place / name))
    weights = Path(os.environ.get("HF_HOME", user_folder() / "huggingface"))
    if "HF_HUB_CACHE" not in os.environ and not _writable(weights) and not weights.is_dir():
        os.environ["HF_HUB_CACHE"] = str(place / "hub")  # where there is a folder, it may hold the weights


def user_folder() -> Path:
    """The user's cache folder, ``~/.cache`` if nothing else is set; not absolute where there is no home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))


def _writable(folder: Path) -> bool:
    """Whether the folder can be written, or made; nothing is written to find out."""
    if not folder.is_absolute():
        return False
    there = next(each for each in (folder, *folder.parents) if os.path.lexists(each))
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _private_folder() -> Path:
    """The same temporary folder for every process of this user, or one for this process alone where that is not the
    user's: what is kept there is executed.
    """
    if hasattr(os, "getuid"):  # elsewhere the temporary folder is the user's own already
        place = Path(tempfile.gettempdir(), f"vptsp-cache-{os.getuid()}")
        with contextlib.suppress(FileExistsError):
            place.mkdir(mode=0o700)
        found = place.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
            return place
    place = Path(tempfile.mkdtemp(prefix="vptsp-cache-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place
