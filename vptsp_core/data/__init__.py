"""Data sets by name."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from vptsp_core.data.base import Benchmark, ImageSet
from vptsp_core.errors import DataError

if TYPE_CHECKING:
    from vptsp_core.data.catalog import DataSet

DATASETS = ("glyphs", "cub200", "cars196", "sop", "inshop", "inaturalist", "folder", "own")
_EMBEDDED = "the data set of this run is the embedded glyphs, which read no folder"
OWN = ("folder", "own")  # your own images, which the name alone does not identify
__all__ = ["DATASETS", "OWN", "Benchmark", "ImageSet", "data_folder", "load_benchmark", "refuse_unread"]


def data_folder(name: str, data: str | Path | None) -> str | None:
    """The folder that a data set is read from: ``data``, else the environment's VPTSP_DATA.

    None for the glyphs, which are embedded: ``data`` given for them is a warning.
    """
    if name != "glyphs":
        return str(data or os.environ.get("VPTSP_DATA") or "") or None
    if data:
        warnings.warn(f"data = {data}: {_EMBEDDED}", stacklevel=3)
    return None


def refuse_unread(name: str, data: str | Path | None) -> None:
    """For commands: refuse a ``--data`` that the data set ``name`` does not read.
    Raises DataError: the data set is the glyphs, and there is ``data``.
    """
    if data and name == "glyphs":
        raise DataError(
            f"--data {data}: {_EMBEDDED}; train your own images with --data-folder DIR, name a benchmark with --preset "
            "or --set dataset=NAME, or leave --data out"
        )


def load_benchmark(name: str, data: str | Path | None = None, allow_partial: bool = False) -> Benchmark:
    """The train and test splits of a data set.

    Args:
        name: one of `DATASETS`; ``"folder"`` and ``"own"`` are your own images (see `own.own_images`).
        data: folder that holds the data sets, or for these the images themselves (see `data_folder`).
        allow_partial: continue if the published data set is not whole, with one warning that lists the differences.

    Raises:
        DataError: unknown name, no folder given, or a folder that does not hold the whole data set.
    """
    data = data_folder(name, data)
    if name == "glyphs":
        from vptsp_core.data.glyphs import load_glyphs

        return load_glyphs()
    if name not in DATASETS:
        raise DataError(f"data set {name!r} is not known; known: {', '.join(DATASETS)}")
    from vptsp_core.data.assemble import assemble
    from vptsp_core.data.catalog import CATALOG
    from vptsp_core.data.own import own_images

    if data is None:
        inside = "<class>/<image>" if name in OWN else f"{CATALOG[name].folder}/"
        raise DataError(f"{name}: where are the images? give the folder that holds {inside} with --data DIR")
    root = Path(data).expanduser().absolute()
    if name in OWN:
        return assemble(name, own_images(root, name), {}, allow_partial)
    known = CATALOG[name]
    return assemble(name, known.reader(_folder(root, known), name), known.counts, allow_partial)


def _folder(root: Path, known: DataSet) -> Path:
    """The data set's folder in ``root``, by its own name or as its archive calls it, or ``root`` if that is it."""
    names = (known.folder, *known.aliases)
    places = [place for name in names if (place := root / name).is_dir()]
    if root.resolve().name in names:
        places.append(root)
    place = next(iter(places), root / known.folder)
    return next((inside for name in known.aliases if (inside := place / name).is_dir()), place)
