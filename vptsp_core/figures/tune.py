"""Figures of a search, in the house style of `figures.style`."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vptsp_core.figures.style import BLUE, GREY, LIGHT, VERMILION, _house


@_house
def history(trials: pd.DataFrame, judge: str, reference: float | None = None, label: str = "start") -> Figure:
    """Every trial's R@1 in order, and the best so far; crosses on the axis are trials that could not be run.

    Args:
        trials: of `paper.search_study.trials_frame`.
        judge: what R@1 is of, for the axis: "test classes".
        reference: R@1 in percent that a dashed line marks, called ``label``.
    """
    fig = Figure(figsize=(7.0, 3.6), layout="constrained")
    ax = fig.subplots()
    trained = trials[trials["state"] == "trained"]
    ax.plot(trained["trial"], trained["R@1"], "o", color=BLUE, alpha=LIGHT, markeredgewidth=0, label="trial")
    ax.step(trials["trial"], trials["best so far"], where="post", color=VERMILION, label="best so far")
    if reference is not None:
        ax.axhline(reference, color=GREY, linestyle="--", label=label)
    out = trials.loc[trials["state"] == "left out", "trial"]
    if len(out):
        across = ax.get_xaxis_transform()
        ax.plot(out, [0.02] * len(out), "x", color=GREY, transform=across, label="left out")
    ax.set(xlabel="trial", ylabel=f"R@1 on {judge}, %")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    fig.legend(loc="outside right upper")
    return fig


@_house
def importance(shares: pd.Series, trials: int) -> Figure:
    """Bars, the most important key on top.

    Args:
        shares: of `paper.search_study.importance`; no rows give an empty frame that says so.
        trials: from how many they come.
    """
    fig = Figure(figsize=(7.0, 0.9 + 0.32 * max(len(shares), 3)), layout="constrained")
    ax = fig.subplots()
    ax.barh(list(shares.index), shares.to_numpy(), color=BLUE)
    ax.bar_label(ax.containers[0], fmt="%.2f", padding=3)  # type: ignore[arg-type]
    ax.invert_yaxis()
    ax.margins(x=0.12)
    ax.set(xlabel=f"share of the variance of R@1 (fANOVA of {trials} trials; all together 1)", xlim=(0, None))
    ax.grid(axis="y", visible=False)
    if not len(shares):
        ax.text(0.5, 0.5, "too few different results", transform=ax.transAxes, ha="center", va="center")
        ax.set(yticks=[])
    return fig
