"""The figure of the paper's claims: the difference of two rows, in the paper and in our runs, one line per claim."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from vptsp_core.figures.style import BLUE, GREY, LIGHT, ORANGE, VERMILION, in_house_style, legend
from vptsp_core.paper.report import PAPER

COLOURS = {"holds": (BLUE, "o"), "undecided": (GREY, "s"), "does not hold": (VERMILION, "X")}


@in_house_style
def claims(compared: pd.DataFrame) -> Figure:
    """Draw a line per claim about R@1 that has runs: the paper's difference, and ours with its 95 % interval.

    A mark is hollow if one of the two rows has one seed, because its interval does not cover that row's other seeds.

    Args:
        compared: from `paper.claims.verdicts`.
    """
    part = compared["R@1"]
    part = part[part["verdict"].isin(list(COLOURS))]
    fig = Figure(figsize=(8.4, 1.6 + 0.32 * max(len(part), 2)), layout="constrained")
    ax = fig.subplots()
    places = pd.Series(range(len(part)), index=part.index, dtype=float)
    ax.axvline(0, color=GREY, linewidth=1.2, zorder=0)
    ax.plot(part[PAPER], places, "D", color=ORANGE, alpha=LIGHT, markersize=7, label="paper")
    one_seed = compared["seeds", ""].map(lambda seeds: "1" in seeds.split(", "))[part.index]
    for verdict, (colour, marker) in COLOURS.items():
        for hollow in (False, True):
            own = part[(part["verdict"] == verdict) & (one_seed == hollow)]
            if len(own):
                sides = [own["difference"] - own["low"], own["high"] - own["difference"]]
                ax.errorbar(
                    own["difference"], places[own.index], xerr=sides, fmt=marker, color=colour, capsize=3, markersize=7,
                    markerfacecolor="white" if hollow else colour,
                    label=f"ours: {verdict}" + (" (one seed)" if hollow else ""),
                )  # fmt: skip
    ax.set_yticks(places, part.index)
    ax.set_ylim(len(part) - 0.4, -0.6)
    ax.set_xlabel("difference of R@1, percentage points")
    ax.tick_params(axis="y", length=0)
    legend(fig, loc="outside lower center", ncols=2)
    return fig
