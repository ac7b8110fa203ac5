"""The picture of an image search: each query and what was found for it, with cosine and name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vptsp_core.data.folder import read_image
from vptsp_core.errors import DataError
from vptsp_core.figures.gallery import thumbnail
from vptsp_core.figures.style import _house

SIDE = 224  # pixels of a thumbnail
LETTERS = 26  # of a name, above a thumbnail


@_house
def found_images(table: pd.DataFrame, root: Path) -> Figure:
    """A line a query: the query at the left, its neighbours beside it, best first.

    An image that can no longer be read is a grey square that says so.

    Args:
        table: columns ``query`` (path), ``rank``, ``path`` (under ``root``) and ``cosine``; at least one row.
    """
    lines = list(table.groupby("query", sort=False))
    columns = 1 + int(table.groupby("query").size().max())
    fig = Figure(figsize=(1.75 * columns, 2.1 * len(lines)), layout="constrained")
    for axes, (query, rows) in zip(fig.subplots(len(lines), columns, squeeze=False), lines, strict=True):
        for ax in axes:
            ax.axis("off")
        _picture(axes[0], Path(str(query)), "query")
        for ax, row in zip(axes[1:], rows.itertuples(), strict=False):
            _picture(ax, root / str(row.path), f"{row.rank}.  cosine {row.cosine:.3f}")
    return fig


def short(name: str, letters: int = LETTERS) -> str:
    """A name of at most so many letters, its middle left out where it is longer.

    >>> short("Black_footed_Albatross_0046_18.jpg", 20)
    'Black_foo…046_18.jpg'
    """
    name = name.encode(errors="backslashreplace").decode()  # a file's name may not be text
    if len(name) <= letters:
        return name
    kept = letters - 1
    return f"{name[: kept // 2]}…{name[-(kept - kept // 2) :]}"


def _picture(ax: Axes, path: Path, title: str) -> None:
    try:
        shown = thumbnail(read_image(path, as_shown=True), SIDE)
    except DataError:
        shown = np.full((SIDE, SIDE, 3), 224, np.uint8)
        ax.text(SIDE / 2, SIDE / 2, "cannot be read", ha="center", va="center", fontsize=8)
    ax.imshow(shown)
    name = short(path.name).replace("$", r"\$")
    ax.set_title(f"{title}\n{name}", fontsize=7.5)
