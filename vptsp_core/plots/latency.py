"""Times of a training step, method by method: ours, the paper's, and both as shares of full fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vptsp_core.plots import BLUE, GREY, LIGHT, ORANGE, _house

MARKERS = ("o", "s", "^", "D")  # a batch size each
APART = 0.34  # between the batch sizes of one method, in rows
BELOW = 0.13  # the paper's below ours where both share a panel


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
