"""A place for what libraries keep between runs (compiled code, fonts) where the user's cannot be written.

Containers and clusters are like that: numba refuses to import UMAP, and matplotlib and torch warn or fail.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

# Variables that say where each library keeps it; what the user has set is not changed.
PLACES = {
    "NUMBA_CACHE_DIR": "numba", "MPLCONFIGDIR": "matplotlib", "TORCHINDUCTOR_CACHE_DIR": "compiled",
    "TRITON_CACHE_DIR": "triton",
}  # fmt: skip


def prepare() -> None:
    """Set `PLACES`, and the Hub's cache, to a temporary folder where the user's cache folder cannot be written.

    It is called before all imports. The processes that this one starts use the same folder; it is deleted at the end.
    """
    if _writable(user_folder()) or os.environ.keys() >= PLACES.keys():
        return
    place = Path(tempfile.mkdtemp(prefix="vptsp-cache-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    for variable, name in PLACES.items():
        os.environ.setdefault(variable, str(place / name))
    if not (user_folder() / "huggingface").exists():  # weights that are there stay in use
        os.environ.setdefault("HF_HUB_CACHE", str(place / "hub"))


def user_folder() -> Path:
    """The user's cache folder, ``~/.cache`` if nothing else is set; not absolute where there is no home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))


def _writable(folder: Path) -> bool:
    """Whether the folder can be written, or made; nothing is written to find out."""
    if not folder.is_absolute():
        return False
    there = next(each for each in (folder, *folder.parents) if os.path.lexists(each))
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)
