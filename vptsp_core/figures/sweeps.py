"""Figure 3 with the panels of the paper.

Our curve and the paper's have separate axes. Compare their shapes, not their scales: the data differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from seaborn import lineplot

from vptsp_core.figures.style import BLUE, GREY, LIGHT, ORANGE, RANGE, RING, VERMILION, in_house_style, legend, ringed
from vptsp_core.paper.figure3_results import Panel

ACROSS = 4  # panels in a row
OURS = {"R@1": (BLUE, "o"), "MAP@R": (VERMILION, "D")}
PAPER = {"CUB": (BLUE, "s"), "Cars": (ORANGE, "^")}


@in_house_style
def grid(panels: Sequence[Panel]) -> Figure:
    """Draw R@1 of all panels: ours above, with a 95 % band if there are several seeds, and the paper's below.

    A point is ringed if its difference to our highest point could be chance.
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


@in_house_style
def single(panel: Panel) -> Figure:
    """Draw one panel: our R@1, our MAP@R and, if the paper has a curve, its R@1."""
    kinds = [*(OURS if len(panel.ours) else ["R@1"]), *(["paper"] if len(panel.paper) else [])]
    fig = Figure(figsize=(3.9 * len(kinds), 3.9), layout="constrained")
    for ax, kind in zip(fig.subplots(1, len(kinds), squeeze=False)[0], kinds):
        if kind == "paper":
            _paper(ax, panel)
            ax.set(xlabel=panel.sweep.paper_axis or panel.sweep.axis, title="paper")
        else:
            _ours(ax, panel, kind)
            ax.set(xlabel=panel.sweep.axis, title="ours")
    legend(fig)
    return fig


def _ours(ax: Axes, panel: Panel, y: str) -> None:
    ours, (colour, marker) = panel.ours, OURS[y]
    if ours.empty:
        ax.text(0.5, 0.5, "no runs", color=GREY, ha="center", va="center", transform=ax.transAxes)
        ax.set(ylabel=f"ours: {y}, %", xticks=[], yticks=[])
        return
    half = ours[f"{y} ±"].fillna(0)
    ends = pd.concat([ours.assign(**{y: ours[y] + end}) for end in (-half, 0, half)], ignore_index=True)
    band: Any = {**RANGE, "err_kws": {"alpha": 0.18, "linewidth": 0}} if half.any() else {"errorbar": None}
    look: Any = {"marker": marker, "color": colour, "markeredgecolor": colour, "label": f"ours, {y}", "legend": False}
    lineplot(ends, x="x", y=y, ax=ax, **look, **band)
    ax.set(xlabel="", ylabel=f"ours: {y}, %")
    doubtful = ours[ours["x"].isin(panel.unclear)]
    if y == "R@1" and len(doubtful):  # the highest point was chosen by R@1
        ax.plot(doubtful["x"], doubtful[y], **RING, label=ringed("our highest R@1"))
    _scale(ax, panel)


def _paper(ax: Axes, panel: Panel) -> None:
    ax.set_ylabel("paper: R@1, %")
    for name, (colour, marker) in PAPER.items():
        if panel.paper[name].notna().any():
            x, y, label = panel.paper["x"], panel.paper[name], f"paper, {name}"
            ax.plot(x, y, f"{marker}--", color=colour, alpha=LIGHT, markersize=6, label=label)
    _scale(ax, panel)


def _scale(ax: Axes, panel: Panel) -> None:
    if panel.sweep.logarithmic:
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(ScalarFormatter())
    else:
        whole = pd.concat([panel.ours["x"], panel.paper["x"]]).mod(1).eq(0).all()
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10), integer=whole, min_n_ticks=1))
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10)))
    ax.margins(x=0.07, y=0.15)
