"""The figure of a wide table: one dot per row, one panel per metric."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vptsp_core.figures.style import BLUE, GREY, LIGHT, ORANGE, RING, in_house_style, legend, ringed
from vptsp_core.paper.report import OURS, PAPER

SHIFT = 0.16  # of a row's height


@in_house_style
def dots(
    table: pd.DataFrame, columns: Sequence[str], *, together: bool,
    unclear: Mapping[str, Collection[str]] | None = None, reference: str = "",
) -> Figure:  # fmt: skip
    """Draw the rows of a table from top to bottom, one panel per column, the paper's dots lighter than ours.

    A column without numbers of ours is left out, unless no column has any.

    Args:
        table: from `paper.compare.beside`.
        columns: the columns to draw, "<set> <metric>".
        together: draw both sides in one panel, with a line between them, because data and backbone are the same. If
            False, each side has its own panels and scales.
        unclear: {column: rows} from `runs.significance.unclear`: the difference to ``reference`` could be chance. These
            rows are ringed.
        reference: the row whose value of ours is drawn as a dotted line through the panel.
    """
    ours = [column for column in columns if table[column, OURS].notna().any()]
    if not ours:
        panels: list[tuple[str, list[str]]] = [(column, [PAPER]) for column in columns]
    elif together:
        panels = [(column, [PAPER, OURS]) for column in ours]
    else:
        panels = [(column, [side]) for side in (OURS, PAPER) for column in ours if table[column, side].notna().any()]
    rows = [row for row in table.index if table.loc[row, [(c, s) for c, sides in panels for s in sides]].notna().any()]
    width = 0.075 * max(len(row) for row in rows) + 2.7 * len(panels)
    fig = Figure(figsize=(max(width, 6.5), 1.7 + 0.4 * len(rows)), layout="constrained")
    axes = fig.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for ax, (column, sides) in zip(axes, panels, strict=True):
        title, metric = column.split(" ", 1)
        if ours and not together:
            title = "ours" if sides == [OURS] else f"paper, {title}"
        ax.set(title=title, xlabel=f"{metric}, %")
        _panel(ax, table.loc[rows, column], sides, (unclear or {}).get(column, ()), reference)
    axes[0].set_yticks(range(len(rows)), rows)
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    legend(fig)
    return fig


def _panel(ax: Axes, values: pd.DataFrame, sides: Sequence[str], unclear: Collection[str], reference: str) -> None:
    middle, both = np.arange(len(values)), len(sides) == 2
    above, below = middle - SHIFT * both, middle + SHIFT * both  # ours a little above the paper's if both are drawn
    if both:
        ax.plot([values[PAPER], values[OURS]], [below, above], color=GREY, linewidth=1.2, zorder=1)
    if OURS in sides:
        half = values["±"].fillna(0) if "±" in values else None
        ax.errorbar(values[OURS], above, xerr=half, fmt="o", color=BLUE, capsize=3, label="ours")
    if PAPER in sides:
        ax.plot(values[PAPER], below, "D", color=ORANGE, alpha=LIGHT, markersize=7, label="paper")
    if OURS in sides:
        if reference in values.index:
            x = values[OURS][reference]
            ax.axvline(x, color=BLUE, linestyle=":", linewidth=1.2, zorder=0, label=f"our {reference}")
        at = values.index.isin(list(unclear))
        if at.any():
            ax.plot(values[OURS][at], above[at], **RING, label=ringed(reference))
    ax.margins(x=0.14)
    ax.tick_params(axis="y", length=0)
    ax.locator_params(axis="x", nbins=5)
