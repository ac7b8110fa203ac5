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
# heights in thumbnails: a line of text, both lines under a thumbnail, the gap between queries
LINE, BELOW, GAP = 0.09, 0.24, 0.1


@in_house_style
def found_images(table: pd.DataFrame, root: Path) -> Figure:
    """Draw one block per query: the framed query at the left, and its neighbours in rows of five, best first.

    A grey square with a note stands for an image that can no longer be read.

    Args:
        table: columns ``query`` (path), ``rank``, ``path`` (under ``root``) and ``cosine``.
    """
    blocks = list(table.groupby("query", sort=False))
    across = max(1, min(ACROSS, int(table.groupby("query").size().max()))) if len(table) else 1
    counts = [-(-len(rows) // across) for _, rows in blocks]
    width, height = 1.25 + across, sum((1 + BELOW) * n + GAP for n in counts) - GAP
    fig = Figure(figsize=(1.75 * width, 1.75 * height))
    ax = fig.add_axes((0.01, 0.01, 0.98, 0.98))
    y = 0.0
    for (query, rows), count in zip(blocks, counts):
        _picture(ax, Path(str(query)), 0, y, ["query", short(Path(str(query)).name)], framed=True)
        for at, row in enumerate(rows.itertuples()):
            x, below = 1.25 + at % across, y + (1 + BELOW) * (at // across)
            text = [f"{row.rank}.  cosine {row.cosine:.3f}", short(Path(str(row.path)).name)]
            _picture(ax, root / str(row.path), x, below, text)
        y += (1 + BELOW) * count + GAP
    ax.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    ax.axis("off")
    return fig


def short(name: str, letters: int = LETTERS) -> str:
    """Shorten a name to at most ``letters``: the middle of a longer one is left out.

    >>> short("Black_footed_Albatross_0046_18.jpg", 20)
    'Black_foo…046_18.jpg'
    """
    name = name.encode(errors="backslashreplace").decode()  # a file name can hold invalid text
    if len(name) <= letters:
        return name
    kept = letters - 1
    return f"{name[: kept // 2]}…{name[-(kept - kept // 2) :]}"


def _picture(ax: Axes, path: Path, x: float, y: float, lines: list[str], framed: bool = False) -> None:
    gap, side = 0.03, 0.94
    try:
        shown = thumbnail(read_image(path, as_shown=True), SIDE)
    except DataError:
        shown = np.full((SIDE, SIDE, 3), 224, np.uint8)
        ax.text(x + 0.5, y + 0.5, "cannot be read", ha="center", va="center", fontsize=8, zorder=3)
    ax.imshow(shown, extent=(x + gap, x + gap + side, y + gap + side, y + gap))
    if framed:
        ax.add_patch(Rectangle((x + gap, y + gap), side, side, fill=False, edgecolor=BLACK, linewidth=2.5))
    for line, text in enumerate(lines):
        ax.text(x + 0.5, y + 1.0 + LINE * line, text.replace("$", r"\$"), ha="center", va="top", fontsize=7.5)
