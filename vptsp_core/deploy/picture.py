"""Draw the result of an image search: each query and its neighbours, with cosine and name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vptsp_core.data.folder import read_image
from vptsp_core.errors import DataError
from vptsp_core.figures.gallery import thumbnail
from vptsp_core.figures.style import BLACK, in_house_style

SIDE, ACROSS = 224, 5  # pixels of a thumbnail; neighbours in a row
LETTERS = 26  # of the name under a thumbnail
DOWN = 1.3  # from one row to the next, in thumbnails: there are two lines of text under each


@in_house_style
def found_images(table: pd.DataFrame, root: Path) -> Figure:
    """Draw one block per query: the framed query at the left, and its neighbours in rows of five, best first.

    A grey square stands for an image that can no longer be read.

    Args:
        table: columns ``query`` (path), ``rank``, ``path`` (under ``root``) and ``cosine``.
    """
    fig = Figure()
    ax = fig.add_axes((0.01, 0.01, 0.98, 0.98))
    width, y = 1.25 + ACROSS, 0.0
    for query, rows in table.groupby("query", sort=False):
        _picture(ax, Path(str(query)), 0, y, "query", framed=True)
        for at, row in enumerate(rows.itertuples()):
            x, below = 1.25 + at % ACROSS, y + DOWN * (at // ACROSS)
            _picture(ax, root / str(row.path), x, below, f"{row.rank}.  cosine {row.cosine:.3f}")
        y += DOWN * -(-len(rows) // ACROSS)
    fig.set_size_inches(1.75 * width, 1.75 * y)
    ax.set(xlim=(0, width), ylim=(y, 0), aspect="equal")
    ax.axis("off")
    return fig


def _picture(ax: Axes, path: Path, x: float, y: float, text: str, framed: bool = False) -> None:
    """Draw a file in the unit square at (x, y), with the text and the file's name below it."""
    try:
        shown = thumbnail(read_image(path, as_shown=True), SIDE)
    except DataError:
        shown = np.full((SIDE, SIDE, 3), 224, np.uint8)
    gap, side = 0.03, 0.94
    ax.imshow(shown, extent=(x + gap, x + gap + side, y + gap + side, y + gap))
    if framed:
        ax.add_patch(Rectangle((x + gap, y + gap), side, side, fill=False, edgecolor=BLACK, linewidth=2.5))
    name = path.name.encode(errors="backslashreplace").decode()  # a file name can hold invalid text
    if len(name) > LETTERS:
        name = f"{name[: LETTERS // 2]}…{name[1 - LETTERS // 2 :]}"
    below = f"{text}\n{name}".replace("$", r"\$")
    ax.text(x + 0.5, y + 1.0, below, ha="center", va="top", fontsize=7.5)
