"""Figure 3 as the paper prints it, a panel each, in the house style of `vptsp_core.figures.style`.

Our curve and the paper's have separate axes, one above the other: compare their shapes, not their scales, which come
from different data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from seaborn import lineplot

from vptsp_core.figures.style import BLUE, GREY, LIGHT, ORANGE, RANGE, RING, VERMILION, _house, legend, ranged, ringed
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
        else:
            axes[0].set_title("no curve in the paper", color=GREY, fontsize=10)
        cell.suptitle(f"{'λ' if panel.name == 'lambda' else panel.name}: {panel.sweep.title}")
        if panel.sweep.paper_axis:
            axes[0].set_xlabel(f"ours: {panel.sweep.axis}")
        axes[-1].set_xlabel(f"paper: {panel.sweep.paper_axis}" if panel.sweep.paper_axis else panel.sweep.axis)
    if len(panels) < cells.size:
        legend(fig, cells.flat[-1], loc="center", title="R@1, %, of unseen classes")
    else:
        legend(fig)
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
    legend(fig)
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
    look: Any = {"marker": marker, "color": colour, "markeredgecolor": colour, "label": f"ours, {y}", "legend": False}
    lineplot(seeds, x="x", y=y, ax=ax, **look, **band)
    ax.set(xlabel="", ylabel=f"ours: {y}, %")
    doubtful = ours[ours["x"].isin(panel.unclear)]
    if y == "R@1" and len(doubtful):  # by which the highest was chosen
        ax.plot(doubtful["x"], doubtful[y], **RING, label=ringed("our highest R@1"))
    _scale(ax, panel)


def _paper(ax: Axes, panel: Panel) -> None:
    ax.set_ylabel("paper: R@1, %")
    for name, (colour, marker) in PAPER.items():
        if panel.paper[name].notna().any():
            look: Any = {"color": colour, "alpha": LIGHT, "markersize": 6, "label": f"paper, {name}"}
            ax.plot(panel.paper["x"], panel.paper[name], f"{marker}--", **look)
    _scale(ax, panel)


def _scale(ax: Axes, panel: Panel) -> None:
    if panel.sweep.logarithmic:
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(ScalarFormatter())
    else:
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10)))
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10)))
    ax.margins(x=0.07, y=0.15)
