"""Times of a training step, method by method: ours, the paper's, shares of full fine-tuning; and form by form."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from seaborn import barplot, pointplot

from vptsp_core.figures.style import BLACK, BLUE, FORM_COLOURS, GREY, LIGHT, ORANGE, RANGE, _house, legend, ranged

MARKERS = ("o", "s", "^", "D")  # a batch size each


@_house
def latency(ours: pd.DataFrame, paper: pd.DataFrame, where: str) -> Figure:
    """Three panels, a line a method: our milliseconds with quartiles, the paper's, and percent of full fine-tuning.

    Args:
        ours: columns ``method``, ``batch``, ``ms``, ``ms 25 %``, ``ms 75 %`` and ``%``.
        paper: the same without quartiles; drawn lighter.
        where: the machine of ours.
    """
    methods, batches = list(dict.fromkeys(ours["method"])), sorted(set(ours["batch"]) | set(paper["batch"]))
    quartiles = ranged(ours, "ms", ours["ms 25 %"], ours["ms 75 %"])
    sides = {"ours": (quartiles, to_rgba(BLUE)), "paper": (paper, to_rgba(ORANGE, LIGHT))}
    table = pd.concat([rows.assign(side=side) for side, (rows, _) in sides.items()])
    table["series"] = table["side"] + ", batches of " + table["batch"].astype(str)
    series = [(side, at) for at in range(len(batches)) for side in sides]
    names = [f"{side}, batches of {batches[at]}" for side, at in series]
    look: Any = {
        "y": "method", "order": methods, "hue": "series", "hue_order": names,
        "palette": [sides[side][1] for side, _ in series], "markers": [MARKERS[at % len(MARKERS)] for _, at in series],
        "dodge": 0.5, "linestyle": "none", "capsize": 0.1, "markersize": 7, "err_kws": {"linewidth": 1.8},
    }  # fmt: skip
    fig = Figure(figsize=(13.5, 0.62 * len(methods) + 1.7), layout="constrained")
    panels = (
        (table[table["side"] == "ours"], "ms", f"ours: {where}", "milliseconds a step, median and quartiles"),
        (table[table["side"] == "paper"], "ms", "paper: ViT-S/16, one RTX 3090", "milliseconds a step"),
        (table, "%", "ours and the paper's", "percent of full fine-tuning, same batch"),
    )
    for ax, (rows, x, title, xlabel) in zip(fig.subplots(1, 3, sharey=True), panels):
        pointplot(rows, x=x, ax=ax, **look, **RANGE)
        if x == "%":
            ax.axvline(100, color=GREY, linestyle=":", linewidth=1.2)
        ax.get_legend().remove()
        ax.set(title=title, xlabel=xlabel, xlim=(0, None), ylabel="")
        ax.grid(axis="y", visible=False)
    legend(fig)
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
