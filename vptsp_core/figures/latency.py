"""Times of a training step, method by method: ours, the paper's, shares of full fine-tuning; and form by form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from seaborn import barplot

from vptsp_core.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    LIGHT,
    ORANGE,
    RANGE,
    SKY,
    VERMILION,
    _house,
    ranged,
)

MARKERS = ("o", "s", "^", "D")  # a batch size each
APART = 0.34  # between the batch sizes of one method, in rows
BELOW = 0.13  # the paper's below ours where both share a panel
FORM_COLOURS = {
    "compiled": BLUE, "eager": SKY, "textbook": GREEN, "released": VERMILION, "released, no checkpointing": ORANGE,
}  # fmt: skip


@_house
def latency(ours: pd.DataFrame, paper: pd.DataFrame, where: str) -> Figure:
    """Three panels, a line a method: our milliseconds with quartiles, the paper's, and percent of full fine-tuning.

    Args:
        ours: columns ``method``, ``batch``, ``ms``, ``ms 25 %``, ``ms 75 %`` and ``%``.
        paper: the same without quartiles; drawn lighter.
        where: the machine of ours.
    """
    methods, batches = list(dict.fromkeys(ours["method"])), sorted(set(ours["batch"]) | set(paper["batch"]))
    fig = Figure(figsize=(13.5, 0.62 * len(methods) + 1.7), layout="constrained")
    first, second, both = fig.subplots(1, 3, sharey=True)
    _dots(first, ours, "ms", methods, batches, BLUE, 1.0, "ours")
    _dots(second, paper, "ms", methods, batches, ORANGE, LIGHT, "paper")
    _dots(both, paper, "%", methods, batches, ORANGE, LIGHT, "_paper", BELOW)
    _dots(both, ours, "%", methods, batches, BLUE, 1.0, "_ours")
    both.axvline(100, color=GREY, linestyle=":", linewidth=1.2)
    first.set(title=f"ours: {where}", xlabel="milliseconds a step, median and quartiles")
    second.set(title="paper: ViT-S/16, one RTX 3090", xlabel="milliseconds a step")
    both.set(title="ours and the paper's", xlabel="percent of full fine-tuning, same batch")
    first.set(yticks=range(len(methods)), yticklabels=methods, ylim=(len(methods) - 0.4, -0.6))
    for ax in (first, second, both):
        ax.set_xlim(left=0)
        ax.grid(axis="y", visible=False)
    handles, labels = (a + b for a, b in zip(first.get_legend_handles_labels(), second.get_legend_handles_labels()))
    fig.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return fig


@_house
def forms(measured: pd.DataFrame, where: str) -> Figure:
    """A row of panels a batch size: milliseconds with quartiles, and memory, a bar a form of every method.

    Args:
        measured: columns ``method``, ``batch``, ``form``, ``ms``, ``ms 25 %``, ``ms 75 %`` and ``memory_MB``, which is
            NaN where it could not be counted: there is no bar then.
        where: the machine.
    """
    methods, kinds, batches = (list(dict.fromkeys(measured[name])) for name in ("method", "form", "batch"))
    height = 0.24 + 0.2 * len(kinds)
    fig = Figure(figsize=(11.5, len(batches) * (height * len(methods) + 0.9) + 0.6), layout="constrained")
    panels = fig.subplots(len(batches), 2, squeeze=False, sharey=True, sharex="col")
    quartiles = ranged(measured, "ms", measured["ms 25 %"], measured["ms 75 %"])
    look: Any = {"y": "method", "hue": "form", "order": methods, "hue_order": kinds, "palette": FORM_COLOURS}
    for (times, memory), batch in zip(panels, batches, strict=True):
        rows = quartiles[quartiles["batch"] == batch]
        error: Any = {"capsize": 0.2, "err_kws": {"linewidth": 1.2, "color": BLACK}}
        barplot(rows, x="ms", saturation=1, ax=times, **look, **error, **RANGE)
        barplot(rows, x="memory_MB", saturation=1, errorbar=None, legend=False, ax=memory, **look)
        times.get_legend().set_visible(False)
        times.set(xlabel="milliseconds a step, median and quartiles", ylabel="", title=f"batches of {batch}: {where}")
        memory.set(xlabel="memory of a step, MB")
        for ax in (times, memory):
            ax.grid(axis="y", visible=False)
            ax.label_outer()
    fig.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(kinds))
    return fig


def _dots(
    ax: Axes, table: pd.DataFrame, x: str, methods: Sequence[str], batches: Sequence[int], colour: str,
    opacity: float, name: str, shift: float = 0.0,
) -> None:  # fmt: skip
    for at, batch in enumerate(batches):
        rows = table[(table["batch"] == batch) & table["method"].isin(methods)]
        place = [methods.index(method) + APART * (at - (len(batches) - 1) / 2) + shift for method in rows["method"]]
        error = None
        if x == "ms" and "ms 25 %" in rows:
            error = [rows["ms"] - rows["ms 25 %"], rows["ms 75 %"] - rows["ms"]]
        ax.errorbar(
            rows[x], place, xerr=error, fmt=MARKERS[at % len(MARKERS)], color=colour, alpha=opacity, capsize=3,
            markerfacecolor=colour if at else "white", markeredgewidth=1.8, label=f"{name}, batches of {batch}",
        )  # fmt: skip
