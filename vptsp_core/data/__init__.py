"""Data sets by name, and the way of their images to the training step.

`load_benchmark` finds the images of a data set. `catalog` describes the published data sets. `layouts`, `cars196` and
`own` list the images of a folder. `assemble` compares that list with the disk and with the published counts, and
returns a `base.Benchmark` of `folder.FileSet`. `glyphs` draws its images instead. `command`, `fetch` and `download`
are for ``python -m vptsp_core data``.

`batches` turns the images into batches, by the pipeline that the config names:

- classic: `loading` decodes and augments the files of every batch, in worker processes.
- cached: `cache` decodes and resizes every image once, into the pixels of a `store.PixelStore`. `cached` augments from
  that store, on the device, with the boxes of `crops`.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from vptsp_core.data.assemble import make_benchmark
from vptsp_core.data.base import OWN, Benchmark, ImageSet
from vptsp_core.data.catalog import CATALOG, DATASETS, DataSet
from vptsp_core.data.own import list_own_images
from vptsp_core.errors import DataError

_EMBEDDED = "the data set of this run is the embedded glyphs, which read no folder"
__all__ = ["DATASETS", "OWN", "Benchmark", "ImageSet", "data_folder", "load_benchmark", "refuse_unread"]


def data_folder(name: str, data: str | Path | None) -> str | None:
    """Return the folder that a data set is read from: ``data``, or else the environment's VPTSP_DATA.

    The glyphs are embedded: for them, return None, and warn if ``data`` is given.
    """
    if name != "glyphs":
        return str(data or os.environ.get("VPTSP_DATA") or "") or None
    if data:
        warnings.warn(f"data = {data}: {_EMBEDDED}", stacklevel=3)
    return None


def refuse_unread(name: str, data: str | Path | None) -> None:
    """Refuse the ``--data`` of a command if the data set ``name`` does not read it.
    Raises DataError: the data set is the glyphs, and ``data`` is given.
    """
    if data and name == "glyphs":
        raise DataError(
            f"--data {data}: {_EMBEDDED}; train your own images with --data-folder DIR, name a benchmark with "
            "--preset, or leave --data out"
        )


def load_benchmark(name: str, data: str | Path | None = None, allow_partial: bool = False) -> Benchmark:
    """Return the train and test splits of a data set.

    Args:
        name: one of `DATASETS`; ``"folder"`` and ``"own"`` are your own images (see `own.list_own_images`).
        data: folder that holds the data sets, or your own images themselves (see `data_folder`).
        allow_partial: continue if the published data set is not whole, with one warning that lists the differences.

    Raises:
        DataError: unknown name, no folder given, or a folder that does not hold the whole data set.
    """
    data = data_folder(name, data)
    if name == "glyphs":
        from vptsp_core.data.glyphs import load_glyphs  # matplotlib takes a while

        return load_glyphs()
    if name not in DATASETS:
        raise DataError(f"data set {name!r} is not known; known: {', '.join(DATASETS)}")
    if data is None:
        inside = "<class>/<image>" if name in OWN else f"{CATALOG[name].folder}/"
        raise DataError(f"{name}: no folder is given; give the one that holds {inside} with --data DIR or VPTSP_DATA")
    root = Path(data).expanduser().absolute()
    if name in OWN:
        return make_benchmark(name, list_own_images(root, name), {}, allow_partial)
    known = CATALOG[name]
    return make_benchmark(name, known.reader(find_folder(root, known), name), known.counts, allow_partial)


def find_folder(root: Path, known: DataSet) -> Path:
    """Return the data set's folder, by its own name or its archive's: in ``root``, or ``root`` itself.

    If there is none, the returned path does not exist.
    """
    names = (known.folder, *known.aliases)
    places = [place for name in names if (place := root / name).is_dir()]
    if root.resolve().name in names:
        places.append(root)
    place = next(iter(places), root / known.folder)
    return next((inside for name in known.aliases if (inside := place / name).is_dir()), place)
