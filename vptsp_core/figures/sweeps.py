"""Figure 3 as the paper prints it, a panel each, in the house style of `vptsp_core.figures.style`.

Our curve and the paper's have separate axes, one above the other: compare their shapes, not their scales, which come
from different data. Where our x axis covers enough of the paper's, the two share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from seaborn import lineplot

from vptsp_core.figures.style import BLUE, GREY, LIGHT, ORANGE, RANGE, VERMILION, _house, _ring, _ring_entry, ranged
from vptsp_core.paper.figure3 import Panel

ACROSS = 4  # panels beside each other
OURS = {"R@1": (BLUE, "o"), "MAP@R": (VERMILION, "D")}
PAPER = {"CUB": (BLUE, "s"), "Cars": (ORANGE, "^")}


@_house
def grid(panels: Sequence[Panel]) -> Figure:
    """All panels: R@1 in percent, ours above with the 95 % band where there are seeds, the paper's lighter below.

    A ringed point of ours could differ from our highest by chance alone.
    """
    across = min(ACROSS, len(panels))
    down = -(-len(panels) // across)
    fig = Figure(figsize=(3.3 * across + 0.4, 4.6 * down + 0.5), layout="constrained")
    cells = fig.subfigures(down, across, squeeze=False)
    for cell, panel in zip(cells.flat, panels):
        ratios = (3, 2) if len(panel.paper) else (1,)
        axes = cell.subplots(len(ratios), 1, squeeze=False, height_ratios=ratios)[:, 0]
        _ours(axes[0], panel, "R@1")
        if len(panel.paper):
            _paper(axes[1], panel)
            _share(axes[0], axes[1], panel)
        else:
            axes[0].set_title("no curve in the paper", color=GREY, fontsize=10)
        cell.suptitle(f"{'λ' if panel.name == 'lambda' else panel.name}: {panel.sweep.title}")
        if panel.sweep.paper_axis:
            axes[0].set_xlabel(f"ours: {panel.sweep.axis}")
        axes[-1].set_xlabel(f"paper: {panel.sweep.paper_axis}" if panel.sweep.paper_axis else panel.sweep.axis)
    entries = _entries(panels, ["R@1"])
    if len(panels) < cells.size:
        cells.flat[-1].legend(handles=entries, loc="center", title="R@1, %, of unseen classes")
    else:
        fig.legend(handles=entries, loc="outside lower center", ncols=len(entries))
    return fig


@_house
def single(panel: Panel) -> Figure:
    """One panel: our R@1 and MAP@R beside each other, and the paper's R@1 where it has a curve."""
    kinds = [*(OURS if len(panel.ours) else ["R@1"]), *(["paper"] if len(panel.paper) else [])]
    fig = Figure(figsize=(3.9 * len(kinds), 3.9), layout="constrained")
    for ax, kind in zip(fig.subplots(1, len(kinds), squeeze=False)[0], kinds):
        if kind == "paper":
            _paper(ax, panel)
        else:
            _ours(ax, panel, kind)
        axis = panel.sweep.paper_axis if kind == "paper" else ""
        ax.set(xlabel=axis or panel.sweep.axis, title="paper" if kind == "paper" else "ours")
    fig.legend(handles=_entries([panel], list(OURS)), loc="outside lower center", ncols=5)
    return fig


def _ours(ax: Axes, panel: Panel, y: str) -> None:
    ours, (colour, marker) = panel.ours, OURS[y]
    ax.set_ylabel(f"ours: {y}, %")
    if ours.empty:
        ax.text(0.5, 0.5, "no runs", color=GREY, ha="center", va="center", transform=ax.transAxes)
        ax.set(xticks=[], yticks=[])
        return
    half = ours[f"{y} ±"].fillna(0)
    seeds = ranged(ours, y, ours[y] - half, ours[y] + half)
    band: Any = {**RANGE, "err_kws": {"alpha": 0.18, "linewidth": 0}} if half.any() else {"errorbar": None}
    lineplot(seeds, x="x", y=y, marker=marker, color=colour, markeredgecolor=colour, legend=False, ax=ax, **band)
    ax.set(xlabel="", ylabel=f"ours: {y}, %")
    if y == "R@1":  # by which the highest was chosen
        _ring(ax, ours[ours["x"].isin(panel.unclear)], "x", y)
    _places(ax, panel, ours["x"])


def _paper(ax: Axes, panel: Panel) -> None:
    ax.set_ylabel("paper: R@1, %")
    for name, (colour, marker) in PAPER.items():
        ax.plot(panel.paper["x"], panel.paper[name], f"{marker}--", color=colour, alpha=LIGHT, markersize=6)
    _places(ax, panel, panel.paper["x"])


def _places(ax: Axes, panel: Panel, x: pd.Series) -> None:
    """Ticks where the points are, thinned out where their numbers would touch."""
    if panel.sweep.logarithmic:
        ax.set_xscale("log", base=2)
        ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_locator(FixedLocator(_apart(sorted(x), panel.sweep.logarithmic)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10)))
    ax.margins(x=0.07, y=0.15)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:g}"


def _apart(places: list[float], logarithmic: bool) -> list[float]:
    """Those of the sorted places whose numbers do not touch the one after; the last one always."""
    at = np.log(places) if logarithmic else np.asarray(places)
    least = (at[-1] - at[0]) * max(len(_number(place)) for place in places) / 26  # so many digits across an axis
    kept = [len(places) - 1]
    for i in range(len(places) - 2, -1, -1):
        if at[kept[-1]] - at[i] >= least:
            kept.append(i)
    return [places[i] for i in reversed(kept)]


def _share(above: Axes, below: Axes, panel: Panel) -> None:
    """One x axis for both, where ours is within the paper's and covers at least half of it."""
    ours, paper = panel.ours.get("x", pd.Series(dtype=float)), panel.paper["x"]
    if ours.empty or paper.empty or ours.min() < paper.min() or ours.max() > paper.max():
        return
    if ours.max() - ours.min() >= (paper.max() - paper.min()) / 2:
        above.set_xlim(below.get_xlim())


def _entries(panels: Sequence[Panel], metrics: Sequence[str]) -> list[Line2D]:
    entries = []
    if any(len(panel.ours) for panel in panels):
        for y in metrics:
            colour, marker = OURS[y]
            entries.append(Line2D([], [], color=colour, marker=marker, label=f"ours, {y}"))
    if any(panel.unclear for panel in panels):
        entries.append(_ring_entry("our highest R@1"))
    for name, (colour, marker) in PAPER.items():
        if any(panel.paper[name].notna().any() for panel in panels):
            theirs = Line2D([], [], color=colour, marker=marker, linestyle="--", label=f"paper, {name}")
            theirs.set(alpha=LIGHT, markersize=6)
            entries.append(theirs)
    return entries
