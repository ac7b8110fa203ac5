"""The figure of the first steps of several runs: whether all images get the same embedding, and the loss."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from vptsp_core.figures.style import CLASS_COLOURS, in_house_style, legend

PANELS = {"other classes": "mean cosine of images\nof different classes", "loss": "loss"}
STYLES = ("-", "--", "-.", ":")


@in_house_style
def first_steps(recorded: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw one line per run, in a panel for the cosine between classes and one for the loss, over the steps.

    Args:
        recorded: {run: its steps from `paper.first_steps.record_first_steps`}. A run's name ends in its seed. Runs that
            differ only in it have one colour. The scale of the steps is logarithmic.
    """
    fig = Figure(figsize=(9.6, 4.4), layout="constrained")
    for ax, (column, label) in zip(fig.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        seeds: dict[str, int] = {}
        for name, table in recorded.items():
            of = name.rpartition(",")[0]
            at = seeds[of] = seeds.get(of, -1) + 1
            colour = CLASS_COLOURS[list(seeds).index(of) % len(CLASS_COLOURS)]
            ax.plot(table["step"], table[column], STYLES[at % len(STYLES)], color=colour, label=name)
        ax.set(xscale="log", xlabel="step of the first epoch", ylabel=label)
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    legend(fig, loc="outside lower center", ncols=2)
    return fig
