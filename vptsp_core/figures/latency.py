"""Times of a training step by method, ours and the paper's, and by form."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pandas as pd
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from seaborn import barplot, pointplot

from vptsp_core.figures.style import BLACK, BLUE, FORM_COLOURS, GREY, LIGHT, ORANGE, RANGE, in_house_style, legend

MARKERS = ("o", "s", "^", "D")  # one per batch size


@in_house_style
def latency(ours: pd.DataFrame, paper: pd.DataFrame, where: str) -> Figure:
    """Draw three panels, one row per method: our milliseconds, the paper's, and percent of full fine-tuning.

    Args:
        ours: columns ``method``, ``batch``, ``ms``, ``ms 25 %``, ``ms 75 %`` and ``%``.
        paper: the same without quartiles.
        where: our model and machine, for the title of our panel.
    """
    methods, batches = list(dict.fromkeys(ours["method"])), sorted(set(ours["batch"]) | set(paper["batch"]))
    table = pd.concat([_with_quartiles(ours).assign(side="ours"), paper.assign(side="paper")])
    table["series"] = table["side"] + ", batches of " + table["batch"].astype(str)
    colours = {"ours": to_rgba(BLUE), "paper": to_rgba(ORANGE, LIGHT)}
    series = [(side, batch, marker) for batch, marker in zip(batches, cycle(MARKERS)) for side in colours]
    look: Any = {
        "y": "method", "order": methods, "hue": "series",
        "hue_order": [f"{side}, batches of {batch}" for side, batch, _ in series],
        "palette": [colours[side] for side, _, _ in series], "markers": [marker for _, _, marker in series],
        "dodge": 0.5, "linestyle": "none", "capsize": 0.1, "markersize": 7, "err_kws": {"linewidth": 1.8},
    }  # fmt: skip
    fig = Figure(figsize=(13.5, 0.62 * len(methods) + 1.7), layout="constrained")
    panels = (
        (table[table["side"] == "ours"], "ms", f"ours: {where}", "milliseconds per step, median and quartiles"),
        (table[table["side"] == "paper"], "ms", "paper: ViT-S/16, one RTX 3090", "milliseconds per step"),
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


@in_house_style
def forms(measured: pd.DataFrame, where: str) -> Figure:
    """Draw milliseconds and memory of every method, one bar per form, one row of panels per batch size.

    A form is an implementation of the training step, such as "eager", "compiled" or "released".

    Args:
        measured: columns ``method``, ``batch``, ``form``, ``ms``, ``ms 25 %``, ``ms 75 %`` and ``memory_MB``. If the
            memory is NaN, its bar is missing.
        where: the model and the machine, for the titles.
    """
    methods, kinds, batches = (list(dict.fromkeys(measured[name])) for name in ("method", "form", "batch"))
    height = 0.24 + 0.2 * len(kinds)
    fig = Figure(figsize=(11.5, len(batches) * (height * len(methods) + 0.9) + 0.6), layout="constrained")
    panels = fig.subplots(len(batches), 2, squeeze=False, sharey=True, sharex="col")
    look: Any = {"y": "method", "hue": "form", "order": methods, "hue_order": kinds, "palette": FORM_COLOURS}
    error: Any = {"capsize": 0.2, "err_kws": {"linewidth": 1.2, "color": BLACK}, **RANGE}
    for (times, memory), batch in zip(panels, batches, strict=True):
        rows = measured[measured["batch"] == batch]
        barplot(_with_quartiles(rows), x="ms", saturation=1, ax=times, **look, **error)
        barplot(rows, x="memory_MB", saturation=1, errorbar=None, legend=False, ax=memory, **look)
        times.get_legend().set_visible(False)
        times.set(xlabel="milliseconds per step, median and quartiles", ylabel="", title=f"batches of {batch}: {where}")
        memory.set(xlabel="memory of a step, MB")
        for ax in (times, memory):
            ax.grid(axis="y", visible=False)
            ax.label_outer()
    legend(fig)
    return fig


def _with_quartiles(table: pd.DataFrame) -> pd.DataFrame:
    """Return each row three times: with ``ms`` at its lower quartile, at its median and at its upper quartile."""
    return pd.concat([table.assign(ms=table[name]) for name in ("ms 25 %", "ms", "ms 75 %")], ignore_index=True)
