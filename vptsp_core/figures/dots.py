"""The figure of a wide table: a dot a row, a panel a metric, in the house style of `figures.style`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vptsp_core.figures.style import BLUE, GREY, LIGHT, ORANGE, RING, _house, legend, ringed
from vptsp_core.paper.report import OURS, PAPER

SHIFT = 0.16  # of a row's height


@_house
def dots(
    table: pd.DataFrame,
    columns: Sequence[str],
    *,
    together: bool,
    unclear: Mapping[str, Collection[str]] | None = None,
    reference: str = "",
) -> Figure:
    """Rows of a table from top to bottom, a panel a column; the paper lighter, ours full.

    Columns of which nothing is ours are left out, unless that is all of them.

    Args:
        table: of `paper.compare.beside`.
        columns: which to draw, "<set> <metric>".
        together: both sides are of the same data: one panel for both, the difference a line between them. Else ours
            is of the glyphs, and each side has panels of its own, with its own scale.
        unclear: {column: rows whose difference to ``reference`` could be chance} (`runs.significance.unclear`): ringed.
        reference: the row whose value a dotted line carries down the panel.
    """
    ours = [column for column in columns if table[column, OURS].notna().any()]
    shown = ours or list(columns)
    if together or not ours:
        panels = [(column, (PAPER, OURS) if ours else (PAPER,)) for column in shown]
    else:
        panels = [(column, (side,)) for side in (OURS, PAPER) for column in shown if table[column, side].notna().any()]
    rows = [row for row in table.index if table.loc[row, [(c, s) for c, sides in panels for s in sides]].notna().any()]
    width = 0.075 * max(len(row) for row in rows) + 2.7 * len(panels)
    fig = Figure(figsize=(max(width, 6.5), 1.7 + 0.4 * len(rows)), layout="constrained")
    axes = fig.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for ax, (column, sides) in zip(axes, panels, strict=True):
        name, metric = column.split(" ", 1)
        title = name if together or not ours else f"{sides[0]}, {name if sides[0] == PAPER else 'glyphs'}"
        ax.set(title=title, xlabel=f"{metric}, %")
        _panel(ax, table.loc[rows, column], sides, (unclear or {}).get(column, ()), reference)
    axes[0].set_yticks(range(len(rows)), rows)
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    legend(fig)
    return fig


def _panel(ax: Axes, values: pd.DataFrame, sides: Sequence[str], unclear: Collection[str], reference: str) -> None:
    both = len(sides) == 2
    # Beside each other where they share a panel: ours a little above the line of its row, the paper below.
    above, below = (np.arange(len(values)) + (shift if both else 0) for shift in (-SHIFT, SHIFT))
    if both:
        ax.plot([values[PAPER], values[OURS]], [below, above], color=GREY, linewidth=1.2, zorder=1)
    if OURS in sides:
        half = values["±"].fillna(0) if "±" in values else None
        ax.errorbar(values[OURS], above, xerr=half, fmt="o", color=BLUE, capsize=3, label="ours")
    if PAPER in sides:
        ax.plot(values[PAPER], below, "D", color=ORANGE, alpha=LIGHT, markersize=7, label="paper")
    if OURS in sides and reference in values.index:
        look: Any = {"color": BLUE, "linestyle": ":", "linewidth": 1.2, "zorder": 0}
        ax.axvline(values[OURS][reference], label=f"our {reference}", **look)
    at = values.index.isin(list(unclear)) & (OURS in sides)
    if at.any():
        ax.plot(values[OURS][at], above[at], **RING, label=ringed(reference))
    ax.margins(x=0.14)
    ax.tick_params(axis="y", length=0)
    ax.locator_params(axis="x", nbins=5)
