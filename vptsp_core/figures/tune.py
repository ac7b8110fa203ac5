"""Figures of a search."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from seaborn import barplot, lineplot, rugplot, scatterplot

from vptsp_core.figures.style import BLUE, GREY, LIGHT, VERMILION, in_house_style
from vptsp_core.paper.search_study import LEFT_OUT


@in_house_style
def history(trials: pd.DataFrame, judge: str, reference: float | None = None) -> Figure:
    """Draw R@1 of all trials in order, the best so far, and a tick for every trial that was left out.

    Args:
        trials: from `paper.search_study.trials_frame`.
        judge: the name of the classes on which R@1 is measured, for the axis, such as "test classes".
        reference: the R@1 of the start (the first trial), in percent, for a dashed line.
    """
    fig = Figure(figsize=(7.0, 3.6), layout="constrained")
    ax = fig.subplots()
    look: Any = {"x": "trial", "legend": False, "ax": ax}
    best = {"y": "best so far", "errorbar": None, "drawstyle": "steps-post", "label": "best so far"}
    scatterplot(trials, y="R@1", color=BLUE, alpha=LIGHT, s=64, linewidth=0, label="trial", **look)
    lineplot(trials, color=VERMILION, **best, **look)
    if reference is not None:
        ax.axhline(reference, color=GREY, linestyle="--", label="start", zorder=0)
    out = trials[trials["state"] == LEFT_OUT]
    if len(out):
        rugplot(out, height=0.04, color=GREY, linewidth=1.8, label=LEFT_OUT, **look)
    ax.set(xlabel="trial", ylabel=f"R@1 on {judge}, %")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    fig.legend(loc="outside right upper")
    return fig


@in_house_style
def importance(shares: pd.Series, trials: int) -> Figure:
    """Draw the importance of each key as a bar, the most important key on top.

    Args:
        shares: from `paper.search_study.importance`. If empty, the figure says that the results differ too little.
        trials: the number of trials from which the shares were computed.
    """
    fig = Figure(figsize=(7.0, 0.9 + 0.32 * max(len(shares), 3)), layout="constrained")
    ax = fig.subplots()
    if len(shares):
        barplot(x=shares.to_numpy(), y=list(shares.index), color=BLUE, saturation=1, ax=ax)
        ax.bar_label(ax.containers[0], fmt="%.2f", padding=3)  # type: ignore[arg-type]
    else:
        ax.text(0.5, 0.5, "too few different results", transform=ax.transAxes, ha="center", va="center")
        ax.set(yticks=[])
    ax.margins(x=0.12)
    ax.set(
        xlabel=f"importance of the key alone, relative to the others (fANOVA of {trials} trials; sum 1)", xlim=(0, None)
    )
    ax.grid(axis="y", visible=False)
    return fig
