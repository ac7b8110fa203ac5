"""Data sets by name."""

from __future__ import annotations

from pathlib import Path

from vptsp_core.data.base import Benchmark, ImageSet
from vptsp_core.errors import DataError

DATASETS = ("glyphs", "cub200")
__all__ = ["DATASETS", "Benchmark", "ImageSet", "load_benchmark"]


def load_benchmark(name: str, data: str | Path | None = None) -> Benchmark:
    """The train and test splits of a data set.

    Args:
        name: one of `DATASETS`.
        data: folder that holds the data sets; not needed for the embedded glyphs.

    Raises:
        DataError: unknown name, no folder given, or a folder that does not hold the whole data set.
    """
    if name == "glyphs":
        from vptsp_core.data.glyphs import load_glyphs

        return load_glyphs()
    if name not in DATASETS:
        raise DataError(f"data set {name!r} cannot be read by this version; known: {', '.join(DATASETS)}")
    if data is None:
        raise DataError(f"{name}: where are the images? give the folder that holds {name}/ with --data DIR")
    from vptsp_core.data.cub import load_cub200

    return load_cub200(Path(data).expanduser())
